"""Records: what is written is read back, and what is broken is named while the rest is used."""

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from conftest import rewrite, write_run

from resrepro.errors import RecordError, UsageError
from resrepro.records import read_run
from resrepro.records.collection import Collection, collect, load_runs
from resrepro.records.reading import (
    METRICS_COLUMNS,
    RECORD_FILES,
    describe_curve,
    json_bytes,
    read_curve,
    read_json,
)
from resrepro.records.storage import HEADER, RunWriter, open_run, write_whole
from resrepro.spec import catalogue, digest_of


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    folder = write_run(tmp_path, "cifar10-plain56", 2, curve=[(32_000, 20.0, 25.0), (64_000, 5.5, 13.25)])
    run = read_run(folder)
    assert (run.name, run.experiment, run.seed) == ("cifar10-plain56", "cifar10-plain56", 2)
    assert (run.status, run.finished, run.paper_exact, run.headline_split) == ("complete", True, True, "test")
    assert (run.last("test"), run.last("train"), run.last("val"), run.best) == (13.25, 5.5, None, 13.25)
    assert run.spec == catalogue.find("cifar10-plain56").spec().to_json()
    frame = pd.DataFrame(run.curve)
    assert tuple(frame.columns) == METRICS_COLUMNS
    assert frame["iteration"].tolist() == [32_000, 32_000, 64_000, 64_000]
    assert frame["split"].tolist() == ["train", "test"] * 2
    assert frame["top1_err"].tolist() == [20.0, 25.0, 5.5, 13.25]
    assert frame["lr"].tolist() == pytest.approx([0.1, 0.1, 0.001, 0.001])


def test_a_run_that_has_only_begun_is_no_broken_record(tmp_path):
    write_run(tmp_path, curve=[])
    collection = collect([tmp_path])
    assert collection.broken == ()
    (run,) = collection.runs
    assert (run.status, run.finished, run.best, run.last("test")) == ("partial", False, None, None)
    assert run.curve["iteration"] == []


def test_a_diverged_runs_nan_losses_are_read(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = b"1,0.1,train,nan,90.0,50.0,1e+30,5.0,1.0\n2,0.2,test,inf,90,50,0.1,5,1\n"
    path.write_bytes(HEADER + rows)
    curve = read_curve(path, describe_curve(HEADER + rows))
    assert [math.isnan(loss) for loss in curve["loss"]] == [True, False]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ({"seed": 0}, {"seed": 1}, True),
        ({}, {"test_images": 1000}, True),  # they train nothing
        ({"test_images": 1000, "split": "45k5k"}, {"split": "45k5k"}, True),
        ({}, {"split": "45k5k"}, False), ({}, {"data": "other"}, False), ({}, {"mode": "compile"}, False),
        ({}, {"bn_group": 64}, False), ({}, {"shortcut": "B"}, False),
        ({"iterations": 2000}, {"iterations": 2001}, False), ({}, {"experiment": "cifar10-plain20"}, False),
    ],
)  # fmt: skip
def test_only_runs_that_differ_by_their_seed_share_a_group(tmp_path, one, other, shared):
    runs = [read_run(write_run(tmp_path / str(k), **which)) for k, which in enumerate((one, other))]
    assert (runs[0].seed_group == runs[1].seed_group) is shared


def test_of_equal_runs_in_several_folders_the_first_finished_one_counts(tmp_path):
    write_run(tmp_path / "runs", curve=[(32_000, 5.0, 9.0)])  # as far as it came, beside what was published
    first = write_run(tmp_path / "runs", seed=1)
    published = write_run(tmp_path / "results")
    write_run(tmp_path / "results", seed=1, test_images=1000)  # the same run: they train nothing
    other = write_run(tmp_path / "elsewhere", data="other")  # another run of the same name
    tops = tmp_path / "runs", tmp_path / "results"
    assert {run.folder for run in collect([*tops, other.parents[1]]).runs} == {first, published, other}
    write_run(tmp_path / "results", "cifar10-plain20")
    found = collect(tops)
    assert found.sources == ("Runs read: 1 of runs and 2 of results.",)
    assert collect(tops[:1]).sources == ()


def test_ones_own_runs_are_read_by_default_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results")
    assert load_runs().empty
    assert {"name", "seed", "top1_err", "departures"} <= set(load_runs().columns)
    write_run(tmp_path / "runs", "cifar10-plain20")
    assert list(load_runs()["name"]) == ["cifar10-plain20"]
    assert len(load_runs("runs", "results")) == 2


@pytest.fixture
def several(tmp_path: Path) -> Collection:
    write_run(tmp_path, "cifar10-resnet20")
    write_run(tmp_path, "cifar10-resnet20", 1, iterations=2000, split="45k5k", mode="fast", lr=0.05)
    write_run(tmp_path, "cifar10-plain56", 2, iterations=2000, shortcut=None, flip=False)
    write_run(tmp_path, "digits-resnet20", 3)
    return collect([tmp_path])


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({}, [0, 1, 2, 3]), ({"iterations": "2000", "split": "45k5k"}, [1]), ({"lr": "0.050"}, [1, 3]),
        ({"flip": "off"}, [2, 3]), ({"mode": "default"}, [0, 2, 3]), ({"depth": "56"}, [2]),
        ({"shortcut": "A"}, [0, 1, 3]), ({"seed": "0"}, [0]),
    ],
)  # fmt: skip
def test_runs_are_kept_that_have_all_settings(several, settings, seeds):
    kept = several.having(settings)
    assert sorted(run.seed for run in kept.runs) == seeds
    assert (kept.folders, kept.broken) == (several.folders, several.broken)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"paint": "red"}, "no setting 'paint'"),
        ({"iterations": "many"}, "iterations takes a whole number"),
        ({"iterations": "3000"}, r"no run has iterations=3000; there are iterations: .*2000.*64000"),
        ({"iterations": "2000", "depth": "110"}, r"no run has iterations=2000, depth=110; there are"),
    ],
)
def test_settings_that_are_unknown_or_that_no_run_has_are_refused_in_a_sentence(several, settings, told):
    with pytest.raises(UsageError, match=told) as caught:
        several.having(settings)
    assert "\n" not in str(caught.value)


def test_folders_set_aside_hidden_or_of_another_kind_are_passed_over(tmp_path):
    kept = write_run(tmp_path, seed=1)
    aside = write_run(tmp_path, seed=0)
    aside.rename(aside.with_name("seed0.aside1"))
    for other in ("seed", "seedling", "seed2.aside1", "seed3 copy", "evals"):
        (kept.parent / other).mkdir()
        (kept.parent / other / "spec.json").write_text("{}")
    (kept.parent / "seed7").mkdir()  # nothing in it yet
    (tmp_path / "notes.txt").write_text("no run")
    collection = collect([tmp_path])
    assert [run.folder for run in collection.runs] == [kept]
    assert collection.broken == ()


def test_a_runs_folder_that_does_not_exist_holds_no_runs_and_a_file_is_refused(tmp_path):
    assert collect([tmp_path / "nowhere"]).runs == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="file is a file, not a folder"):
        collect([tmp_path / "file"])


ROW = b"1000,2.56,train,1.2,45.5,4.5,0.1,1000.0,500.00\n"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00\xff\xfe" * 50, HEADER.replace(b"loss,", b""), HEADER + ROW.replace(b"45.5", b"many"),
        HEADER + ROW.replace(b"1000,", b"soon,", 1), HEADER + ROW[:-1] + b",1,2,3\n" + ROW,
        HEADER + ROW + ROW[:20],
    ],
)  # fmt: skip
def test_broken_metrics_are_named_and_the_good_runs_are_still_used(tmp_path, content):
    good, bad = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    (bad / "metrics.csv").write_bytes(content)
    rewrite(bad / "result.json", lambda result: result.update(metrics=describe_curve(content)))
    collection = collect([tmp_path])
    assert [run.folder for run in collection.runs] == [good]
    (sentence,) = collection.broken
    assert f"{bad / 'metrics.csv'} is broken" in sentence
    assert "checksum" not in sentence


def test_rows_that_the_result_does_not_vouch_for_do_not_count(tmp_path):
    folder = write_run(tmp_path)
    before = read_run(folder).curve
    with (folder / "metrics.csv").open("ab") as file:
        file.write(b"99000,2.56,train,1.2,4")  # a run that is going on, or was killed
    assert read_run(folder).curve == before
    content = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv").write_bytes(content.replace(b"train", b"trian", 1))
    with pytest.raises(RecordError, match=r"metrics\.csv is broken: it does not match the checksum"):
        read_run(folder)


@pytest.mark.parametrize("name", ["spec.json", "env.json", "result.json"])
def test_a_record_without_its_checksum_or_of_a_later_format_is_refused(tmp_path, name):
    folder = write_run(tmp_path)
    whole = json.loads((folder / name).read_text())
    for change, complaint in (
        (lambda it: it.pop("checksum"), "its checksum is missing"),
        (lambda it: it.update(format=3), "is of format 3, which this version cannot read"),
        (lambda it: it.update(extra=1), "its checksum does not match"),
    ):
        content = dict(whole)
        change(content)
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(RecordError, match=complaint):
            read_run(folder)
    (folder / name).write_text(json.dumps(whole, indent=None))  # other spacing is no damage
    assert read_run(folder).finished


def test_the_result_of_another_run_is_refused(tmp_path):
    one, other = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    (one / "result.json").write_bytes((other / "result.json").read_bytes())
    with pytest.raises(RecordError, match="it is the result of another run"):
        read_run(one)


@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_file_that_is_missing_is_named(tmp_path, name):
    path = write_run(tmp_path) / name
    path.unlink()
    assert collect([tmp_path]).broken == (() if name == "spec.json" else (f"{path} is missing.",))


def test_a_spec_that_was_tampered_with_is_named_however_well_sealed(tmp_path):
    path = write_run(tmp_path) / "spec.json"
    rewrite(path, lambda content: content["spec"]["recipe"].update(lr=0.2))
    assert collect([tmp_path]).broken == (f"{path} is broken: its digest does not match its content.",)
    rewrite(path, lambda content: content.update(digest=digest_of(content["spec"])))
    assert collect([tmp_path]).broken[0].endswith("result.json is broken: it is the result of another run.")


def test_load_runs_has_a_row_per_run_and_warns_of_each_broken_one(tmp_path):
    write_run(tmp_path, "digits-plain20", 4, curve=[(240, 3.0, 8.5)])
    write_run(
        tmp_path, "cifar10-resnet56", iterations=2000, split="45k5k", curve=[(1000, 9, 30), (2000, 8, 31)]
    )
    bad = write_run(tmp_path, "digits-resnet20")
    (bad / "result.json").write_text("{")
    with pytest.warns(UserWarning, match=r"result\.json is broken"):
        frame = load_runs(tmp_path)
    cifar, digits = frame.to_dict("records")
    assert (cifar["experiment"], cifar["depth"], cifar["plain"], cifar["shortcut"]) == (
        "cifar10-resnet56", 56, False, "A",
    )  # fmt: skip
    assert (cifar["status"], cifar["iterations"], cifar["headline"]) == ("shortened", 2000, "val")
    assert (cifar["top1_err"], cifar["best_err"], cifar["train_err"]) == (31, 30, 8)
    assert "2,000 iterations instead of 64,000" in cifar["departures"]
    assert (digits["name"], digits["seed"], digits["status"]) == ("digits-plain20", 4, "complete")
    assert (digits["dataset"], digits["top1_err"], digits["train_err"]) == ("digits", 8.5, 3.0)


SPEC = catalogue.find("cifar10-resnet20").spec()
ROWS = [(k, 0.1, "train", 1.0, 50.0, 5.0, 0.1, 10.0, 1.0) for k in (8, 9, 10, 100)]


def begun(folder: Path) -> RunWriter:
    writer = RunWriter(folder)
    writer.begin(SPEC, 0, {"format": 2})
    writer.result({"status": "partial"})
    return writer


def go_on(folder: Path, curve: bytes, restored: Sequence[str] = ()) -> RunWriter:
    """Go on from a checkpoint with that curve, and check which files had to be restored."""
    writer = RunWriter(folder)
    assert writer.go_on(SPEC, 0, {"format": 2}, curve, {"status": "partial"}) == list(restored)
    return writer


def fail_at_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)


def test_going_on_cuts_the_curve_back_to_the_checkpoint_and_drops_a_torn_row(tmp_path):
    writer = begun(tmp_path)
    writer.append(ROWS[:3])
    at_checkpoint = writer.curve
    writer.append(ROWS[3:])
    whole = (tmp_path / "metrics.csv").read_bytes()
    assert whole == writer.curve
    for rest in (b"", b"1", b"10", b"11,0.1,tr", b"9,0.1,train,1.0,5"):
        (tmp_path / "metrics.csv").write_bytes(whole + rest)
        go_on(tmp_path, at_checkpoint)
        assert (tmp_path / "metrics.csv").read_bytes() == at_checkpoint, rest
        assert read_json(tmp_path / "result.json")["metrics"] == describe_curve(at_checkpoint)


def test_going_on_restores_what_is_missing_or_damaged_and_keeps_later_sessions(tmp_path):
    writer = begun(tmp_path)
    writer.append(ROWS)
    files = {name: (tmp_path / name).read_bytes() for name in ("spec.json", "env.json", "metrics.csv")}
    for name, content in files.items():
        for damaged in (None, b"", content[:-20], content.replace(b"1", b"2", 1)):
            (tmp_path / name).unlink() if damaged is None else (tmp_path / name).write_bytes(damaged)
            go_on(tmp_path, writer.curve, [name])
            assert (tmp_path / name).read_bytes() == content
    writer.add_session(10, {"cpu": "another"})
    told = go_on(tmp_path, writer.curve).env["later_sessions"]
    assert told == [{"from_iteration": 10, "cpu": "another"}]


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_whole(path, json_bytes({"status": "partial"}))
    with pytest.raises(ValueError, match="Out of range float"):
        json_bytes({"loss": float("nan")})  # NaN is no JSON
    fail_at_sync(monkeypatch, errno.ENOSPC)
    with pytest.raises(RecordError, match=r"cannot write .*result\.json: No space left"):
        write_whole(path, json_bytes({"status": "complete"}))
    assert read_json(path) == {"status": "partial"}
    assert [left.name for left in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_the_disk_refuses_while_appending_is_one_sentence_with_a_way_out(tmp_path, monkeypatch, number):
    writer = begun(tmp_path)
    writer.append(ROWS[:2])
    before = writer.curve
    fail_at_sync(monkeypatch, number)
    with pytest.raises(RecordError, match=rf"metrics\.csv: {os.strerror(number)} \(what was .* whole"):
        writer.append(ROWS[2:])
    assert writer.curve == before == (tmp_path / "metrics.csv").read_bytes()


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    folder = open_run(tmp_path / "seed0", SPEC).folder
    (folder / ".checkpoint.pt.123.part").write_bytes(b"half")
    (folder / "kept.part").write_bytes(b"somebody's own")
    open_run(tmp_path / "seed0", SPEC)
    assert [path.name for path in folder.iterdir()] == ["kept.part"]


def test_a_folder_that_holds_another_specification_is_not_written_to(tmp_path):
    other = catalogue.derive(catalogue.find("cifar10-resnet20"), lr=0.2)
    writer = open_run(tmp_path / "seed0", SPEC)
    writer.begin(other, 0, {})
    before = {path.name: path.read_bytes() for path in writer.folder.iterdir()}
    with pytest.raises(UsageError, match=r"another specification.*--fresh"):
        open_run(tmp_path / "seed0", SPEC)
    assert {path.name: path.read_bytes() for path in writer.folder.iterdir()} == before
    open_run(tmp_path / "seed0", SPEC, fresh=True)
    aside = writer.folder.with_name("seed0.aside1")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert not list(writer.folder.iterdir())
