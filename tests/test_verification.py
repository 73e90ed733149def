"""Verifying runs: each kind of damage is named, and what is said to be still of use is so."""

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FakeCifar, rewrite, use_one_thread, write_ensemble, write_eval
from runs import net_of, same_weights

from resrepro.data.loader import Loading
from resrepro.errors import DataError, Interrupted, RecordError
from resrepro.evaluation.assessment import Foreign
from resrepro.evaluation.subjects import read_subject
from resrepro.evaluation.verification import Report, verify
from resrepro.records import read_run
from resrepro.records.locking import locked
from resrepro.records.record_files import RECORD_FILES
from resrepro.training.checkpoint import load_checkpoint, save_checkpoint
from resrepro.training.session import train
from resrepro.training.watching import Watcher

END, STOP, CHECKPOINTS = 6, 4, 3


class Stopper(Watcher):
    def step(self, done: int, lr: float, read: Callable[[], object]) -> None:
        if done == STOP:
            signal.raise_signal(signal.SIGTERM)


def go_on(runs: Path, **options: Any) -> Path:
    use_one_thread()
    return train(
        "digits-resnet8", runs=runs, device="cpu", threads=1, iterations=END, eval_every=2, batch_size=16,
        checkpoint_every=str(CHECKPOINTS), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `finished` and `stopped`, runs folders of one run each."""
    top = tmp_path_factory.mktemp("verified")
    go_on(top / "finished")
    with pytest.raises(Interrupted):
        go_on(top / "stopped", watcher=Stopper())
    return top


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    return copy_of(made / "finished", tmp_path)


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    return copy_of(made / "stopped", tmp_path)


def copy_of(runs: Path, to: Path) -> Path:
    shutil.copytree(runs, to / "runs")
    return next((to / "runs").glob("*/seed0"))


def look(path: Path, **options: Any) -> Report:
    (report,) = verify(path, **options)
    return report


def all_of(report: Report) -> str:
    return " | ".join(report.troubles)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a checkpoint and seal it anew."""
    state = load_checkpoint(path)
    change(state)
    save_checkpoint(path.with_name("altered.pt"), state)
    path.with_name("altered.pt").replace(path)


def spoil(state: dict[str, Any]) -> None:
    next(tensor for name, tensor in state["net"].items() if "running_var" in name)[0] = torch.nan


# --- whole --------------------------------------------------------------------------------------------


def test_a_finished_run_is_whole_in_all_its_parts(finished: Path) -> None:
    report = look(finished)
    assert not report.broken
    assert report.notes == ()
    assert report.summary == "shortened, 6 of 6 iterations, checkpoint and the one before"
    assert report.parts == dict.fromkeys((*RECORD_FILES, "checkpoint.pt", "checkpoint.previous.pt"), "whole")


def test_an_interrupted_run_is_whole_and_says_where_training_goes_on(stopped: Path) -> None:
    report = look(stopped)
    assert report.troubles == ()
    assert report.summary == "partial, 4 of 6 iterations, checkpoint of iteration 4 and the one before"
    assert report.uses == (
        "tables can take it",
        "eval can measure the net of iteration 4",
        "the same train command goes on from iteration 4",
    )


def test_verifying_changes_nothing(stopped: Path) -> None:
    cut(stopped / "checkpoint.pt")
    cut(stopped / "metrics.csv")
    before = {path: path.read_bytes() for path in stopped.parents[1].rglob("*") if path.is_file()}
    assert look(stopped).broken
    assert {path: path.read_bytes() for path in stopped.parents[1].rglob("*") if path.is_file()} == before


def test_a_published_record_needs_no_checkpoint(make_run: Callable[..., Path], tmp_path: Path) -> None:
    report = look(make_run(tmp_path, "cifar10-resnet20"))
    assert report.troubles == ()
    assert report.summary.endswith("; no checkpoint: published records have none")


def test_a_record_without_checksums_is_whole_and_says_so(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "imagenet-resnet18", evals={"center": (30.0, 10.0)})
    for name in ("spec.json", "env.json", "result.json", "evals/center.json"):
        content = (folder / name).read_text().replace('"format": 2', '"format": 1')
        (folder / name).write_text(content.partition(',\n  "checksum"')[0] + "\n}\n")
    rewrite_plainly(folder / "result.json", lambda content: content.pop("metrics"))
    report = look(folder)
    assert not report.broken
    assert set(report.parts.values()) == {"whole, without a checksum"}
    assert "evals/center.json" in report.parts
    assert "without checksums" in report.summary


def rewrite_plainly(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a JSON record of format 1."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- damaged, and what is then of use -----------------------------------------------------------------


@pytest.mark.parametrize("name", RECORD_FILES)
@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "missing"])
def test_a_damaged_record_file_is_named_with_what_is_still_of_use(
    stopped: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(stopped / name)
    report = look(stopped)
    assert all_of(report).startswith(f"{name} is {'missing' if damage is Path.unlink else 'broken'}")
    assert report.uses == (
        "no table can take it",
        "eval can measure the net of iteration 4",
        f"the same train command restores {name} and goes on from iteration 4",
    )


def test_train_restores_a_whole_record_from_the_checkpoint_as_said(stopped: Path, made: Path) -> None:
    for name in RECORD_FILES:
        (stopped / name).unlink()
    listed = "spec.json, env.json, metrics.csv, result.json"
    assert look(stopped).uses[2] == f"the same train command restores {listed} and goes on from iteration 4"
    assert go_on(stopped.parents[1]) == stopped
    assert same_weights(stopped, next((made / "finished").glob("*/seed0")))
    assert not look(stopped).broken


def test_a_changed_digit_in_the_curves_is_noticed(finished: Path) -> None:
    rows = (finished / "metrics.csv").read_bytes()
    (finished / "metrics.csv").write_bytes(rows.replace(b",train,", b",test,", 1))
    report = look(finished)
    assert report.troubles == ("metrics.csv is broken: it does not match the checksum in result.json.",)
    assert report.uses[2] == "the same train command restores metrics.csv and finds all iterations made"


def test_of_a_damaged_checkpoint_the_one_before_is_used(stopped: Path) -> None:
    cut(stopped / "checkpoint.pt")
    report = look(stopped)
    assert report.parts["checkpoint.pt"] == "broken"
    assert report.uses[1] == "eval can measure the net of iteration 3, as checkpoint.previous.pt"
    assert report.uses[2] == "the same train command goes on from iteration 3"
    subject = read_subject(stopped / "checkpoint.previous.pt", None, Foreign(), stopped.parents[1])
    assert subject.iteration == 3
    go_on(stopped.parents[1])
    assert read_run(stopped).finished


def test_without_a_whole_checkpoint_training_starts_anew(stopped: Path) -> None:
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        cut(stopped / name)
    report = look(stopped)
    assert len(report.troubles) == 2
    assert report.uses[1:] == ("eval has no net to measure", "training can only start anew, with --fresh")


def test_the_lost_net_of_a_finished_run_is_made_anew_as_said(finished: Path, made: Path) -> None:
    (finished / "checkpoint.pt").unlink()
    report = look(finished)
    assert report.troubles == ("checkpoint.pt is missing.",)
    assert report.uses[2] == (
        "training is over; once result.json is moved away, "
        "the same train command makes the net anew from iteration 3"
    )
    (finished / "result.json").unlink()
    go_on(finished.parents[1])
    assert same_weights(finished, next((made / "finished").glob("*/seed0")))
    assert not look(finished).broken


def test_an_older_checkpoint_in_the_place_of_the_last_is_noticed(finished: Path) -> None:
    (finished / "checkpoint.previous.pt").replace(finished / "checkpoint.pt")
    assert all_of(look(finished)) == "checkpoint.pt is of iteration 3, not of the last, 6."


@pytest.mark.parametrize("part", ["net", "momenta"])
def test_numbers_that_are_not_finite_are_named_with_the_way_around_them(stopped: Path, part: str) -> None:
    def spoil_momentum(state: dict[str, Any]) -> None:
        state["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.inf)

    alter(stopped / "checkpoint.pt", spoil if part == "net" else spoil_momentum)
    report = look(stopped)
    where = "bn1.running_var" if part == "net" else "momentum of parameter 0"
    assert f"checkpoint.pt holds numbers that are not finite ({where})" in all_of(report)
    assert ("iteration 4" in report.uses[1]) is (part == "momenta")  # the net itself is sound
    assert report.uses[2] == (
        "once checkpoint.pt is moved away, the same train command goes on from iteration 3"
    )
    (stopped / "checkpoint.pt").unlink()
    go_on(stopped.parents[1])
    assert all(bool(tensor.isfinite().all()) for tensor in net_of(stopped).values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.update(seed=1), "is of another run than spec.json"),
        (lambda state: state.update(iteration=500), "iteration 500 of 6 is none"),
        (lambda state: state.update(digest="0" * 64), "its digest does not match its specification"),
        (lambda state: state["net"].popitem(), "its weights are not those of its net"),
        (lambda state: state.update(num_classes=10**9), "its weights are not those of its net"),
        (lambda state: state.pop("net"), "it does not hold net"),
        (lambda state: state.update(net=[1]), "it does not hold net"),
        (lambda state: state["net"].update({"conv.weight": 1}), "does not fit its own net"),
        (lambda state: state.pop("env"), "it is no whole state of a run"),
        (lambda state: state.pop("sampled"), "it is no whole state of a run"),
    ],
)  # fmt: skip
def test_a_sealed_checkpoint_that_does_not_fit_is_told(
    stopped: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    alter(stopped / "checkpoint.pt", change)
    report = look(stopped)
    assert told in all_of(report)
    assert report.uses[2].startswith("once checkpoint.pt is moved away, ")


def test_a_curve_that_is_not_that_of_the_checkpoint_is_noticed(stopped: Path) -> None:
    alter(stopped / "checkpoint.pt", lambda state: state.update(curve=state["curve"].replace("2,", "3,")))
    report = look(stopped)
    assert report.troubles == ("metrics.csv holds another curve than checkpoint.pt tells of.",)
    assert "restores metrics.csv" in report.uses[2]


def test_a_record_that_tells_of_other_data_than_the_checkpoint_is_noticed(stopped: Path) -> None:
    rewrite(stopped / "env.json", lambda env: env["data"]["sha256"].update(test="0" * 64))
    report = look(stopped)
    assert "env.json tells of other data than the checkpoints were trained on." in report.troubles
    assert "restores env.json" in report.uses[2]


def test_a_specification_that_contradicts_itself_is_blamed_alone(stopped: Path) -> None:
    rewrite(stopped / "spec.json", lambda head: head["spec"].update(depth=14))
    report = look(stopped)
    assert report.troubles == ("spec.json is broken: its digest does not match its content.",)
    assert report.uses[2].startswith("once spec.json is moved away, the same train command restores")


# --- hostile ------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


def put_pickle(path: Path) -> None:
    torch.save({"net": Bomb()}, path)


def put_bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_giant(path: Path) -> None:
    os.truncate(path, 2**42)


@pytest.mark.parametrize("put", [put_pickle, put_bare_pickle, put_pipe, put_folder, put_giant])
def test_whatever_lies_in_the_place_of_a_checkpoint_is_told_in_one_sentence(
    stopped: Path, put: Callable[[Path], None]
) -> None:
    put(stopped / "checkpoint.pt")
    (trouble,) = look(stopped).troubles
    assert trouble.startswith("checkpoint.pt ")
    assert trouble.count("\n") == 0


@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_pipe_in_the_place_of_a_record_file_is_told(finished: Path, name: str) -> None:
    put_pipe(finished / name)
    assert f"{name} is broken: it cannot be read (it is a pipe or device, not a file)." in all_of(
        look(finished)
    )


def test_names_and_texts_cannot_steer_the_terminal(finished: Path) -> None:
    (finished / "evals").mkdir()
    (finished / "evals" / "a\x1b[2J.json").write_text("{")
    (finished / "evals" / "b.json").write_text('{"protocol": "\\u001b[2J"}')
    report = look(finished)
    assert len(report.troubles) == 2
    assert all_of(report).isprintable()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("result.json", lambda content: content.update(metrics={"bytes": -1})),
        ("result.json", lambda content: content.update(metrics=7)),
        ("result.json", lambda content: content.update(last=[])),
        ("result.json", lambda content: content.update(status=[1])),
        ("env.json", lambda content: content.update(data=7)),
        ("env.json", lambda content: content.update(data={"sha256": 7, "images": {}})),
        ("spec.json", lambda content: content.update(spec=[1])),
        ("spec.json", lambda content: content.update(spec={}, seed=None)),
    ],
)  # fmt: skip
def test_a_sealed_record_of_nonsense_is_broken_and_never_a_crash(
    finished: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(finished / name, change)
    report = look(finished)
    assert report.broken
    assert "no table can take it" in report.uses


# --- what else lies there -----------------------------------------------------------------------------


def test_leftovers_of_crashes_are_mentioned_and_no_trouble(finished: Path) -> None:
    (finished / ".checkpoint.pt.77.part").touch()
    (finished / "checkpoint.damaged.pt").touch()
    report = look(finished)
    assert not report.broken
    assert [note.split()[0] for note in report.notes] == [".checkpoint.pt.77.part", "checkpoint.damaged.pt"]


def test_a_run_that_is_being_trained_is_told_and_its_lock_not_taken(stopped: Path) -> None:
    (stopped / ".metrics.csv.77.part").touch()  # it may just be being written
    with locked(stopped) as lock:
        (note,) = look(stopped).notes
        lock.check()
    assert note.startswith(f"Being trained right now by process {os.getpid()} on ")
    (note,) = look(stopped).notes
    assert note.startswith(".metrics.csv.77.part was left behind")


def test_the_lock_of_a_process_that_has_ended_is_said_to_be_left_over(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resrepro.evaluation.verification.record.is_alive", lambda _: False)
    with locked(stopped):
        (note,) = look(stopped).notes
    assert note.endswith(" is left over: that process has ended.")


def test_the_lock_of_nobody_is_mentioned_too(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stopped.parent / ".seed0.lock").touch()
    monkeypatch.chdir(stopped)
    assert look(Path()).notes == ("A lock file is there: while the run is being trained its files change.",)


def test_what_is_written_while_it_is_read_is_looked_at_again(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resrepro.evaluation import verification

    whole, looks = (stopped / "result.json").read_bytes(), []
    cut(stopped / "result.json")

    def mended(folder: Path, found: Any) -> Any:
        looks.append(look_at_record(folder, found))
        (stopped / "result.json").write_bytes(whole)
        return looks[-1]

    look_at_record = verification.look_at_record
    monkeypatch.setattr(verification, "look_at_record", mended)
    with locked(stopped):
        assert not look(stopped).broken
    assert len(looks) == 2


def test_a_broken_evaluation_and_one_of_another_run_are_told_and_the_run_still_counts(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "imagenet-resnet18", evals={"center": (30.0, 10.0)})
    write_eval(folder, "ten_crop", 30.0, 10.0, digest="0" * 64)
    write_eval(folder, "multi_scale", 130.0, 10.0)
    report = look(folder)
    assert [trouble.partition(" is broken")[0] for trouble in report.troubles] == [
        "evals/multi_scale.json",
        "evals/ten_crop.json",
    ]
    assert report.parts["evals/center.json"] == "whole"
    assert report.uses[0] == "tables can take it"


# --- data ---------------------------------------------------------------------------------------------


def test_digits_are_always_compared(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resrepro.evaluation.verification import images

    class Other:
        def __init__(self, *_: object) -> None:
            self.checksums = {"train": "0" * 64, "test": "1" * 64}

    monkeypatch.setattr(images, "load_dataset", Other)
    assert all_of(look(finished)) == (
        "the digits of this scikit-learn are others than it was trained on: checksum of test, train differs."
    )


def test_cifar_is_compared_where_it_is_named_and_never_downloaded(
    make_run: Callable[..., Path], fake_cifar: FakeCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resrepro.data import load_dataset

    folder = make_run(tmp_path / "runs", "cifar10-resnet20")
    monkeypatch.chdir(tmp_path)
    assert not look(folder).broken  # nothing is named: nothing is compared
    assert "others than it was trained on: checksum of test, train differs" in all_of(
        look(folder, data=fake_cifar.folder)
    )
    here = load_dataset("cifar10", folder=fake_cifar.folder).checksums
    rewrite(folder / "env.json", lambda env: env["data"].update(sha256=dict(here)))
    monkeypatch.setenv("RESREPRO_DATA", str(fake_cifar.folder))
    report = look(folder)
    assert not report.broken
    assert report.notes == (f"Its data are those in {fake_cifar.folder}, by checksum.",)
    assert not (tmp_path / "data").exists()


def test_damaged_data_are_told(make_run: Callable[..., Path], fake_cifar: FakeCifar, tmp_path: Path) -> None:
    data = fake_cifar.copy_to(tmp_path / "data", test_batch=b"torn")
    report = look(make_run(tmp_path / "runs", "cifar10-resnet20"), data=data)
    assert all_of(report).startswith("the data cannot be compared: ")
    assert "test_batch.bin is damaged" in all_of(report)


def test_photographs_are_compared(make_run: Callable[..., Path], photographs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "folder-resnet18", image_size=32)
    loading = Loading(workers=0)
    report = look(folder, data=photographs, loading=loading)
    assert "others than it was trained on: checksum of train, val differs" in all_of(report)
    assert look(folder).troubles == ()


def test_a_folder_without_the_data_of_a_run_is_noted(
    make_run: Callable[..., Path], photographs: Path, tmp_path: Path
) -> None:
    report = look(make_run(tmp_path, "cifar10-resnet20"), data=photographs)
    assert report.notes == (f"Its data (cifar10) are not in {photographs}: they were not compared.",)
    with pytest.raises(DataError, match="does not exist"):
        verify(tmp_path, data=tmp_path / "nowhere")


# --- places -------------------------------------------------------------------------------------------


@pytest.fixture
def several(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    pair = [make_run(runs, "imagenet-resnet18", seed) for seed in (0, 1)]
    write_ensemble(runs, pair, 25.0, 8.0)
    (runs / "imagenet-resnet18" / "seed0.aside1").mkdir()
    (runs / "imagenet-resnet18" / "seed0.aside1" / "spec.json").touch()
    (runs / "imagenet-resnet18" / "seed1" / "spec.json").unlink()
    return runs


def test_a_folder_of_runs_is_gone_through_with_its_ensembles(several: Path) -> None:
    reports = list(verify(several))
    assert [(report.kind, report.broken) for report in reports] == [
        ("run", False), ("run", True), ("ensemble", False),
    ]  # fmt: skip
    assert list(verify(several, several / "imagenet-resnet18")) == reports


def test_a_single_ensemble_is_looked_at(several: Path) -> None:
    path = several / "ensembles" / "pair.json"
    assert look(path).summary == "ensemble, multi_scale on imagenet"
    rewrite(path, lambda content: content["members"].insert(0, {"digest": "0"}))
    assert all_of(look(path)) == "pair.json is broken: KeyError 'name'."


def test_an_evaluation_of_anothers_checkpoint_is_looked_at(several: Path) -> None:
    path = write_eval(several / "imagenet-resnet18" / "seed0", "center", 30.0, 10.0)
    rewrite(path, lambda content: [content.pop("digest"), content.update(checkpoint="x.pth")])
    assert look(path).summary == "evaluation, center on imagenet"


@pytest.mark.parametrize("name", ["nowhere", "empty", "a.txt", "seed0/spec.json"])
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "seed0").mkdir()
    for file in ("a.txt", "seed0/spec.json"):
        (tmp_path / file).touch()
    with pytest.raises(RecordError, match="name "):
        verify(tmp_path / name)
