"""Kernels for GPUs against double precision: by Triton's interpreter, or on a GPU where there is one."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import ROOT
from seeds import seeded
from torch import Tensor
from torch.nn import functional as F

from resrepro.nets import Net, build_net
from resrepro.training.updates import SGD

pytest.importorskip("triton")
from resrepro.nets import gpu
from resrepro.nets.gpu import STEM, Lanes, backward, forward

DEVICE = torch.device("cpu" if forward.INTERPRETED else "cuda")
pytestmark = [] if forward.INTERPRETED else [pytest.mark.gpu]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).to(DEVICE)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, device=DEVICE)


def close(found: Tensor, wanted: Tensor, digits: float = 1e-5) -> None:
    torch.testing.assert_close(found.double().cpu(), wanted.double().cpu(), rtol=digits, atol=digits)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N x H x W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


# --- kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "K", "S"), [(16, 16, 1), (16, 32, 2)])
def test_a_convolution_and_the_statistics_of_its_output(C: int, K: int, S: int) -> None:
    """3 images of 6 x 6, which fill no program; a mean of 100 deviations."""
    N, H, rows = 3, 6 // S, 64
    M, G = N * H * H, -(-N * H * H // rows)
    x, w = normal(N, C, 6, 6), normal(K, C, 3, 3, seed=1)
    y, partial = zeros(1, M, K), zeros(1, G, 2, K)
    flat = w.permute(2, 3, 1, 0).reshape(1, -1).contiguous()
    forward.convolve[G, 1](
        channels_last(x).contiguous(), flat, y, partial, M, N * 36, G, flat.numel(), H, H, C, K, S, rows, 16,
        "ieee",
    )  # fmt: skip
    wanted = F.conv2d(x.double(), w.double(), stride=S, padding=1)
    close(y[0], channels_last(wanted))
    counts = torch.tensor([rows] * (G - 1) + [M - rows * (G - 1)], device=DEVICE)
    close(counts / M @ partial[0, :, 0], wanted.mean((0, 2, 3)))

    affine = torch.cat([normal(K), normal(K, seed=2)])[None]
    running = torch.stack([zeros(K), zeros(K) + 1])[None]
    stats, partial[0, :, 0] = zeros(1, 4, K), partial[0, :, 0] + 1e4
    forward.find_statistics[(1,)](partial, affine, running, stats, M, G, 2 * K, rows, 1e-5, 0.1, K, 2)
    deviation = (wanted.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()
    close(stats[0, 2], 1 / deviation)
    close(stats[0, 0], affine[0, :K] / deviation)
    close(running[0, 1], 0.9 + 0.1 * wanted.var((0, 2, 3)), 1e-4)
    close(running[0, 0] / 1e3, (wanted.mean((0, 2, 3)) + 1e4) / 1e4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_passes_through_a_relu() -> None:
    """So that a net that has diverged is seen by its loss."""
    y, z, stats = normal(1, 32, 16), zeros(1, 32, 16), zeros(1, 4, 16) + 1
    y[0, 3, 5] = torch.nan
    forward.activate[1, 1](y, stats, y, zeros(1), z, 32, 32, 4, 4, 16, 16, 1, 0, False, 32)
    assert z.isnan().nonzero().tolist() == [[0, 3, 5]]
    assert (z.nan_to_num() >= 0).all()


@pytest.mark.parametrize("before", [0, 8])
def test_option_a_and_no_shortcut_in_one_launch(before: int) -> None:
    N, C, K = 2, 16, 32
    y, x = normal(2, N * 9, K), normal(2, N * 36, C, seed=1)
    stats = torch.stack([normal(K), normal(K, seed=2), normal(K), normal(K, seed=3)])[None].repeat(2, 1, 1)
    z, residual = zeros(2, N * 9, K), torch.tensor([0.0, 1.0], device=DEVICE)
    forward.activate[1, 2](y, stats, x, residual, z, N * 9, N * 36, 3, 3, C, K, 2, before, True, 32)
    scale, mean, _, beta = stats[0]
    for lane in (0, 1):
        strided = x[lane].view(N, 6, 6, C)[:, ::2, ::2].reshape(-1, C)
        way = F.pad(strided, (before, K - C - before))
        close(z[lane], F.relu((y[lane] - mean) * scale + beta + lane * way))


@pytest.mark.parametrize(("C", "K", "S", "before"), [(16, 16, 1, 0), (16, 32, 2, 8)])
def test_the_way_back_through_a_block(C: int, K: int, S: int, before: int) -> None:
    """Filters, BN, shortcut and ReLU, on 3 images of 6 x 6, in programs of 64 pixels and parts of 32."""
    N, H = 3, 6 // S
    M, MY, G = N * 36, N * H * H, 2
    y, w, carried = normal(N, C, 6, 6), normal(K, C, 3, 3, seed=1) / 8, normal(N, K, H, H, seed=2)
    gamma, beta, dy = normal(C, seed=3), normal(C, seed=4), normal(N, K, H, H, seed=5)
    raw, weight, scale, shift = (each.double().requires_grad_() for each in (y, w, gamma, beta))
    z = F.relu(F.batch_norm(raw, None, None, scale, shift, True))
    way = F.pad(z[:, :, ::S, ::S], (0, 0, 0, 0, before, K - C - before))
    out = (F.conv2d(z, weight, stride=S, padding=1) * dy).sum() + (way * carried).sum()
    of_raw, of_weight, of_scale, of_shift = torch.autograd.grad(out, [raw, weight, scale, shift])

    mean, inverse = y.mean((0, 2, 3)), (y.var((0, 2, 3), unbiased=False) + 1e-5).rsqrt()
    stats = torch.stack([gamma * inverse, mean, inverse, beta])[None].contiguous()
    y_, z_, dy_, carried_ = (
        channels_last(each)[None].float().contiguous() for each in (y, z.detach(), dy, carried)
    )
    flat = w.permute(2, 3, 1, 0).reshape(1, -1).contiguous()
    g, partial, back = zeros(1, M, C), zeros(1, G, 2, C), zeros(1, 2, C)
    parts = zeros(1, 4, 2 * C + 9 * C * K)
    backward.differentiate[G, 1](
        dy_, flat, z_, y_, stats, carried_, torch.ones(1, device=DEVICE), g, partial, M, MY, G, flat.numel(),
        6, 6, C, K, S, before, True, 64, 16, "ieee",
    )  # fmt: skip
    row = parts.shape[2]
    backward.differentiate_norm[(1,)](partial, back, parts, M, G, 9 * C * K, row, 4, C, 2)
    through = zeros(1, M, C)
    backward.go_through_norm[2, 1](g, y_, stats, back, through, M, C, 64)
    backward.differentiate_filters[-(-MY // 32), 1, 3](
        z_, dy_, parts, MY, M, 32, 0, row, 4, H, H, C, K, S, 3, 32, "ieee"
    )
    close(through[0], channels_last(of_raw))
    found = parts.sum((0, 1))
    close(found[: 9 * C * K].view(3, 3, C, K).permute(3, 2, 0, 1), of_weight)
    close(found[9 * C * K :], torch.cat([of_scale, of_shift]))


def classified(logits_from: Tensor, truth: Tensor, classes: int = 10) -> tuple[Tensor, ...]:
    """Sums, gradients of z and of the fc layer, for maps (N, 4, 64) after the last ReLU."""
    N, fc = len(truth), normal(classes * 65, seed=5)[None] / 8
    gradient, parts, partial = zeros(1, N * 4, 64), zeros(1, 4, classes * 65 + 6), zeros(1, 2, 2, 64)
    tallies, stats = zeros(1, 2, 4), torch.ones(1, 4, 64, device=DEVICE)
    forward_z = logits_from.reshape(1, N * 4, 64)
    backward.classify[-(-N // 16), 1](
        forward_z, forward_z, stats, fc, truth[None], gradient, parts, partial, tallies, N, 2, fc.shape[1], 6,
        parts.shape[2], 4, 64, classes, 16, 4, 16, 2,
    )  # fmt: skip
    return fc[0], tallies.sum((0, 1)), gradient[0], parts.sum((0, 1))[6:], partial.sum((0, 1))


def test_pooling_loss_errors_and_their_gradients() -> None:
    """20 images, the last program's not all there; in front of the ReLU no gradient where it is shut."""
    z, truth = F.relu(normal(20, 4, 64)), torch.arange(20, device=DEVICE) % 10
    fc, told, of_z, of_fc, sums = classified(z, truth)
    maps, weights = z.double().requires_grad_(), fc.double().requires_grad_()
    logits = maps.mean(1) @ weights[:640].view(10, 64).T + weights[640:]
    loss = F.cross_entropy(logits, truth)
    gradients = torch.autograd.grad(loss, [maps, weights])
    ranks = (logits > logits.gather(1, truth[:, None])).sum(1)
    close(told, torch.stack([loss * 20, (ranks >= 1).sum(), (ranks >= 5).sum(), loss.new_tensor(20.0)]))
    close(of_z, (gradients[0] * (z > 0)).view(-1, 64), 1e-7)
    close(of_fc, gradients[1], 1e-6)
    close(sums[0], (gradients[0] * (z > 0)).sum((0, 1)), 1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_number_is_no_right_answer() -> None:
    z = normal(3, 4, 64)
    z[1] = torch.nan
    _, told, *_ = classified(z, torch.tensor([1, 2, 3], device=DEVICE))
    assert told[0].isnan()
    assert told[1] >= 1
    assert told[3] == 3


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_adds_the_parts_and_keeps_to_each_lanes_rate(nesterov: bool) -> None:
    """Against PyTorch's: the middle 100 of 110 parameters, four parts, two lanes."""
    p, v, parts = normal(2, 110), normal(2, 110, seed=1), normal(2, 4, 100, seed=2)
    decay, narrow = zeros(110) + 1e-2, zeros(2, 110)
    rates = torch.tensor([0.1, 0.3], device=DEVICE)
    parameter, old = p.double().clone(), p.clone()
    wanted = []
    for lane in (0, 1):
        own = torch.nn.Parameter(parameter[lane, 5:105].clone())
        optimizer = torch.optim.SGD([own], float(rates[lane]), 0.9, weight_decay=1e-2, nesterov=nesterov)
        optimizer.state[own]["momentum_buffer"] = v[lane, 5:105].double()
        own.grad = parts[lane].double().sum(0)
        optimizer.step()
        wanted.append(own.detach())
    backward.descend[2, 2](p, v, narrow, parts, decay, rates, 110, 5, 100, 0.9, 4, nesterov, 64)
    close(p[:, 5:105], torch.stack(wanted), 1e-6)
    assert torch.equal(p[:, :5], old[:, :5])
    assert torch.equal(p[:, 105:], old[:, 105:])
    assert torch.equal(narrow[:, 5:105], p[:, 5:105])


# --- updates ---------------------------------------------------------------------------------------


def nets_of(kinds: Sequence[str], **options: Any) -> list[Net]:
    """Nets of 8 layers, `plain` or not, each with its own weights."""
    made = []
    for seed, kind in enumerate(kinds):
        made.append(build_net("cifar10", 8, kind == "plain", generator=seeded(seed), **options).to(DEVICE))
    return made


def lanes_of(nets: Sequence[Net], images: Tensor, truth: Tensor, precision: str = "float32") -> Lanes:
    """Nets as lanes, with momentum, about to learn from (L, N, 3, H, W) and labels (L, N)."""
    optimizers = []
    for net in nets:
        weights, others = ([p for p in net.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": weights, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
        optimizer = SGD(groups, 0.1, 0.9)
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 0.01)
        optimizers.append(optimizer)
    count, N, _, side, _ = images.shape
    lanes = Lanes(nets, optimizers, N, side, precision)
    lanes.x.view(count, N, side, side, STEM)[..., :3] = images.permute(0, 1, 3, 4, 2)
    lanes.truth.copy_(truth)
    lanes.rates.copy_(torch.linspace(0.1, 0.2, count))
    return lanes


def updated(net: Net, images: Tensor, truth: Tensor, rate: float) -> Net:
    """A net after the same update in float64, by autograd."""
    net = copy.deepcopy(net).double().train()
    loss = F.cross_entropy(net(images.double()), truth)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for p, gradient in zip(net.parameters(), gradients, strict=True):
            p -= rate * (0.9 * 0.01 + gradient + (1e-2 * p if p.ndim > 1 else 0))
    return net


@pytest.mark.parametrize(
    ("kinds", "zeros", "side"),
    [(("plain", "A"), "trailing", 8),
     pytest.param(("A", "plain", "A"), "symmetric", 12, marks=pytest.mark.slow)],
)  # fmt: skip
def test_an_update_is_that_of_autograd(kinds: Sequence[str], zeros: str, side: int) -> None:
    """Gradients of all layers, decay, momentum, rates, running averages; 3 images fill no program."""
    nets = nets_of(kinds, option_a_zeros=zeros)
    images, truth = normal(len(kinds), 3, 3, side, side, seed=3), torch.tensor([[1, 2, 3]], device=DEVICE)
    rates = torch.linspace(0.1, 0.2, len(kinds)).tolist()
    wanted = [updated(*each, truth[0], rate) for *each, rate in zip(nets, images, rates, strict=True)]
    before = copy.deepcopy(nets)
    lanes = lanes_of(nets, images, truth.expand(len(kinds), 3))
    lanes.update()
    for net, other, old in zip(nets, wanted, before, strict=True):
        for (name, p), q, r in zip(net.named_parameters(), other.parameters(), old.parameters(), strict=True):
            far = (p.double() - q).norm() / (q - r.double()).norm()
            assert far < 5e-5, (name, far)
        for name, buffer in net.named_buffers():
            close(buffer, other.get_buffer(name))
    assert lanes.since_sample[:, 3].tolist() == [3.0] * len(kinds)
    assert torch.equal(lanes.since_sample, lanes.since_look)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_lane_is_the_same_alone(precision: str) -> None:
    """Bit by bit: parameters, momentum, averages, sums."""
    images, truth = normal(2, 2, 3, 8, 8, seed=3), torch.tensor([[1, 2], [3, 4]], device=DEVICE)
    both = lanes_of(nets_of(("plain", "A")), images, truth, precision)
    (_, second) = nets_of(("plain", "A"))
    alone = lanes_of([second], images[1:], truth[1:], precision)
    alone.rates.copy_(both.rates[1:])
    both.update()
    alone.update()
    for one, other in zip(both.changed, alone.changed, strict=True):
        assert torch.equal(one[1:], other)
    assert all(layer.y.dtype == both.maps for layer in both.layers)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "low", "high"), [("float32", 0, 1e-4), ("bf16", 1e-3, 0.3)])
def test_two_updates_are_as_near_to_pytorchs_as_their_arithmetic_allows(
    precision: str, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before a run, on fewer images; PyTorch's own bf16 is as far off."""
    monkeypatch.setattr(gpu, "IMAGES", 8)
    monkeypatch.setattr(gpu, "DEPTH", 8 if forward.INTERPRETED else 14)
    assert low <= gpu.distance(DEVICE, 8, precision) < high <= gpu.TOLERANCE["bf16"]


def test_kernels_that_fail_or_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> float:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu, "distance", fail)
    assert "do not run on this GPU (RuntimeError: no kernel" in gpu.disagreement(DEVICE, 1, "float32")
    for error, told in ((float("nan"), "differ by nan"), (0.5, "differ by 5.0e-01"), (1e-4, "")):
        monkeypatch.setattr(gpu, "distance", lambda *_, error=error: error)
        assert told in gpu.disagreement(DEVICE, 2 + int(error == 0.5) + 2 * int(error == 1e-4), "float32")


# --- compiled for GPUs that are not there -----------------------------------------------------------


@pytest.mark.parametrize(("arch", "precision"), [(80, "bf16"), (80, "float32"), (90, "tf32"), (90, "bf16")])
@pytest.mark.slow
def test_every_kernel_compiles_without_spilling(arch: int, precision: str) -> None:
    """What ptxas says of the kernels of an update; needs no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compiled.py"), str(arch), precision]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({each["kernel"] for each in found}) == 11
    for each in found:
        assert each["spilled"] == 0, each
        multiplies = each["kernel"] in ("convolve", "differentiate", "differentiate_filters")
        assert (each["products"] > 0) == (multiplies and precision != "float32"), each
