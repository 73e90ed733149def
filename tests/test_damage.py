"""Whatever happens to the bytes of a record: repaired, or refused in one sentence, never a wrong number."""

import json
import shutil
from typing import NamedTuple

import pytest
from conftest import write_layers, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import differences

from resrepro.comparison.table import to_csv
from resrepro.comparison.tables import build
from resrepro.records.collection import collect
from resrepro.records.reading import CHECKPOINT, PREVIOUS
from resrepro.training import loop
from resrepro.training.session import train

TRIED = settings(
    deadline=None, derandomize=True, database=None, max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
FILES = ("spec.json", "env.json", "metrics.csv", "result.json", "evals/ten_crop.json", "responses.csv")


class Damage(NamedTuple):
    """What happens to the bytes of a file, at a place given as a share of its length."""

    kind: str
    place: float
    byte: int
    length: int

    def done_to(self, content):
        at = int(self.place * len(content))
        if self.kind == "cut":
            return content[:at]
        if self.kind == "changed":
            other = self.byte if self.byte != content[at] else self.byte ^ 1
            return content[:at] + bytes([other]) + content[at + 1 :]
        if self.kind == "zeroed":  # a block that never reached the disk
            return content[:at] + bytes(len(content[at : at + self.length])) + content[at + self.length :]
        if self.kind == "lost":
            return content[:at] + content[at + self.length :]
        return content[:at] + content[at : at + self.length] + content[at:]  # doubled


KINDS = st.sampled_from(["cut", "changed", "zeroed", "lost", "doubled"])
PLACES = st.floats(0, 1, exclude_max=True)
DAMAGES = st.builds(Damage, KINDS, PLACES, st.integers(0, 255), st.integers(1, 600))


# --- what readers make of it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A CIFAR run, and one of ImageNet with an evaluation and responses."""
    top = tmp_path_factory.mktemp("damage") / "runs"
    write_run(top, "cifar10-resnet20", curve=[(32_000, 21.5, 25.25), (64_000, 5.5, 8.75)])
    other = {"evals": {"ten_crop": (24.75, 7.5)}, "curve": [(600_000, 20.5, 25.75)]}
    write_layers(write_run(top, "imagenet-resnet34", **other))
    return top


def seen(collection):
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


def tables(collection):
    return [to_csv(build(name, collection.runs)) for name in ("table2", "table6")]


@TRIED
@given(damage=DAMAGES, name=st.sampled_from(FILES))
def test_a_damaged_record_is_refused_in_one_sentence_or_read_as_it_was(runs, damage, name):
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
        assert "broken" in sentence
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


def short(runs):
    wanted = {"batch_size": 8, "eval_every": 2, "lr": 0.05, "checkpoint_every": "2"}
    return train("digits-resnet8", runs=runs, device="cpu", threads=1, engine="eager", iterations=6, **wanted)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped with two checkpoints, and what becomes of it undisturbed."""
    top = tmp_path_factory.mktemp("stopped")
    whole = short(top / "whole")
    with pytest.MonkeyPatch.context() as patch:

        def stop(run):
            raise KeyboardInterrupt

        patch.setattr(loop.Trainer, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            short(top / "parts")
    (folder,) = (top / "parts").glob("*/seed0")
    return folder, whole


@settings(TRIED, max_examples=12)
@given(damage=DAMAGES, name=st.sampled_from((*FILES[:4], CHECKPOINT, PREVIOUS)))
def test_going_on_with_a_damaged_file_ends_as_the_undisturbed_run(stopped, tmp_path_factory, damage, name):
    folder, whole = stopped
    top = tmp_path_factory.mktemp("going")
    own = top / folder.parent.name / "seed0"
    shutil.copytree(folder, own)
    (own / name).write_bytes(damage.done_to((own / name).read_bytes()))
    short(top)  # two checkpoints, and the record in each of them: one damage is never too much
    assert differences(own, whole) == []
    shutil.rmtree(top)
