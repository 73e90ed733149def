"""3x3 convolutions of stride 1 by Winograd's method, as one differentiable operation on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from resrepro.nets.cpu.building import Kernels
from resrepro.nets.cpu.layout import KINDS, laid_out, places

LANES = 16  # channels at a time in conv.c
TILE = 4  # outputs of a tile in each direction
MOST = 128  # channels: the transformed filters of more do not stay in the cache


class Convolver:
    """The kernels as PyTorch operations."""

    def __init__(self, kernels: Kernels) -> None:
        self.library = kernels.library

    def takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the kernels are made for a map (N, C_in, H, W) and filters (C, C_in, 3, 3) of padding 1."""
        height, width = x.shape[2:]
        return (
            x.device.type == "cpu"
            and x.dtype in KINDS
            and weight.dtype == torch.float32
            and height % TILE == width % TILE == 0
            and all(count % LANES == 0 and count <= MOST for count in weight.shape[:2])
        )

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """(N, C_in, H, W), float32 or bf16, and float32 filters (C, C_in, 3, 3) -> (N, C, H, W) of x's type.

        Padding is 1. Computed in float32 throughout.
        """
        convolved: Tensor = _Convolve.apply(self.library, x, weight)
        return convolved


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = laid_out(x), laid_out(weight)
        ctx.library = library
        ctx.save_for_backward(x, weight)
        return _convolve(library, x, weight, turned=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = laid_out(gradient)
        _, of_data, of_filters = ctx.needs_input_grad
        of_x = _convolve(ctx.library, gradient, weight, turned=True) if of_data else None
        of_weight = _correlate(ctx.library, x, gradient, weight) if of_filters else None
        return None, of_x, of_weight


def _convolve(library: ctypes.CDLL, x: Tensor, weight: Tensor, *, turned: bool) -> Tensor:
    """x with the filters, or `turned` the gradient of the outputs with the filters turned round."""
    images, inputs, height, width = x.shape
    outputs, threads = weight.shape[1 if turned else 0], torch.get_num_threads()
    filters = torch.empty(36 * inputs * outputs)
    library.prepare(*places(weight, filters), weight.shape[1], weight.shape[0], int(turned))
    y = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    buffers = torch.empty(threads * library.scratch(width, inputs, outputs, 1))
    kernel = getattr(library, f"convolve_{KINDS[x.dtype]}")
    kernel(*places(x, filters, y, buffers), images, height, width, inputs, outputs, threads)
    return y


def _correlate(library: ctypes.CDLL, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the filters."""
    images, inputs, height, width = x.shape
    outputs, threads = gradient.shape[1], torch.get_num_threads()
    of_weight = torch.empty_like(weight)
    buffers = torch.empty(threads * library.scratch(width, inputs, outputs, 0))
    partial = torch.empty(library.parts() * weight.numel())
    kernel = getattr(library, f"correlate_{KINDS[x.dtype]}")
    kernel(*places(x, gradient, of_weight, buffers, partial), images, height, width, inputs, outputs, threads)
    return of_weight
