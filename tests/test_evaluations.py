"""What `eval` recorded: which evaluation counts for a run, and what is broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import rewrite, write_ensemble, write_eval, write_run

from resrepro.records import read_run
from resrepro.records.collection import collect, load_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet-18 trained to its end on ten classes, centre-crop error 31, evaluated in two ways."""
    return write_run(
        tmp_path / "runs",
        "folder-resnet18",
        iterations=700,
        curve=[(350, 50.0, 55.0), (700, 30.0, 31.0)],
        evals={"ten_crop": (27.5, 9.25), "multi_scale": (26.5, 8.75)},
    )


def test_each_protocol_and_metric_gives_its_own_error(folder: Path) -> None:
    run = read_run(folder)
    assert run.evaluated("ten_crop", "top1_err", "val") == 27.5
    assert run.evaluated("ten_crop", "top5_err", "val") == 9.25
    assert run.evaluated("multi_scale", "top1_err", "val") == 26.5
    assert run.evaluated("center", "top1_err", "val") is None
    assert run.evaluated("ten_crop", "top1_err", "test") is None
    assert (run.last("val"), run.classes, run.family) == (31.0, 10, "imagenet")


@pytest.mark.parametrize(
    "changed",
    [
        {"iteration": 350},
        {"iteration": 0},
        {"digest": "0" * 64},
        {"bn_stats": "precise"},
        {"data": {"name": "folder", "images": {"val": 500}, "classes": 10, "sha256": {"val": "1" * 64}}},
        {"data": {"name": "imagenet", "images": {"val": 500}, "classes": 10, "sha256": {}}},
    ],
)
def test_what_is_not_of_the_runs_end_and_data_counts_for_nothing(
    folder: Path, changed: dict[str, Any]
) -> None:
    write_eval(folder, "ten_crop", 5.0, 1.0, **changed)
    run = read_run(folder)
    assert len(run.evaluations) == 2
    assert run.broken == ()
    assert run.evaluated("ten_crop", "top1_err", "val") is None


def test_bn_statistics_are_those_of_the_recipe(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "folder-resnet18", iterations=700, bn_stats="precise")
    write_eval(folder, "ten_crop", 20.0, 2.0, bn_stats="running", name="running")
    assert read_run(folder).evaluated("ten_crop", "top1_err", "val") is None
    write_eval(folder, "ten_crop", 21.0, 2.0)
    assert read_run(folder).evaluated("ten_crop", "top1_err", "val") == 21.0


@pytest.mark.parametrize("curve", [[(350, 50.0, 55.0)], []])
def test_an_unfinished_run_has_no_evaluation(tmp_path: Path, curve: list[tuple[int, float, float]]) -> None:
    folder = write_run(tmp_path, "folder-resnet18", iterations=700, curve=curve)
    write_eval(folder, "ten_crop", 20.0, 2.0)
    write_eval(folder, "ten_crop", 20.0, 2.0, name="claims-the-end", iteration=700)
    run = read_run(folder)
    assert len(run.evaluations) == 2
    assert run.evaluated("ten_crop", "top1_err", "val") is None


def test_an_older_record_of_cifar_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, curve=[(64_000, 1.0, 8.0)])
    run = read_run(folder)
    content = {
        "protocol": "single",
        "digest": run.digest,
        "iteration": 64_000,
        "data": run.env["data"],
        "errors": {"test": {"loss": 0.3, "top1_err": 8.25, "top5_err": 0.5, "count": 10_000}},
    }
    (folder / "evals").mkdir()
    (folder / "evals" / "single-cifar10-all.json").write_text(json.dumps(content))
    assert read_run(folder).evaluated("single", "top1_err", "test") == 8.25


BROKEN = [
    lambda content: content.pop("protocol"),
    lambda content: content.pop("digest"),
    lambda content: content.pop("data"),
    lambda content: content.pop("errors"),
    lambda content: content.update(errors={}),
    lambda content: content["errors"]["val"].pop("top5_err"),
    lambda content: content["errors"]["val"].update(top1_err="low"),
    lambda content: content["data"].pop("sha256"),
    lambda content: content["data"].update(images={"test": 500}),
]


@pytest.mark.parametrize("tamper", BROKEN)
def test_a_broken_evaluation_is_named_and_the_run_and_its_others_still_count(
    folder: Path, tamper: Callable[[dict[str, Any]], object]
) -> None:
    path = folder / "evals" / "ten_crop.json"
    rewrite(path, tamper)
    collection = collect([folder.parent.parent])
    (sentence,) = collection.broken
    assert sentence.startswith(f"{path} is broken: ")
    (run,) = collection.runs
    assert run.evaluated("ten_crop", "top1_err", "val") is None
    assert run.evaluated("multi_scale", "top1_err", "val") == 26.5


def test_a_file_that_is_no_json_is_named_too(folder: Path) -> None:
    (folder / "evals" / "ten_crop.json").write_text("{")
    with pytest.warns(UserWarning, match=r"ten_crop\.json is broken: it is not valid JSON"):
        frame = load_runs(folder.parent.parent)
    assert frame["top1_err"].tolist() == [31.0]


def test_a_record_of_a_folder_without_classes_is_broken(folder: Path) -> None:
    rewrite(folder / "env.json", lambda env: env["data"].pop("classes"))
    collection = collect([folder.parent.parent])
    assert collection.runs == ()
    assert "env.json is broken: it lacks classes" in collection.broken[0]


# --- ensembles --------------------------------------------------------------------------------------


@pytest.fixture
def pair(folder: Path) -> list[Path]:
    """The run above and one of another seed."""
    return [folder, write_run(folder.parent.parent, "folder-resnet18", 1, iterations=700)]


def test_an_ensemble_is_read_with_its_members(pair: list[Path], tmp_path: Path) -> None:
    write_ensemble(tmp_path / "runs", pair, 24.0, 7.0)
    (ensemble,) = collect([tmp_path / "runs"]).ensembles
    assert [(member.label, member.seed, member.status) for member in ensemble.members] == [
        ("ResNet-18", 0, "shortened"), ("ResNet-18", 1, "shortened"),
    ]  # fmt: skip
    assert (ensemble.protocol, ensemble.errors["val"]["top5_err"]) == ("multi_scale", 7.0)
    assert ensemble.data.classes == 10


def test_a_published_copy_of_an_ensemble_counts_once(pair: list[Path], tmp_path: Path) -> None:
    write_ensemble(tmp_path / "runs", pair, 24.0, 7.0)
    (tmp_path / "results").mkdir()
    write_ensemble(tmp_path / "results", pair[::-1], 24.0, 7.0, name="published")
    folders = [tmp_path / "runs", tmp_path / "results"]
    assert len(collect(folders).ensembles) == 1
    write_ensemble(tmp_path / "results", pair, 24.5, 7.5, name="ten", protocol="ten_crop")
    assert len(collect(folders).ensembles) == 2


@pytest.mark.parametrize(
    "tamper",
    [
        lambda content: content.pop("members"),
        lambda content: content.update(members=content["members"][:1]),
        lambda content: content["members"][0].pop("status"),
        lambda content: content["members"][1].update(departures="none"),
        lambda content: content.pop("data"),
    ],
)
def test_a_broken_ensemble_is_named(
    pair: list[Path], tmp_path: Path, tamper: Callable[[dict[str, Any]], object]
) -> None:
    path = write_ensemble(tmp_path / "runs", pair, 24.0, 7.0)
    rewrite(path, tamper)
    collection = collect([tmp_path / "runs"])
    assert collection.ensembles == ()
    assert len(collection.runs) == 2
    (sentence,) = collection.broken
    assert sentence.startswith(f"{path} is broken: ")
