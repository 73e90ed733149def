"""Published weights: what was trained is what one loads, what was changed is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from conftest import rewrite
from runs import checkpoint_of, json_of, net_of

import resrepro
from resrepro.data import load_dataset
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.weights import load_net, read_weights, write_weights
from resrepro.records import Run, read_run
from resrepro.records.reading import WEIGHTS

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


def copy_of(published: Path, folder: Path) -> Path:
    """Another copy of the first published seed."""
    return Path(shutil.copytree(published / "seed0", folder / "seed0"))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images = load_dataset("digits").held_out["test"]
    return torch.from_numpy(np.ascontiguousarray(images.pixels)), torch.from_numpy(images.labels)


def error_of(net: torch.nn.Module) -> float:
    """Top-1 error in percent of a net on the test images as they are stored."""
    pixels, labels = digits()
    with torch.no_grad():
        return 100 * float((net(pixels).argmax(dim=1) != labels).float().mean())


def test_weights_are_the_checkpoints_tensors_and_say_what_run_they_are_of(
    runs: Path, published: Path
) -> None:
    for seed in SEEDS:
        content, checkpoint = read_weights(published / f"seed{seed}" / WEIGHTS), runs / f"seed{seed}"
        theirs = net_of(checkpoint)
        assert content["net"].keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in content["net"].items())
        assert torch.equal(content["mean"], checkpoint_of(checkpoint)["mean"])
        assert (content["seed"], content["iteration"]) == (seed, 6)
        assert content["digest"] == json_of(checkpoint, "spec")["digest"]
    assert not list(published.glob("*/checkpoint*"))


def test_equal_weights_are_equal_bytes_and_other_weights_are_not_overwritten(
    run: Run, runs: Path, tmp_path: Path
) -> None:
    paths = [write_weights(run, tmp_path / name) for name in ("a", "b", "a")]
    assert [path and path.name for path in paths] == [WEIGHTS] * 3
    assert len({path.read_bytes() for path in paths if path}) == 1
    assert b"/" not in paths[0].read_bytes()[: paths[0].read_bytes().index(b"}}")]  # no path of this machine
    with pytest.raises(RecordError, match="holds other weights already: move it away first"):
        write_weights(read_run(runs / "seed1"), tmp_path / "a")


def test_a_shortened_run_or_one_without_checkpoint_publishes_no_weights(
    run: Run, published: Path, tmp_path: Path
) -> None:
    short = dataclasses.replace(run, result={**run.result, "status": "shortened"})
    assert write_weights(short, tmp_path) is None
    assert write_weights(read_run(published / "seed0"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_iteration_publishes_no_weights(run: Run, tmp_path: Path) -> None:
    other = dataclasses.replace(run, result={**run.result, "iteration": 5})
    with pytest.raises(RecordError, match="is not of the run's last iteration: no weights are published"):
        write_weights(other, tmp_path)


@pytest.mark.parametrize("place", [-1, -4000, 200])
def test_a_changed_byte_is_refused_in_one_sentence(published: Path, tmp_path: Path, place: int) -> None:
    folder = copy_of(published, tmp_path)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(RecordError, match=r"weights\.safetensors is (damaged|no|not)") as caught:
        load_net(folder)
    assert str(caught.value).count("\n") == 0
    code, _, told = call("eval", folder)
    assert (code, told.count("error:"), "Traceback" in told) == (1, 1, False)


def test_published_weights_are_evaluated_as_the_run_is(runs: Path, published: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path)
    ours, theirs = (resrepro.evaluate(each, threads=1)["test"] for each in (runs / "seed0", folder))
    assert (ours.top1_err, ours.top5_err, ours.loss) == (theirs.top1_err, theirs.top5_err, theirs.loss)
    assert theirs.top1_err == pytest.approx(read_run(folder).last("test"), abs=1e-3)
    (evaluation,) = read_run(folder).evaluations
    assert (evaluation.digest, evaluation.iteration) == (read_run(folder).digest, 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loaded_net_answers_on_stored_pixels_as_was_measured(
    runs: Path, published: Path, seed: int
) -> None:
    net = load_net(published, seed=seed)
    assert error_of(net) == pytest.approx(read_run(runs / f"seed{seed}").last("test"), abs=1e-3)
    for same in (published / f"seed{seed}", published / f"seed{seed}" / WEIGHTS, runs / f"seed{seed}"):
        other = load_net(str(same))
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_loaded_net_is_in_evaluation_mode(published: Path) -> None:
    assert not any(module.training for module in load_net(published).modules())


def test_the_net_alone_takes_normalised_images(published: Path) -> None:
    net, (pixels, _) = load_net(published), digits()
    assert pixels.dtype == torch.uint8
    with torch.no_grad():
        inside, outside = net(pixels[:50]), net.net(net.normalise(pixels[:50]))
    assert (inside.dtype, inside.shape) == (torch.float32, (50, 10))
    assert torch.allclose(inside, outside, atol=1e-4)
    assert torch.equal(net(pixels[:50].float()), net(pixels[:50]))


def test_what_is_not_there_is_told(runs: Path, published: Path, tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match=r"there is no run in .*: name a run's folder"):
            load_net(missing)
    with pytest.raises(UsageError, match=r"there is no run in .*seed7"):
        load_net(published, seed=7)
    folder = copy_of(published, tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UsageError, match=r"holds neither checkpoint\.pt nor weights\.safetensors"):
        load_net(folder)
    with pytest.raises(UsageError, match=r"holds the seeds of a run: name one of them, such as .*seed0"):
        resrepro.evaluate(runs)
