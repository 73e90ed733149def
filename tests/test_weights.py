"""Weights in files: other people's on our nets; of ours what was trained is what one loads."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from conftest import rewrite
from runs import checkpoint_of, json_of, net_of
from safetensors.torch import save_file
from seeds import seeded

import resrepro
from resrepro.data import load_dataset
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.matching import UNUSED, choose, match
from resrepro.evaluation.sources import ThirdPartyCheckpoint, load_net, read_net
from resrepro.evaluation.weights import fill, fitted, read_weights, write_weights
from resrepro.nets import Net, build_net
from resrepro.records import Run, read_run
from resrepro.records.reading import WEIGHTS
from resrepro.spec import Spec, catalogue

# --- other people's --------------------------------------------------------------------------------

EIGHT = catalogue.find("digits-resnet8").spec()


def weights(depth: int = 8, **options: Any) -> dict[str, torch.Tensor]:
    net = build_net("digits", depth, generator=seeded(1), **options)
    return {key: value.clone() for key, value in net.state_dict().items() if not key.endswith(UNUSED)}


def filled(content: Any, spec: Spec = EIGHT) -> tuple[Net, str]:
    _, found = choose(content, "x.pt", None, lambda tensors: fitted(spec, 10, tensors, "x.pt"))
    return fill(spec, 10, found, "x.pt"), found.by


def is_original(net: Net) -> bool:
    """Whether a net has the very outputs of one with `weights()`."""
    other, images = build_net("digits", 8), torch.rand(2, 3, 16, 16)
    other.load_state_dict(weights(), strict=False)
    with torch.no_grad():
        return torch.equal(net.eval()(images), other.eval()(images))


def test_a_state_dict_is_found_wherever_people_put_it_and_names_count_for_more_than_order():
    own = weights()
    for content, by in (
        (own, "name"), ({"state_dict": own}, "name"), ({"model": own, "epoch": 3}, "name"),
        ({"model": {f"module.{key}": each for key, each in own.items()}}, "name"),
        (dict(reversed(own.items())), "name"), ({f"x{key}": each for key, each in own.items()}, "order"),
    ):  # fmt: skip
        net, matched_by = filled(content)
        assert (matched_by, is_original(net)) == (by, True)


def test_a_safetensors_file_fills_a_net_and_its_damage_is_one_sentence(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(weights(), path)
    loaded = read_net(path, "digits", ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1)), tmp_path)
    assert is_original(loaded.net)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], b"PK\3\4" + whole):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="is not a safetensors file, or is damaged"):
            read_weights(path)
    path.unlink()
    with pytest.raises(RecordError, match=r"theirs\.safetensors cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({key: tensor for key, tensor in weights().items() if key != "fc.bias"}, r"it has no fc\.bias"),
        (weights(shortcut="B"), "does not fit ResNet-8"),
        (weights() | {"stages.2.0.bn1.running_var": torch.full((64,), -0.1)}, "negative variances"),
        ({"epoch": 3, "best_acc": 91.2}, "holds no state dict"),
        (dict.fromkeys((f"w{k}" for k in range(20)), torch.zeros(3, 3)), "for 1 at most"),  # of one memory
        (weights() | {"fc.bias": torch.full((10,), torch.nan)}, "NaN or infinite numbers in fc.bias"),
        (weights() | {"fc.bias": torch.full((10,), -torch.inf)}, "NaN or infinite numbers in fc.bias"),
        (weights() | {"fc.bias": torch.full((10,), 4e38, dtype=torch.float64)}, "infinite"),  # in float32
        (weights() | {"fc.bias": torch.full((10,), 3)}, "kind int64 in fc.bias"),
    ],
)
def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(content, told):
    with pytest.raises(RecordError, match=told):
        filled(content)


def test_weights_of_another_depth_are_refused_and_no_memory_is_taken_for_them():
    filled(weights() | {"fc.bias": torch.full((10,), 3e38, dtype=torch.float64)})
    with pytest.raises(RecordError, match=r"its stages\.1\.0\.conv1\.weight has shape \(32, 16, 3, 3\)"):
        match(build_net("digits", 14).state_dict(), weights(8), "misfit")
    with pytest.raises(RecordError, match="has weights for 8 at most"):
        filled(weights(8), catalogue.find("digits-resnet14").spec())
    with pytest.raises(RecordError, match=r"fc\.weight has shape \(10, 64\) where .* \(1000000000, 64\)"):
        fitted(EIGHT, 10**9, weights(), "x.pt")  # and no memory is taken


# --- ours ------------------------------------------------------------------------------------------

SEEDS = (0, 1)
ONE = "digits-resnet8+iterations=6"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two seeds of a small run, which calls itself one of full length."""
    top = tmp_path_factory.mktemp("weights") / "runs"
    for seed in SEEDS:
        folder = resrepro.train("digits-resnet8", seed=seed, runs=top, iterations=6, threads=1)
        rewrite(Path(folder) / "result.json", lambda result: result.update(status="complete"))
    return top / ONE


@pytest.fixture
def run(runs: Path) -> Run:
    return read_run(runs / "seed0")


@pytest.fixture(scope="module")
def published(runs: Path) -> Path:
    """The folder of what `publish` wrote of both seeds."""
    results = runs.parent.parent / "results"
    code, _, told = call("publish", runs / "seed0", runs / "seed1", "--results", results)
    assert code == 0, told
    return results / ONE


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    """Another copy of the first published seed."""
    return shutil.copytree(published / "seed0", tmp_path / "seed0")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images = load_dataset("digits").held_out["test"]
    return torch.from_numpy(np.ascontiguousarray(images.pixels)), torch.from_numpy(images.labels)


def test_weights_are_the_checkpoints_tensors_and_say_what_run_they_are_of(runs, published):
    for seed in SEEDS:
        content, checkpoint = read_weights(published / f"seed{seed}" / WEIGHTS), runs / f"seed{seed}"
        theirs = net_of(checkpoint)
        assert content["net"].keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in content["net"].items())
        assert torch.equal(content["mean"], checkpoint_of(checkpoint)["mean"])
        assert (content["seed"], content["iteration"]) == (seed, 6)
        assert content["digest"] == json_of(checkpoint, "spec")["digest"]
    assert not list(published.glob("*/checkpoint*"))


def test_equal_weights_are_equal_bytes_and_other_weights_are_not_overwritten(run, runs, tmp_path):
    paths = [write_weights(run, tmp_path / name) for name in ("a", "b", "a")]
    assert [path and path.name for path in paths] == [WEIGHTS] * 3
    assert len({path.read_bytes() for path in paths if path}) == 1
    assert b"/" not in paths[0].read_bytes()[: paths[0].read_bytes().index(b"}}")]  # no path of this machine
    with pytest.raises(RecordError, match="holds other weights already: move it away first"):
        write_weights(read_run(runs / "seed1"), tmp_path / "a")


def test_a_shortened_run_or_one_without_its_last_checkpoint_publishes_no_weights(run, published, tmp_path):
    short = dataclasses.replace(run, result={**run.result, "status": "shortened"})
    assert write_weights(short, tmp_path) is None
    assert write_weights(read_run(published / "seed0"), tmp_path) is None
    other = dataclasses.replace(run, result={**run.result, "iteration": 5})
    with pytest.raises(RecordError, match="is not of the run's last iteration: no weights are published"):
        write_weights(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [-1, -4000, 200])
def test_a_changed_byte_is_refused_in_one_sentence(copied, place):
    content = bytearray((copied / WEIGHTS).read_bytes())
    content[place] ^= 1
    (copied / WEIGHTS).write_bytes(content)
    with pytest.raises(RecordError, match=r"weights\.safetensors is (damaged|no|not)") as caught:
        load_net(copied)
    assert str(caught.value).count("\n") == 0
    code, _, told = call("eval", copied)
    assert (code, told.count("error:"), "Traceback" in told) == (1, 1, False)


def test_published_weights_are_evaluated_as_the_run_is(runs, copied):
    ours, theirs = (resrepro.evaluate(each, threads=1)["test"] for each in (runs / "seed0", copied))
    assert (ours.top1_err, ours.top5_err, ours.loss) == (theirs.top1_err, theirs.top5_err, theirs.loss)
    run = read_run(copied)
    assert theirs.top1_err == pytest.approx(run.last("test"), abs=1e-3)
    assert [(each.digest, each.iteration) for each in run.evaluations] == [(run.digest, 6)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loaded_net_answers_on_stored_pixels_as_was_measured(runs, published, seed):
    net, (pixels, labels) = load_net(published, seed=seed), digits()
    with torch.no_grad():
        error = 100 * float((net(pixels).argmax(dim=1) != labels).float().mean())
    assert error == pytest.approx(read_run(runs / f"seed{seed}").last("test"), abs=1e-3)
    for same in (published / f"seed{seed}" / WEIGHTS, runs / f"seed{seed}"):
        other = load_net(str(same))
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_the_net_alone_takes_normalised_images(published):
    net, (pixels, _) = load_net(published), digits()
    assert not any(module.training for module in net.modules())
    with torch.no_grad():
        inside, outside = net(pixels[:50]), net.net(net.normalise(pixels[:50]))
    assert (inside.dtype, inside.shape) == (torch.float32, (50, 10))
    assert torch.allclose(inside, outside, atol=1e-4)
    assert torch.equal(net(pixels[:50].float()), net(pixels[:50]))


def test_what_is_not_there_is_told(runs, published, copied, tmp_path):
    (copied / WEIGHTS).unlink()
    for missing in (tmp_path / "nowhere", runs.parent):
        with pytest.raises(UsageError, match=r"there is no run in .*: name a run's folder"):
            load_net(missing)
    with pytest.raises(UsageError, match=r"there is no run in .*seed7"):
        load_net(published, seed=7)
    with pytest.raises(UsageError, match=r"holds neither checkpoint\.pt nor weights\.safetensors"):
        load_net(copied)
    with pytest.raises(UsageError, match=r"holds the seeds of a run: name one of them, such as .*seed0"):
        resrepro.evaluate(runs)
