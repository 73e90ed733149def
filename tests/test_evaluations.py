"""What `eval` recorded: which evaluation counts for a run, and what is broken."""

from pathlib import Path
from typing import Any

import pytest
from conftest import rewrite, write_ensemble, write_eval, write_run

from resrepro.records import read_run
from resrepro.records.collection import collect, load_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet-18 trained to its end on ten classes, centre-crop error 31, evaluated in two ways."""
    evals = {"ten_crop": (27.5, 9.25), "multi_scale": (26.5, 8.75)}
    curve = [(350, 50.0, 55.0), (700, 30.0, 31.0)]
    return write_run(tmp_path / "runs", "folder-resnet18", iterations=700, curve=curve, evals=evals)


def found(folder: Path, protocol: str = "ten_crop", metric: str = "top1_err", part: str = "val") -> Any:
    """The error of a run under a protocol."""
    return read_run(folder).evaluated(protocol, metric, part)


def test_each_protocol_and_metric_gives_its_own_error(folder):
    assert (found(folder), found(folder, metric="top5_err")) == (27.5, 9.25)
    assert found(folder, "multi_scale") == 26.5
    assert found(folder, "center") is found(folder, part="test") is None
    run = read_run(folder)
    assert (run.last("val"), run.env["data"]["classes"], run.family) == (31.0, 10, "imagenet")


@pytest.mark.parametrize(
    "changed",
    [
        {"iteration": 350}, {"iteration": 0}, {"digest": "0" * 64}, {"bn_stats": "precise"},
        {"data": {"name": "folder", "images": {"val": 500}, "classes": 10, "sha256": {"val": "1" * 64}}},
        {"data": {"name": "imagenet", "images": {"val": 500}, "classes": 10, "sha256": {}}},
    ],
)  # fmt: skip
def test_what_is_not_of_the_runs_end_and_data_counts_for_nothing(folder, changed):
    write_eval(folder, "ten_crop", 5.0, 1.0, **changed)
    run = read_run(folder)
    assert (len(run.evaluations), run.broken, found(folder)) == (2, (), None)


def test_bn_statistics_are_those_of_the_recipe(tmp_path):
    folder = write_run(tmp_path, "folder-resnet18", iterations=700, bn_stats="precise")
    write_eval(folder, "ten_crop", 20.0, 2.0, bn_stats="running", name="running")
    assert found(folder) is None
    write_eval(folder, "ten_crop", 21.0, 2.0)
    assert found(folder) == 21.0


@pytest.mark.parametrize("curve", [[(350, 50.0, 55.0)], []])
def test_an_unfinished_run_has_no_evaluation(tmp_path, curve):
    folder = write_run(tmp_path, "folder-resnet18", iterations=700, curve=curve)
    write_eval(folder, "ten_crop", 20.0, 2.0)
    write_eval(folder, "ten_crop", 20.0, 2.0, name="claims-the-end", iteration=700)
    assert (len(read_run(folder).evaluations), found(folder)) == (2, None)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda content: content.pop("digest"),
        lambda content: content["errors"]["val"].update(top1_err="low"),
        lambda content: content["data"].pop("sha256"),
    ],
)
def test_a_broken_evaluation_is_named_and_the_run_and_its_others_still_count(folder, tamper):
    path = folder / "evals" / "ten_crop.json"
    rewrite(path, tamper)
    collection = collect([folder.parent.parent])
    (sentence,) = collection.broken
    assert sentence.startswith(f"{path} is broken: ")
    assert len(collection.runs) == 1
    assert (found(folder), found(folder, "multi_scale")) == (None, 26.5)


def test_a_file_that_is_no_json_is_named_too(folder):
    (folder / "evals" / "ten_crop.json").write_text("{")
    with pytest.warns(UserWarning, match=r"ten_crop\.json is broken: it is not valid JSON"):
        frame = load_runs(folder.parent.parent)
    assert frame["top1_err"].tolist() == [31.0]


@pytest.fixture
def pair(folder: Path) -> list[Path]:
    """The run above and one of another seed."""
    return [folder, write_run(folder.parent.parent, "folder-resnet18", 1, iterations=700)]


def test_an_ensemble_is_read_with_its_members(pair, tmp_path):
    write_ensemble(tmp_path / "runs", pair, 24.0, 7.0)
    (ensemble,) = collect([tmp_path / "runs"]).ensembles
    members = [(member.label, member.seed, member.status) for member in ensemble.members]
    assert members == [("ResNet-18", 0, "shortened"), ("ResNet-18", 1, "shortened")]
    assert (ensemble.protocol, ensemble.errors["val"]["top5_err"]) == ("multi_scale", 7.0)
    assert ensemble.data.classes == 10


def test_a_published_copy_of_an_ensemble_counts_once(pair, tmp_path):
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
        lambda content: content["members"][1].pop("status"),
    ],
)
def test_a_broken_ensemble_is_named(pair, tmp_path, tamper):
    path = write_ensemble(tmp_path / "runs", pair, 24.0, 7.0)
    rewrite(path, tamper)
    collection = collect([tmp_path / "runs"])
    assert (collection.ensembles, len(collection.runs)) == ((), 2)
    (sentence,) = collection.broken
    assert sentence.startswith(f"{path} is broken: ")
