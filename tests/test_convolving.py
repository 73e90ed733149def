"""The C kernels for 3x3 convolutions against the definition in double precision."""

import pytest
import torch
from seeds import seeded
from torch import Tensor
from torch.nn import functional as F

from resrepro.nets.convolution import Convolution
from resrepro.nets.cpu import NoCompiler, load_kernels
from resrepro.nets.cpu.convolving import Convolver

try:
    KERNELS = load_kernels()
except NoCompiler as missing:
    pytest.skip(f"no kernels here: {missing}", allow_module_level=True)

# Images, channels in and out, height, width: of the nets for CIFAR, digits and ImageNet, and odd ones.
SIZES = [
    (5, 16, 16, 32, 32), (6, 32, 32, 16, 16), (7, 64, 64, 8, 8), (9, 64, 64, 4, 4), (2, 64, 64, 56, 56),
    (1, 128, 128, 28, 28), (1, 16, 16, 4, 4), (3, 48, 16, 8, 12), (4, 16, 80, 12, 4), (17, 32, 16, 20, 8),
]  # fmt: skip
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of one standard deviation


def maps(count: int, channels: int, height: int, width: int, kind: torch.dtype, seed: int) -> Tensor:
    x = torch.randn(count, channels, height, width, generator=seeded(seed))
    return x.to(kind).contiguous(memory_format=torch.channels_last)


def filters(outputs: int, inputs: int) -> Tensor:
    return 0.1 * torch.randn(outputs, inputs, 3, 3, generator=seeded(9))


def close(ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    deviation = wanted.std()
    torch.testing.assert_close(ours.double() / deviation, wanted / deviation, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", TOLERANCES, ids=str)
@pytest.mark.parametrize(("images", "inputs", "outputs", "height", "width"), SIZES)
def test_values_and_gradients_are_those_of_the_definition(
    images: int, inputs: int, outputs: int, height: int, width: int, kind: torch.dtype
) -> None:
    x = maps(images, inputs, height, width, kind, 1).requires_grad_()
    upstream = maps(images, outputs, height, width, kind, 2)
    weight = filters(outputs, inputs).requires_grad_()
    convolver = Convolver(KERNELS)
    assert convolver.takes(x, weight)
    y = convolver.convolve(x, weight)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert y.dtype == kind
    close(y.detach(), exact.detach(), TOLERANCES[kind])

    of_x, of_weight = torch.autograd.grad(y, (x, weight), upstream)
    x_exact, weight_exact = torch.autograd.grad(exact, (x, weight), upstream.double())
    assert (of_x.dtype, of_weight.dtype) == (kind, torch.float32)
    close(of_x, x_exact.double(), TOLERANCES[kind])
    close(of_weight, weight_exact.double(), 1e-4)  # bf16 maps too: it is summed in float32


def test_in_bf16_it_is_as_exact_as_pytorchs_own() -> None:
    x, weight = maps(8, 64, 8, 8, torch.bfloat16, 1), filters(64, 64)
    exact = F.conv2d(x.double(), weight.double(), padding=1)

    def error(y: Tensor) -> float:
        return float((y.double() - exact).norm())

    usual = F.conv2d(x, weight.bfloat16(), padding=1)
    assert error(Convolver(KERNELS).convolve(x, weight)) < error(usual)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, upstream = (maps(10, 32, 8, 8, torch.float32, seed) for seed in (1, 2))
    weight, told = filters(32, 32), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = Convolver(KERNELS).convolve(*leaves)
        told.append((y.detach(), *torch.autograd.grad(y, leaves, upstream)))
    for other in told[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, told[0], strict=True))


def test_maps_in_another_layout_are_taken_too() -> None:
    x, weight = torch.randn(3, 16, 8, 8, generator=seeded(1)), filters(16, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    convolver = Convolver(KERNELS)
    assert torch.equal(convolver.convolve(x, weight), convolver.convolve(last, weight))


def test_a_pixel_that_is_no_number_is_not_lost() -> None:
    x = maps(2, 16, 12, 12, torch.float32, 1)
    x[1, 3, 5, 5] = float("nan")
    y = Convolver(KERNELS).convolve(x, filters(16, 16))
    assert y[1, :, 4:7, 4:7].isnan().all()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("wanted", [0, 1], ids=["data", "filters"])
def test_only_the_gradient_that_is_wanted_is_taken(wanted: int) -> None:
    leaves = maps(2, 16, 8, 8, torch.float32, 1), filters(16, 16)
    leaves[wanted].requires_grad_()
    Convolver(KERNELS).convolve(*leaves).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [wanted == 0, wanted == 1]


@pytest.mark.parametrize(
    ("shape", "outputs", "kind"),
    [((4, 3, 8, 8), 16, torch.float32), ((4, 16, 8, 8), 24, torch.float32),
     ((4, 16, 10, 8), 16, torch.float32),
     ((4, 16, 8, 14), 16, torch.float32), ((1, 256, 8, 8), 256, torch.float32),
     ((4, 16, 8, 8), 16, torch.float16), ((4, 16, 8, 8), 16, torch.float64)],
)  # fmt: skip
def test_other_maps_are_left_to_pytorch(shape: tuple[int, ...], outputs: int, kind: torch.dtype) -> None:
    assert not Convolver(KERNELS).takes(torch.zeros(shape, dtype=kind), filters(outputs, shape[1]))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ours"),
    [(3, 1, 1, True), (3, 2, 1, False), (1, 1, 0, False), (3, 1, 0, False)],
)
def test_a_layer_uses_them_in_training_where_they_fit(
    kernel: int, stride: int, padding: int, ours: bool
) -> None:
    layer = Convolution(16, 16, kernel, stride, padding)
    layer.kernels = Convolver(KERNELS)
    x = maps(2, 16, 8, 8, torch.float32, 1)
    assert ("Convolve" in layer(x).grad_fn.name()) == ours
    with torch.no_grad():
        usual = F.conv2d(x, layer.weight, stride=stride, padding=padding)
        assert torch.equal(layer(x), usual)
