"""Evaluating runs and other people's checkpoints, and responses, against computations by hand."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from conftest import write_run
from runs import checkpoint_of
from seeds import disturb, seeded
from torch import Tensor
from torch.nn import functional as F

from resrepro.data import load_dataset
from resrepro.data.augment import INITIAL_WEIGHTS, stream_seed
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation import evaluate
from resrepro.evaluation.responses import gradient_norms, layers_of, measure_responses, response_std
from resrepro.evaluation.sources import ThirdPartyCheckpoint, mean_of
from resrepro.nets import Net, build_net
from resrepro.records import read_run
from resrepro.records.reading import count_layers, read_responses
from resrepro.training.checkpoint import save_checkpoint
from resrepro.training.loop import Trainer
from resrepro.training.session import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("digits-resnet8", seed=3, runs=tmp_path_factory.mktemp("runs"), iterations=12, threads=1)


def test_a_run_evaluates_to_what_its_record_says(run):
    errors = evaluate(run)
    assert errors["test"].top1_err == pytest.approx(read_run(run).last("test"), abs=1e-4)
    assert errors["test"].count == 359
    (file,) = (run / "evals").glob("single-digits-all-at12-*.json")
    record = json.loads(file.read_text())
    assert record["protocol"] == "single"
    assert record["errors"]["test"]["top1_err"] == errors["test"].top1_err
    assert evaluate(run / "checkpoint.pt") == errors


def theirs(folder: Path, seed: int = 3, **options: Any) -> Path:
    """A file of other people's weights, for the digits."""
    path = folder / "theirs.pt"
    torch.save(build_net("digits", 8, generator=seeded(seed), **options).state_dict(), path)
    return path


def measured(file: Path, **third_party: Any) -> float:
    checkpoint = ThirdPartyCheckpoint(8, std=(1, 1, 1), **third_party)
    return evaluate(file, dataset="digits", third_party=checkpoint, runs=file.parent, threads=1)["test"].loss


def test_a_foreign_checkpoint_is_normalised_as_told_and_measured(tmp_path):
    net = build_net("digits", 8, generator=seeded(3))
    disturb(net)  # BN statistics other than the identity, so that normalising matters
    file = tmp_path / "theirs.pt"
    torch.save({"state_dict": net.state_dict(), "best_acc": np.float64(12.5)}, file)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    told = []
    third_party = ThirdPartyCheckpoint(8, False, "A", mean, std)
    options = {"dataset": "digits", "runs": tmp_path / "runs", "say": told.append}
    errors = evaluate(file, third_party=third_party, **options)
    images = load_dataset("digits").held_out["test"]
    pixels, labels = torch.from_numpy(images.pixels).double() / 255, torch.from_numpy(images.labels)
    by_hand = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        logits = net.eval()(by_hand.float())
    wrong = (logits.argmax(1) != labels).double().mean()
    assert errors["test"].top1_err == pytest.approx(100 * float(wrong), abs=0.3)
    assert errors["test"].loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    said = " ".join(told)
    assert "ResNet-8 (option A, trailing zeros)" in said
    assert len(list((tmp_path / "runs" / "foreign").glob("*/single-digits-all-*.json"))) == 1


def test_plain_and_option_a_share_tensors_but_not_outputs(tmp_path):
    file = theirs(tmp_path)
    assert measured(file, mean=(0, 0, 0)) != measured(file, mean=(0, 0, 0), plain=True)


def test_a_foreign_checkpoint_needs_its_net_and_its_normalisation(tmp_path):
    file = theirs(tmp_path)
    for told, about in (
        ("--depth", {}), ("--mean", {"depth": 8}),
        ("above 0", {"depth": 8, "mean": (0, 0, 0), "std": (1, 0, 1)}),
        (r"scaled to 0\.\.1", {"depth": 8, "mean": (124, 1, 1), "std": (1, 1, 1)}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            evaluate(file, dataset="digits", third_party=ThirdPartyCheckpoint(**about))


def test_where_the_place_of_zeros_is_not_told_the_better_is_taken_and_both_are_told(tmp_path):
    file, told = theirs(tmp_path, seed=10), []
    options = {"dataset": "digits", "runs": tmp_path, "threads": 1, "say": told.append}
    errors = {}
    for zeros in ("trailing", "symmetric", None):
        third_party = ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1), option_a_zeros=zeros)
        errors[zeros] = evaluate(file, third_party=third_party, **options)["test"].top1_err
    assert errors["symmetric"] < errors["trailing"] - 1
    assert errors[None] == errors["symmetric"]
    (sentence,) = (each for each in told if each.startswith("Option A's zeros"))
    assert all(f"{errors[zeros]:.2f} %" in sentence for zeros in ("trailing", "symmetric"))
    assert "taken to be symmetric: on 359 images" in sentence


def test_a_mean_image_is_that_of_the_training_images_or_of_a_file(tmp_path, fake_cifar):
    file, net = theirs(tmp_path, plain=True), build_net("digits", 8, plain=True, generator=seeded(3))
    digits = load_dataset("digits")
    mean = digits.train.pixels.mean(0, dtype=np.float64)
    np.save(tmp_path / "mean.npy", mean)
    np.save(tmp_path / "last.npy", mean.transpose(1, 2, 0) / 255)
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy((digits.held_out["test"].pixels - mean) / 255).float())
    wanted = float(F.cross_entropy(logits, torch.from_numpy(digits.held_out["test"].labels)))
    for given in ("per_pixel", str(tmp_path / "mean.npy"), tmp_path / "last.npy"):
        assert measured(file, plain=True, mean=given) == pytest.approx(wanted, rel=1e-5)
    found, named = mean_of("per_pixel", "cifar10", fake_cifar.folder, "45k5k")
    pixels = load_dataset("cifar10", "45k5k", fake_cifar.folder).train.pixels
    assert len(pixels) == 45_000
    assert torch.equal(found, torch.from_numpy(pixels.mean(0, dtype=np.float64)).float())
    assert named == "per_pixel, cifar10-45k5k"
    np.save(tmp_path / "object.npy", np.array([{}]))
    (tmp_path / "text.npy").write_text("0.5")
    np.save(tmp_path / "other.npy", np.ones((5, 5)))
    for name, told in (("object", "no array"), ("text", "no array"), ("other", "no mean"), ("x", "no file")):
        with pytest.raises(RecordError, match=told):
            mean_of(tmp_path / f"{name}.npy", "digits", None, None)
    with pytest.raises(UsageError, match="for photographs"):
        mean_of("per_pixel", "folder", None, None)


def test_a_run_with_a_word_about_its_net_or_on_images_of_another_size_is_refused(run, fake_cifar):
    with pytest.raises(UsageError, match="says itself"):
        evaluate(run, third_party=ThirdPartyCheckpoint(depth=20))
    with pytest.raises(UsageError, match="mean image of 16x16"):
        evaluate(run, dataset="cifar10", data=fake_cifar.folder)


def test_validation_images_that_may_have_been_trained_on_are_told(fake_cifar, tmp_path, monkeypatch):
    monkeypatch.setattr("resrepro.data.cifar10.VALIDATION", 50)
    third_party, told = ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1)), []
    options = {"data": fake_cifar.folder, "split": "45k5k", "runs": tmp_path, "say": told.append}
    errors = evaluate(theirs(tmp_path), third_party=third_party, **options)
    assert errors["val"].count == 50
    assert any("may have been among those trained on" in sentence for sentence in told)


def test_a_checkpoint_of_ours_with_a_part_missing_is_refused(run, tmp_path):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    del content["mean"]
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    with pytest.raises(RecordError, match="not a whole checkpoint"):
        evaluate(tmp_path / "checkpoint.pt")


EPS = 1e-5


def forward(state: Any, x: Tensor, *, plain: bool, training: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and responses of a CIFAR net of 8 layers, written out from Section 4.2 and the state dict."""

    def normalised(y: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        y = (y - mean[:, None, None]) / (var[:, None, None] + EPS).sqrt()
        return y * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    responses = [normalised(F.conv2d(x, state["conv1.weight"], padding=1), "bn1")]
    x = responses[0].clamp(min=0)
    for stage in range(3):
        block, stride = f"stages.{stage}.0", 1 if stage == 0 else 2
        y = F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        responses.append(normalised(y, f"{block}.bn1"))
        y = F.conv2d(responses[-1].clamp(min=0), state[f"{block}.conv2.weight"], padding=1)
        responses.append(normalised(y, f"{block}.bn2"))
        skipped = x[:, :, ::stride, ::stride]
        zeros = skipped.new_zeros(len(x), responses[-1].shape[1] - x.shape[1], *skipped.shape[2:])
        total = responses[-1] + (0 if plain else torch.cat([skipped, zeros], 1))
        x = total.clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"], responses


def made_net(plain: bool) -> Net:
    """A net whose BN is not the identity, in float64."""
    net, generator = build_net("digits", 8, plain, generator=seeded(0)).double(), seeded(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                low = 0.5 if "var" in name or "weight" in name else -0.5
                tensor.uniform_(low, low + 1, generator=generator)
    return net


def some_images(count: int) -> tuple[Tensor, Tensor]:
    generator = seeded(2)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64) + 5
    return images, torch.randint(10, (count,), generator=generator)


@pytest.mark.parametrize("plain", [True, False])
def test_std_is_that_of_all_numbers_of_a_layer_together(plain):
    net = made_net(plain)
    images, _ = some_images(23)
    with torch.no_grad():
        _, responses = forward(net.state_dict(), images, plain=plain, training=False)
    found = response_std(net, [images[:10], images[10:11], images[11:]])
    wanted = [statistics.pstdev(response.flatten().tolist()) for response in responses]
    assert list(found.values()) == pytest.approx(wanted, rel=1e-12)


def test_a_large_mean_takes_nothing_from_the_std():
    net = build_net("digits", 8, generator=seeded(0))
    images = torch.randn(40, 3, 16, 16, generator=seeded(3))
    before = response_std(net, images.split(7))
    with torch.no_grad():
        net.stages[2][0].bn2.bias += 4096  # the sum of squares would lose all digits in float32
    after = response_std(net, images.split(7))
    assert after["stages.2.0.conv2"] == pytest.approx(before["stages.2.0.conv2"], rel=1e-3)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("group", [0, 6])
def test_gradients_are_those_of_autograd_by_hand(plain, group):
    net = made_net(plain)
    images, labels = some_images(12)
    squares = [0.0] * 7
    for start in range(0, 12, group or 12):
        part = slice(start, start + (group or 12))
        leaf = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        leaf["conv1.weight"].requires_grad_()
        logits, responses = forward(leaf, images[part], plain=plain, training=True)
        picked = logits.log_softmax(1)[torch.arange(len(logits)), labels[part]]
        gradients = torch.autograd.grad(-picked.sum() / 12, responses)
        squares = [sum_ + float((each**2).sum()) for sum_, each in zip(squares, gradients, strict=True)]
    found = gradient_norms(net, images, labels, group)
    assert list(found.values()) == pytest.approx([math.sqrt(each) for each in squares], rel=1e-9)


@pytest.mark.parametrize(
    ("dataset", "depth", "shortcut"), [("cifar10", 110, None), ("imagenet", 34, "C"), ("imagenet", 50, None)]
)
def test_the_layers_are_the_3x3_ones_in_order_without_projections(dataset, depth, shortcut):
    with torch.device("meta"):
        net = build_net(dataset, depth, shortcut=shortcut)
    names = list(layers_of(net))
    assert len(names) == count_layers(dataset, depth) == {110: 109, 34: 32, 50: 16}[depth]
    assert not any("shortcut" in name for name in names)
    assert (names[0] == "conv1") is (dataset == "cifar10")
    if dataset == "cifar10":
        assert names[1:3] == ["stages.0.0.conv1", "stages.0.0.conv2"]
        assert names[-1] == f"stages.2.{(depth - 2) // 6 - 1}.conv2"


def test_a_run_is_measured_on_its_test_images_and_first_batch_and_nothing_else_changes(run):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    found = measure_responses(run, threads=1)
    state = checkpoint_of(run)["net"]
    digits = load_dataset("digits")
    mean = torch.from_numpy(digits.train.pixels).double().mean(0)
    divisor = read_run(run).spec["recipe"]["pixel_divisor"]
    images = (torch.from_numpy(digits.held_out["test"].pixels).double() - mean) / divisor
    wide = {name: tensor.double() for name, tensor in state.items()}
    _, responses = forward(wide, images, plain=False, training=False)
    assert found.std == pytest.approx([float(each.std(correction=0)) for each in responses], rel=1e-4)
    assert (found.part, found.images, found.batch, found.iteration) == ("test", 359, 128, 12)
    assert read_responses(read_run(run)) == found == read_run(run).responses
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {name for name in after if after[name] != before.get(name)} == {"responses.csv"}


def test_the_gradients_at_the_start_are_those_of_the_net_that_training_began_with(run, tmp_path, monkeypatch):
    seen: list[Any] = []

    def note(trainer: Any, images: Tensor, labels: Tensor) -> None:
        if not seen:
            state = {key: tensor.clone() for key, tensor in trainer.net.state_dict().items()}
            seen.append((images.clone(), labels.clone(), state))
        step(trainer, images, labels)

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", note)
    train("digits-resnet8", seed=3, runs=tmp_path, iterations=1, threads=1)
    images, labels, state = seen[0]
    weights = seeded(stream_seed(3, INITIAL_WEIGHTS))
    assert torch.equal(build_net("digits", 8, generator=weights).conv1.weight, state["conv1.weight"])
    state["conv1.weight"].requires_grad_()
    logits, responses = forward(state, images, plain=False, training=True)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), responses)
    found = measure_responses(run, threads=1)
    assert found.gradient_norm_start == pytest.approx([float(each.norm()) for each in gradients], rel=1e-3)
    assert found.gradient_norm_end != found.gradient_norm_start


def test_an_untrained_net_is_refused_in_one_sentence(run, tmp_path):
    other = write_run(tmp_path / "other", "digits-resnet8")
    (other / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    with pytest.raises(RecordError, match="not that of the end of this run"):
        measure_responses(other)
    folder = write_run(tmp_path, "digits-plain20", curve=[(10, 90.0, 90.0)])
    code, out, told = call("eval", folder, "--responses")
    assert (code, out) == (2, "")
    assert "is partial, at iteration 10 of" in told
    assert "finish the run first" in told
    assert not (folder / "responses.csv").exists()


def test_a_refused_run_does_not_stop_those_after_it(run, tmp_path):
    partial = write_run(tmp_path, "digits-plain20", curve=[(10, 90.0, 90.0)])
    (run / "responses.csv").unlink(missing_ok=True)
    code, out, told = call("eval", partial, run, "--responses", "--threads", 1)
    assert code == 1
    assert "is partial, at iteration 10 of" in out
    assert "1 of 2 runs were left out" in told
    assert (run / "responses.csv").exists()


def test_other_images_than_those_trained_on_are_refused(run, monkeypatch):
    def others(dataset: str, split: str, data: object) -> Any:
        found = load_dataset(dataset, split)
        found.checksums["train"] = "0" * 64
        return found

    monkeypatch.setattr("resrepro.data.feeds.load_dataset", others)
    with pytest.raises(RecordError, match="trained on other images"):
        measure_responses(run)


def test_the_command_says_what_it_measured_and_where_it_lies(run):
    code, out, _ = call("eval", run, "--responses", "--threads", 1)
    assert code == 0
    assert "ResNet-8 after 12 of 12 iterations, test set, 359 images." in out
    assert f"Recorded in {run / 'responses.csv'}." in out
    std = read_responses(read_run(run)).std
    row = next(line for line in out.splitlines() if line.startswith("std"))
    assert row.split()[1:3] == [f"{std[0]:.3g}", f"{std[-1]:.3g}"]
    assert f"({std.index(min(std)) + 1})" in row


def test_of_several_files_all_are_measured_and_then_it_is_said_which_failed(tmp_path):
    for name in ("a.pt", "c.pt"):
        torch.save(build_net("digits", 8).state_dict(), tmp_path / name)
    (tmp_path / "b.pt").write_text("x")
    words = "--dataset digits --depth 8 --mean 0,0,0 --std 1,1,1 --zeros trailing --threads 1 --runs"
    files = [tmp_path / f"{name}.pt" for name in "abc"]
    code, out, told = call("eval", *files, words, tmp_path)
    assert (code, out.count("is evaluated as")) == (1, 2)
    assert f"{files[1]} is left out: {files[1]} is not a PyTorch checkpoint" in " ".join(out.split())
    assert told == f"error: 1 of 3 checkpoints were left out, for the reasons above: {files[1]}."


def test_a_net_whose_outputs_are_not_finite_is_told_and_not_recorded(tmp_path: Path) -> None:
    weights = build_net("cifar10", 20).state_dict()
    weights["bn1.running_var"].fill_(-1.0)
    torch.save(weights, tmp_path / "theirs.pt")
    theirs = ThirdPartyCheckpoint(20, False, "A", (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    with pytest.raises(RecordError, match="not finite"):
        evaluate(tmp_path / "theirs.pt", dataset="digits", third_party=theirs, runs=tmp_path / "runs")
    assert not list(tmp_path.rglob("*.json"))
