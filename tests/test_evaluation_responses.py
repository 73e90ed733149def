"""Responses and gradients against computations that know nothing of hooks, groups or running sums."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from runs import checkpoint_of
from torch import Tensor
from torch.nn import functional as F

from resrepro.data import load_dataset
from resrepro.data.augment import INITIAL_WEIGHTS, stream_seed
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.responses import gradient_norms, layers_of, measure_responses, response_std
from resrepro.nets import Net, build_net
from resrepro.records import read_run
from resrepro.records.evaluations import count_layers, read_responses
from resrepro.training.session import train

EPS = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("digits-resnet8", seed=3, runs=tmp_path_factory.mktemp("runs"), iterations=12, threads=1)


def forward(
    state: dict[str, Tensor], x: Tensor, *, plain: bool, training: bool
) -> tuple[Tensor, list[Tensor]]:
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
    net = build_net("digits", 8, plain, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                low = 0.5 if "var" in name or "weight" in name else -0.5
                tensor.uniform_(low, low + 1, generator=generator)
    return net


def some_images(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64) + 5
    return images, torch.randint(10, (count,), generator=generator)


# --- the two quantities -----------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [True, False])
def test_std_is_that_of_all_numbers_of_a_layer_together(plain: bool) -> None:
    net = made_net(plain)
    images, _ = some_images(23)
    with torch.no_grad():
        _, responses = forward(net.state_dict(), images, plain=plain, training=False)
    found = response_std(net, [images[:10], images[10:11], images[11:]])
    wanted = [statistics.pstdev(response.flatten().tolist()) for response in responses]
    assert list(found.values()) == pytest.approx(wanted, rel=1e-12)


def test_a_large_mean_takes_nothing_from_the_std() -> None:
    net = build_net("digits", 8, generator=torch.Generator().manual_seed(0))
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    before = response_std(net, images.split(7))
    with torch.no_grad():
        net.stages[2][0].bn2.bias += 4096  # the sum of squares would lose all digits in float32
    after = response_std(net, images.split(7))
    assert after["stages.2.0.conv2"] == pytest.approx(before["stages.2.0.conv2"], rel=1e-3)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("group", [0, 6])
def test_gradients_are_those_of_autograd_by_hand(plain: bool, group: int) -> None:
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


def test_the_net_that_gradients_are_measured_on_stays_as_it_is() -> None:
    net = made_net(plain=False).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradient_norms(net, *some_images(4))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("dataset", "depth", "shortcut"),
    [
        ("cifar10", 20, None),
        ("cifar10", 56, "B"),
        ("cifar10", 110, None),
        ("imagenet", 34, "C"),
        ("imagenet", 50, None),
    ],
)
def test_the_layers_are_the_3x3_ones_in_order_without_projections(
    dataset: str, depth: int, shortcut: str | None
) -> None:
    with torch.device("meta"):
        net = build_net(dataset, depth, shortcut=shortcut)
    names = list(layers_of(net))
    assert len(names) == count_layers(dataset, depth) == {20: 19, 56: 55, 110: 109, 34: 32, 50: 16}[depth]
    assert not any("shortcut" in name for name in names)
    assert (names[0] == "conv1") is (dataset == "cifar10")
    if dataset == "cifar10":
        assert names[1:3] == ["stages.0.0.conv1", "stages.0.0.conv2"]
        assert names[-1] == f"stages.2.{(depth - 2) // 6 - 1}.conv2"


# --- a run ------------------------------------------------------------------------------------------


def test_a_run_is_measured_on_its_test_images_and_first_batch_and_nothing_else_changes(run: Path) -> None:
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
    assert read_responses(run) == found == read_run(run).responses
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {name for name in after if after[name] != before.get(name)} == {"responses.csv"}


def test_the_gradients_at_the_start_are_those_of_the_net_that_training_began_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(trainer: Any, images: Tensor, labels: Tensor) -> None:
        if not seen:
            seen.append(
                (images.clone(), labels.clone(), {k: v.clone() for k, v in trainer.net.state_dict().items()})
            )
        step(trainer, images, labels)

    from resrepro.training.loop import Trainer

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", note)
    train("digits-resnet8", seed=3, runs=tmp_path, iterations=1, threads=1)
    images, labels, state = seen[0]
    weights = torch.Generator().manual_seed(stream_seed(3, INITIAL_WEIGHTS))
    assert torch.equal(build_net("digits", 8, generator=weights).conv1.weight, state["conv1.weight"])
    state["conv1.weight"].requires_grad_()
    logits, responses = forward(state, images, plain=False, training=True)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), responses)
    found = measure_responses(run, threads=1)
    assert found.gradient_norm_start == pytest.approx([float(each.norm()) for each in gradients], rel=1e-3)
    assert found.gradient_norm_end != found.gradient_norm_start


def test_measuring_twice_gives_the_same_file(run: Path) -> None:
    measure_responses(run, threads=1)
    before = (run / "responses.csv").read_bytes()
    measure_responses(run, threads=1)
    assert (run / "responses.csv").read_bytes() == before


# --- refusals ---------------------------------------------------------------------------------------


def test_an_untrained_net_is_refused_in_one_sentence(tmp_path: Path, make_run: Any) -> None:
    folder = make_run(tmp_path, "digits-plain20", curve=[(10, 90.0, 90.0)])
    code, out, told = call("eval", folder, "--responses")
    assert (code, out) == (2, "")
    assert "is partial, at iteration 10 of" in told
    assert "finish the run first" in told
    assert not (folder / "responses.csv").exists()


def test_a_run_without_its_checkpoint_and_a_folder_that_is_none_are_refused(
    tmp_path: Path, make_run: Any
) -> None:
    with pytest.raises(UsageError, match="holds neither checkpoint"):
        measure_responses(make_run(tmp_path, "digits-plain20"))
    with pytest.raises(RecordError, match="is missing"):
        measure_responses(tmp_path / "nowhere")


def test_a_checkpoint_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = train("digits-resnet8", runs=tmp_path, iterations=1, threads=1)
    (other / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    with pytest.raises(RecordError, match="not that of the end of this run"):
        measure_responses(other)


def test_other_images_than_those_trained_on_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resrepro.data import feeds

    def others(dataset: str, split: str, data: object) -> Any:
        found = load_dataset(dataset, split)
        found.checksums["train"] = "0" * 64
        return found

    monkeypatch.setattr(feeds, "load_dataset", others)
    with pytest.raises(RecordError, match="trained on other images"):
        measure_responses(run)


def test_several_processes_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resrepro.evaluation import responses

    monkeypatch.setattr(responses, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="leave torchrun out"):
        measure_responses(run)


def test_the_command_says_what_it_measured_and_where_it_lies(run: Path) -> None:
    code, out, _ = call("eval", run, "--responses", "--threads", 1)
    assert code == 0
    assert "ResNet-8 after 12 of 12 iterations, test set, 359 images." in out
    assert f"Recorded in {run / 'responses.csv'}." in out
    std = read_responses(run).std
    row = next(line for line in out.splitlines() if line.startswith("std"))
    assert row.split()[1:3] == [f"{std[0]:.3g}", f"{std[-1]:.3g}"]
    assert f"({std.index(min(std)) + 1})" in row


def test_what_belongs_to_error_rates_is_refused(run: Path) -> None:
    for words in (("--protocol", "single"), ("--depth", "8"), ("--bn-stats", "precise")):
        code, _, told = call("eval", run, "--responses", *words)
        assert code == 2
        assert "leave protocols and other people's nets out" in told
