"""The C kernels against the definitions in double precision, and what they make of a net."""

import stat
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from seeds import disturb, seeded
from torch import Tensor
from torch.nn import functional as F

from resrepro.machine import cache_folder
from resrepro.nets import Net, build_net, cpu
from resrepro.nets.layers import GroupedBatchNorm2d

try:
    KERNELS = cpu.load_kernels()
except cpu.NoCompiler as missing:
    pytest.skip(f"no kernels here: {missing}", allow_module_level=True)

# Channels and side of the maps: of the CIFAR nets, the digits' nets, ImageNet's nets, and odd ones.
SIZES = [(16, 32), (32, 16), (64, 8), (64, 2), (512, 7), (4, 4), (1, 8)]
TYPES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def maps(count: int, channels: int, side: int, kind: torch.dtype, seed: int) -> Tensor:
    """Maps whose channels have means and spreads of their own."""
    spread = 1 + torch.arange(channels) / channels
    x = torch.randn(count, channels, side, side, generator=seeded(seed)) * spread[:, None, None]
    return (x + 3 * spread[:, None, None] - 4).to(kind).contiguous(memory_format=torch.channels_last)


def norms(channels: int) -> tuple[GroupedBatchNorm2d, GroupedBatchNorm2d]:
    """The same BN layer twice."""
    fused, usual = (GroupedBatchNorm2d(channels, momentum=0.3, eps=1e-4) for _ in range(2))
    disturb(fused)
    usual.load_state_dict(fused.state_dict())
    return fused, usual


def relu(norm: GroupedBatchNorm2d, x: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return cpu._Normalise.apply(KERNELS.library, norm, x, shortcut, norm.weight, norm.bias)


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
    assert cpu.can_normalise(x)

    y, same = relu(fused, x, shortcut)
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


def test_a_large_mean_does_not_cost_the_variance() -> None:
    fused, usual = norms(32)
    x = maps(8, 32, 8, torch.float32, 5) + 1000
    close(relu(fused, x)[0].detach(), reference(usual, x, None).detach(), 1e-3)
    assert (fused.running_var - usual.running_var).abs().max() > 0  # it was brought up to date


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_loss_that_is_no_number_stays_none(kind: torch.dtype) -> None:
    fused, _ = norms(16)
    x = maps(4, 16, 8, kind, 1)
    x[2, 5, 3, 3] = float("nan")
    y, _ = relu(fused, x)
    assert y[:, 5].isnan().all()
    assert not y[:, 4].isnan().any()
    assert fused.running_var is not None
    assert fused.running_var[5].isnan()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((4, 24, 8, 8), torch.float32), ((4, 100, 8, 8), torch.float32), ((4, 16, 3, 3), torch.float32),
     ((1, 64, 1, 1), torch.float32), ((4, 16, 8, 8), torch.float16), ((4, 16, 8, 8), torch.float64)],
)  # fmt: skip
def test_other_maps_are_left_to_pytorch(shape: tuple[int, ...], kind: torch.dtype) -> None:
    assert not cpu.can_normalise(torch.zeros(shape, dtype=kind))


# --- 3x3 convolutions ------------------------------------------------------------------------------

# Images, channels in and out, height, width: of the nets for CIFAR, digits and ImageNet, and odd ones.
CONVOLUTIONS = [
    (5, 16, 16, 32, 32), (6, 32, 32, 16, 16), (7, 64, 64, 8, 8), (1, 128, 128, 28, 28), (1, 16, 16, 4, 4),
    (3, 48, 16, 8, 12), (4, 16, 80, 12, 4),
]  # fmt: skip
CONV_TYPES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of one standard deviation


def noise(*shape: int, kind: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    x = torch.randn(shape, generator=seeded(seed))
    return x.to(kind).contiguous(memory_format=torch.channels_last)


def filters(outputs: int, inputs: int) -> Tensor:
    return 0.1 * torch.randn(outputs, inputs, 3, 3, generator=seeded(9))


def near(ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    deviation = wanted.std()
    torch.testing.assert_close(ours.double() / deviation, wanted / deviation, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", CONV_TYPES, ids=str)
@pytest.mark.parametrize(("images", "inputs", "outputs", "height", "width"), CONVOLUTIONS)
def test_convolutions_and_their_gradients_are_those_of_the_definition(
    images: int, inputs: int, outputs: int, height: int, width: int, kind: torch.dtype
) -> None:
    x = noise(images, inputs, height, width, kind=kind).requires_grad_()
    upstream = noise(images, outputs, height, width, kind=kind, seed=2)
    weight = filters(outputs, inputs).requires_grad_()
    assert cpu.can_convolve(x, weight)
    y = cpu._Convolve.apply(KERNELS.library, x, weight)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert y.dtype == kind
    near(y.detach(), exact.detach(), CONV_TYPES[kind])

    of_x, of_weight = torch.autograd.grad(y, (x, weight), upstream)
    x_exact, weight_exact = torch.autograd.grad(exact, (x, weight), upstream.double())
    assert (of_x.dtype, of_weight.dtype) == (kind, torch.float32)
    near(of_x, x_exact.double(), CONV_TYPES[kind])
    near(of_weight, weight_exact.double(), 1e-4)  # bf16 maps too: it is summed in float32


def test_a_pixel_that_is_no_number_is_not_lost() -> None:
    x = noise(2, 16, 12, 12)
    x[1, 3, 5, 5] = float("nan")
    y = cpu._Convolve.apply(KERNELS.library, x, filters(16, 16))
    assert y[1, :, 4:7, 4:7].isnan().all()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("wanted", [0, 1], ids=["data", "filters"])
def test_only_the_gradient_that_is_wanted_is_taken(wanted: int) -> None:
    leaves = noise(2, 16, 8, 8), filters(16, 16)
    leaves[wanted].requires_grad_()
    cpu._Convolve.apply(KERNELS.library, *leaves).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [wanted == 0, wanted == 1]


@pytest.mark.parametrize(
    ("shape", "outputs", "kind"),
    [((4, 3, 8, 8), 16, torch.float32), ((4, 16, 8, 8), 24, torch.float32),
     ((4, 16, 10, 8), 16, torch.float32),
     ((4, 16, 8, 14), 16, torch.float32), ((1, 256, 8, 8), 256, torch.float32),
     ((4, 16, 8, 8), 16, torch.float16), ((4, 16, 8, 8), 16, torch.float64)],
)  # fmt: skip
def test_other_convolutions_are_left_to_pytorch(
    shape: tuple[int, ...], outputs: int, kind: torch.dtype
) -> None:
    assert not cpu.can_convolve(torch.zeros(shape, dtype=kind), filters(outputs, shape[1]))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_wide_gradient_of_a_narrow_convolution(stride: int) -> None:
    usual = torch.nn.Conv2d(16, 32, 3, stride, padding=1, bias=False)
    x = noise(4, 16, 8, 8, kind=torch.bfloat16)
    upstream = noise(4, 32, 8 // stride, 8 // stride, kind=torch.bfloat16, seed=2)
    told = []
    for wide in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = cpu._WideGradient.apply(leaf, usual.weight, (stride, stride), (1, 1)) if wide else usual(leaf)
        told.append((y, *torch.autograd.grad(y, (leaf, usual.weight), upstream)))
    (y, of_x, of_weight), (other, other_x, other_weight) = told
    assert torch.equal(y, other)
    assert torch.equal(of_x, other_x)
    assert other_weight.dtype == torch.float32
    exact = torch.nn.grad.conv2d_weight(  # type: ignore[attr-defined]
        x.double(), usual.weight.shape, upstream.double(), stride, 1
    )
    assert (other_weight - exact).norm() <= (of_weight - exact).norm()


# --- the net of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"bn_group": 2}, {"bn_batch": 8}])
def test_groups_and_passes_are_left_to_pytorch(change: dict[str, int]) -> None:
    nets = [build_net("digits", 8, generator=seeded(1), **change) for _ in range(2)]
    images = noise(4, 3, 16, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "can_convolve", lambda x, weight: False)
        assert torch.equal(cpu.KernelNet(nets[0], KERNELS)(images), nets[1](images))
    assert all(map(torch.equal, nets[0].buffers(), nets[1].buffers()))


def test_a_net_uses_them_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in (cpu._Convolve, cpu._Normalise):
        real, name = kind.apply, kind.__name__
        monkeypatch.setattr(kind, "apply", lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    net = build_net("cifar10", 8, shortcut="B", generator=seeded(1))
    cpu.KernelNet(net, KERNELS)(noise(2, 3, 16, 16))
    # Of seven 3x3 convolutions the first has three channels, and two have stride 2.
    assert (calls.count("_Convolve"), calls.count("_Normalise")) == (4, 7)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, shortcut, upstream = (maps(10, 32, 8, torch.float32, seed) for seed in (1, 2, 3))
    told = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        fused, _ = norms(32)
        leaves = x.clone().requires_grad_(), filters(32, 32).requires_grad_()
        y, _ = relu(fused, cpu._Convolve.apply(KERNELS.library, *leaves), shortcut)
        gradients = torch.autograd.grad(y, (*leaves, *fused.parameters()), upstream)
        told.append((y.detach(), *gradients, fused.running_mean, fused.running_var))
    for other in told[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, told[0], strict=True))


def gradients(model: Net | cpu.KernelNet, images: Tensor) -> dict[str, Tensor]:
    """Loss, gradients and running averages of one training pass."""
    net = model.net if isinstance(model, cpu.KernelNet) else model
    logits = model(images)
    loss = F.cross_entropy(logits.to(images.dtype), torch.arange(len(images)) % logits.shape[1])
    loss.backward()
    told = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach()} | told | dict(net.named_buffers())


NETS: dict[str, Callable[[], Net]] = {
    "plain": lambda: build_net("cifar10", 14, plain=True, generator=seeded(3)),
    "A": lambda: build_net("cifar10", 14, generator=seeded(3)),
    "C": lambda: build_net("cifar10", 8, shortcut="C", generator=seeded(3)),
    "imagenet": lambda: build_net("imagenet", 18, num_classes=10, generator=seeded(3)),
    "bottleneck": lambda: build_net("imagenet", 50, num_classes=10, generator=seeded(3)),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_step_with_kernels_is_the_eager_step_to_rounding(kind: str) -> None:
    """Against the same step in double precision, both err alike; where rounding opens or closes a single
    ReLU, the gradients of the layers before it change by a thousandth."""
    usual, fused = (NETS[kind]().to(memory_format=torch.channels_last) for _ in range(2))
    disturb(usual)
    disturb(fused)
    exact_net = NETS[kind]().double()
    exact_net.load_state_dict(usual.state_dict())
    side = 64 if kind in ("imagenet", "bottleneck") else 16
    images = noise(8, 3, side, side)
    exact = gradients(exact_net, images.double())
    eager, ours = (gradients(net, images) for net in (usual, cpu.KernelNet(fused, KERNELS)))
    assert exact.keys() == eager.keys() == ours.keys()

    def error(told: dict[str, Tensor], name: str) -> float:
        return float((told[name].double() - exact[name]).norm() / exact[name].double().norm().clamp_min(1e-3))

    usual_errors, errors = ([error(told, name) for name in exact] for told in (eager, ours))
    assert statistics.median(errors) < 2 * statistics.median(usual_errors)
    assert max(errors) < max(3 * max(usual_errors), 5e-3)
    assert error(ours, "loss") < 1e-6


# --- compiling -------------------------------------------------------------------------------------


def test_they_are_compiled_once_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_folder() / "kernels" / f"{cpu.load_kernels().key}.so"
    made = path.stat().st_mtime_ns
    assert cpu.load_kernels().key == KERNELS.key
    assert path.stat().st_mtime_ns == made
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    key = cpu._key(["cc"], [])
    monkeypatch.setattr(cpu, "FLAGS", (*cpu.FLAGS, "-DOTHER"))
    assert cpu._key(["cc"], []) != key


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "no C compiler"),
        ('[ "$1" = --version ] || { echo "x.c:1: error: no such" >&2; exit 1; }', "error: no such"),
        ("exit 0", "do not load|cannot be written"),
    ],
)
def test_a_compiler_that_is_missing_or_broken_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = tmp_path / "broken"
    monkeypatch.setenv("CC", str(compiler))
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    with pytest.raises(cpu.NoCompiler, match=words):
        cpu.load_kernels()


@pytest.mark.parametrize(
    ("given", "found"),
    [("env gcc", ["env", "gcc"]), ("", None), (" ", None), ("nobody -O2", r"no C compiler \(nobody\)")],
)
def test_the_compilers_command_may_have_arguments(given, found, monkeypatch):
    monkeypatch.setenv("CC", given)
    monkeypatch.setattr("shutil.which", lambda name: name if name in ("env", "cc") else None)
    if isinstance(found, str):
        with pytest.raises(cpu.NoCompiler, match=found):
            cpu._compiler()
    else:
        assert cpu._compiler() == (found or ["cc"])
