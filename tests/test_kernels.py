"""The C kernels against PyTorch's own operations, in values, gradients and running averages."""

import os
import stat
from pathlib import Path

import pytest
import torch
from seeds import disturb, seeded
from torch import Tensor
from torch.nn import functional as F

from resrepro.nets.cpu import NoCompiler, building, load_kernels
from resrepro.nets.cpu.normalising import Normaliser
from resrepro.nets.normalisation import GroupedBatchNorm2d

try:
    KERNELS = load_kernels()
except NoCompiler as missing:
    pytest.skip(f"no kernels here: {missing}", allow_module_level=True)

# Channels and side of the maps: of the CIFAR nets, the digits' nets, ImageNet's nets, and odd ones.
SIZES = [(16, 32), (32, 16), (64, 8), (16, 8), (32, 4), (64, 2), (64, 14), (256, 7), (512, 7), (4, 4), (1, 8)]
TYPES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def maps(count: int, channels: int, side: int, kind: torch.dtype, seed: int) -> Tensor:
    """Maps whose channels have means and spreads of their own."""
    spread = 1 + torch.arange(channels) / channels
    x = torch.randn(count, channels, side, side, generator=seeded(seed)) * spread[:, None, None]
    return (x + 3 * spread[:, None, None] - 4).to(kind).contiguous(memory_format=torch.channels_last)


def norms(channels: int) -> tuple[GroupedBatchNorm2d, GroupedBatchNorm2d]:
    """The same BN layer with kernels and without."""
    fused, usual = (GroupedBatchNorm2d(channels, momentum=0.3, eps=1e-4) for _ in range(2))
    disturb(fused)
    usual.load_state_dict(fused.state_dict())
    fused.kernels = Normaliser(KERNELS)
    return fused, usual


def reference(norm: GroupedBatchNorm2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """relu(BN(x) + shortcut) in double precision, from the definition."""
    x = x.double()
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    scale = norm.weight.double() / (var + norm.eps).sqrt()
    y = (x - mean[:, None, None]) * scale[:, None, None] + norm.bias.double()[:, None, None]
    return F.relu(y if shortcut is None else y + shortcut.double())


def close(ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within a tolerance relative to the largest value."""
    largest = wanted.abs().max().clamp_min(1e-6)
    torch.testing.assert_close(ours.double() / largest, wanted.double() / largest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("added", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_values_gradients_and_averages_are_those_of_the_definition(
    channels: int, side: int, kind: torch.dtype, added: bool
) -> None:
    fused, usual = norms(channels)
    x = maps(6, channels, side, kind, 1).requires_grad_()
    shortcut = maps(6, channels, side, kind, 2).requires_grad_() if added else None
    upstream = [maps(6, channels, side, kind, seed) for seed in (3, 4)]
    assert fused.kernels is not None
    assert fused.kernels.takes(x)

    y, same = fused.relu(x, shortcut)
    assert torch.equal(y, same)
    assert y.dtype == kind
    wanted = reference(usual, x, shortcut)
    close(y.detach(), wanted.detach(), TYPES[kind])

    inputs = [x, *fused.parameters()] + ([] if shortcut is None else [shortcut])
    ours = torch.autograd.grad([y, same], inputs, upstream)
    # The gate of a value that rounds to zero on one side only is no error: take ours for both.
    open_gates = (y > 0).double() / (wanted > 0).double().clamp_min(1)
    told = (upstream[0].double() + upstream[1].double()) * open_gates
    inputs = [x, *usual.parameters()] + ([] if shortcut is None else [shortcut])
    theirs = torch.autograd.grad(wanted, inputs, told)
    for mine, true in zip(ours, theirs, strict=True):
        close(mine, true, 3 * TYPES[kind])

    usual.train()(x.detach().float())
    for name, buffer in usual.named_buffers():
        close(dict(fused.named_buffers())[name].float(), buffer.float(), 1e-5)


def test_one_use_of_the_output_is_enough() -> None:
    fused, usual = norms(16)
    for used in (0, 1):
        x, shortcut = (maps(4, 16, 8, torch.float32, seed).requires_grad_() for seed in (1, 2))
        upstream = maps(4, 16, 8, torch.float32, 3)
        ours = torch.autograd.grad(fused.relu(x, shortcut)[used], (x, shortcut), upstream)
        theirs = torch.autograd.grad(usual.relu(x, shortcut)[used], (x, shortcut), upstream)
        for mine, true in zip(ours, theirs, strict=True):
            close(mine, true, 2e-5)


def test_a_large_mean_does_not_cost_the_variance() -> None:
    fused, usual = norms(32)
    x = maps(8, 32, 8, torch.float32, 5) + 1000
    close(fused.relu(x)[0].detach(), reference(usual, x, None).detach(), 1e-3)
    assert (fused.running_var - usual.running_var).abs().max() > 0  # it was brought up to date


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, shortcut, upstream = (maps(10, 32, 8, torch.float32, seed) for seed in (1, 2, 3))
    told = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        fused, _ = norms(32)
        leaf = x.clone().requires_grad_()
        y, _ = fused.relu(leaf, shortcut)
        gradients = torch.autograd.grad(y, (leaf, *fused.parameters()), upstream)
        told.append((y.detach(), *gradients, fused.running_mean, fused.running_var))
    for other in told[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, told[0], strict=True))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_loss_that_is_no_number_stays_none(kind: torch.dtype) -> None:
    fused, _ = norms(16)
    x = maps(4, 16, 8, kind, 1)
    x[2, 5, 3, 3] = float("nan")
    y, _ = fused.relu(x)
    assert y[:, 5].isnan().all()
    assert not y[:, 4].isnan().any()
    assert fused.running_var is not None
    assert fused.running_var[5].isnan()


def test_narrow_numbers_are_rounded_to_the_nearest_and_infinity_kept() -> None:
    fused, _ = norms(16)
    with torch.no_grad():
        fused.weight.fill_(0)
        fused.bias.copy_(torch.tensor([1.00390625, 1.01171875, 3e38, 2.7182818] * 4))
    y, _ = fused.relu(maps(2, 16, 8, torch.bfloat16, 1))
    assert torch.equal(y[0, :, 0, 0], fused.bias.detach().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((4, 24, 8, 8), torch.float32), ((4, 100, 8, 8), torch.float32), ((4, 16, 3, 3), torch.float32),
     ((1, 64, 1, 1), torch.float32), ((4, 16, 8, 8), torch.float16), ((4, 16, 8, 8), torch.float64)],
)  # fmt: skip
def test_other_maps_are_left_to_pytorch(shape: tuple[int, ...], kind: torch.dtype) -> None:
    assert not Normaliser(KERNELS).takes(torch.zeros(shape, dtype=kind))


def test_evaluation_groups_and_passes_are_left_to_pytorch() -> None:
    x = maps(4, 16, 8, torch.float32, 1)
    for change in ({"group": 2}, {"images": 8}):
        fused, usual = norms(16)
        for norm in (fused, usual):
            for name, value in change.items():
                setattr(norm, name, value)
        assert torch.equal(fused.relu(x)[0], usual.relu(x)[0])
    fused, usual = norms(16)
    assert torch.equal(fused.eval().relu(x)[0], usual.eval().relu(x)[0])


# --- compiling -------------------------------------------------------------------------------------


def test_they_are_compiled_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = load_kernels(), load_kernels()
    assert (first.seconds > 0, second.seconds) == (True, 0)
    (folder,) = tmp_path.glob("*/kernels")
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-DOTHER"))
    assert load_kernels().seconds > 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "no C compiler"),
        ("exit 1", "failed"),
        (
            '[ "$1" = --version ] || { echo "x.c:1: error: no such thing" >&2; exit 1; }',
            "error: no such thing",
        ),
        ("exit 0", "do not load|cannot be written"),
    ],
)
def test_a_compiler_that_is_missing_or_broken_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    if script is not None:
        (tmp_path / "broken").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "broken").chmod(0o755)
    with pytest.raises(NoCompiler, match=words):
        load_kernels()


@pytest.mark.skipif(os.name != "posix", reason="folders that cannot be written")
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resrepro").write_text("a file, no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoCompiler, match="cannot be written"):
        load_kernels()
