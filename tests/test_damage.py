"""Whatever happens to the bytes of a record: repaired, or refused in one sentence, never a wrong number."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_layers, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import OF_TIMES, TIMES, result_of, rows_of

from resrepro.comparison.table import to_csv
from resrepro.comparison.tables import build
from resrepro.records.collection import Collection, collect
from resrepro.records.reading import CHECKPOINT, PREVIOUS
from resrepro.training.checkpoint import load_newest
from resrepro.training.session import train

TRIED = settings(
    deadline=None, derandomize=True, database=None, max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
FILES = ("spec.json", "env.json", "metrics.csv", "result.json", "evals/ten_crop.json", "responses.csv")


@dataclass(frozen=True)
class Damage:
    """What happens to the bytes of a file, at a place given as a share of its length."""

    kind: str
    place: float
    byte: int
    length: int

    def done_to(self, content: bytes) -> bytes:
        at = int(self.place * len(content))
        if self.kind == "cut":
            return content[:at]
        if self.kind == "changed":
            other = self.byte if self.byte != content[at] else self.byte ^ 1
            return content[:at] + bytes([other]) + content[at + 1 :]
        if self.kind == "flipped":
            return content[:at] + bytes([content[at] ^ (1 << self.byte % 8)]) + content[at + 1 :]
        if self.kind == "zeroed":  # a block that never reached the disk
            return content[:at] + bytes(len(content[at : at + self.length])) + content[at + self.length :]
        if self.kind == "lost":
            return content[:at] + content[at + self.length :]
        return content[:at] + content[at : at + self.length] + content[at:]  # doubled


DAMAGES = st.builds(
    Damage,
    st.sampled_from(["cut", "changed", "flipped", "zeroed", "lost", "doubled"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.integers(1, 600),
)


# --- what readers make of it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR run, and one of ImageNet with an evaluation and responses."""
    top = tmp_path_factory.mktemp("damage") / "runs"
    write_run(top, "cifar10-resnet20", curve=[(32_000, 21.5, 25.25), (64_000, 5.5, 8.75)])
    other = {"evals": {"ten_crop": (24.75, 7.5)}, "curve": [(600_000, 20.5, 25.75)]}
    write_layers(write_run(top, "imagenet-resnet34", **other))
    return top


def seen(collection: Collection) -> dict[str, Any]:
    """Every number of the runs, by name: figures, curves, evaluations."""
    return {
        run.name: (
            json.dumps([run.spec, run.env, run.result], sort_keys=True),
            repr(run.curve),
            sorted((found.protocol, str(found.errors), found.iteration) for found in run.evaluations),
            run.responses,
        )
        for run in collection.runs
    }


def tables(collection: Collection) -> list[str]:
    return [to_csv(build(name, collection.runs)) for name in ("table2", "table6")]


@TRIED
@given(damage=DAMAGES, name=st.sampled_from(FILES))
def test_a_damaged_record_is_refused_in_one_sentence_or_read_as_it_was(
    runs: Path, damage: Damage, name: str
) -> None:
    (folder,) = runs.glob("imagenet-resnet34/seed0")
    whole, before = seen(collect([runs])), (folder / name).read_bytes()
    (folder / name).write_bytes(damage.done_to(before))
    try:
        found = collect([runs])
        numbers, shown = seen(found), tables(found)
    finally:
        (folder / name).write_bytes(before)
    assert numbers["cifar10-resnet20"] == whole["cifar10-resnet20"]
    ours = numbers.get(folder.parent.name)
    if ours != whole[folder.parent.name]:
        (sentence,) = found.broken
        assert "broken" in sentence or "cannot read" in sentence
        assert sentence.isprintable()
        # The run itself may be used without an evaluation, or responses, that are broken.
        figures, curve, evaluations, responses = whole[folder.parent.name]
        if name == "responses.csv":
            assert ours == (figures, curve, evaluations, None)
        else:
            assert "24.75" not in shown[0]
            assert ours in (None, (figures, curve, [], responses))
    assert shown[1] == tables(collect([runs]))[1]


# --- what going on makes of it ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """A run with two checkpoints, halfway, and what becomes of it undisturbed."""

    folder: Path
    whole: Path
    states: tuple[str, str]


def state_in(path: Path) -> str:
    return state(torch.load(path, weights_only=True))


def state(content: dict[str, Any]) -> str:
    """All of a checkpoint, to compare it by."""
    momenta = [each["momentum_buffer"] for each in content["optimizer"]["state"].values()]
    sums = [float(tensor.double().sum()) for tensor in (*content["net"].values(), *momenta)]
    return json.dumps([content["iteration"], content["curve"], sums])


def short(runs: Path, iterations: int = 6) -> Path:
    wanted = {"batch_size": 8, "eval_every": 2, "lr": 0.05, "checkpoint_every": "2"}
    return train("digits-resnet8", runs=runs, device="cpu", threads=1, iterations=iterations, **wanted)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    from resrepro.training import loop

    top = tmp_path_factory.mktemp("stopped")
    whole = short(top / "whole")
    with pytest.MonkeyPatch.context() as patch:

        def stop(run: loop.Trainer) -> None:
            raise KeyboardInterrupt

        patch.setattr(loop.Trainer, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            short(top / "parts")
    (folder,) = (top / "parts").glob("*/seed0")
    return Stopped(folder, whole, tuple(map(state_in, (folder / CHECKPOINT, folder / PREVIOUS))))


@settings(TRIED, max_examples=100)
@given(damage=DAMAGES, name=st.sampled_from((CHECKPOINT, PREVIOUS)))
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(
    stopped: Stopped, tmp_path_factory: pytest.TempPathFactory, damage: Damage, name: str
) -> None:
    own = tmp_path_factory.mktemp("own", numbered=True)
    for each in (CHECKPOINT, PREVIOUS):
        shutil.copyfile(stopped.folder / each, own / each)
    before = (own / name).read_bytes()
    damaged = damage.done_to(before)
    (own / name).write_bytes(damaged)
    found, notice = load_newest(own) or pytest.fail("the checkpoints were overlooked")
    harmed = name == CHECKPOINT and damaged != before
    assert state(found) == stopped.states[harmed]
    assert ("is damaged and was moved" in notice) is harmed
    shutil.rmtree(own)


@settings(TRIED, max_examples=20)
@given(damage=DAMAGES, name=st.sampled_from((*FILES[:4], CHECKPOINT, PREVIOUS)))
def test_going_on_with_a_damaged_file_ends_as_the_undisturbed_run_or_is_refused(
    stopped: Stopped, tmp_path_factory: pytest.TempPathFactory, damage: Damage, name: str
) -> None:
    top = tmp_path_factory.mktemp("going")
    folder = top / stopped.folder.parent.name / "seed0"
    shutil.copytree(stopped.folder, folder)
    (folder / name).write_bytes(damage.done_to((folder / name).read_bytes()))
    short(top)  # two checkpoints, and the record in each of them: one damage is never too much
    assert rows_of(folder, *TIMES) == rows_of(stopped.whole, *TIMES)
    assert result_of(folder, *OF_TIMES) == result_of(stopped.whole, *OF_TIMES)
    assert torch.equal(*(net_sum(each) for each in (folder, stopped.whole)))
    shutil.rmtree(top)


def net_sum(folder: Path) -> torch.Tensor:
    net = torch.load(folder / CHECKPOINT, weights_only=True)["net"]
    return torch.cat([tensor.double().flatten() for tensor in net.values()])
