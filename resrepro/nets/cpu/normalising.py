"""BN with ReLU, and with a shortcut's addition, as one differentiable operation on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from resrepro.nets.cpu.building import Kernels
from resrepro.nets.cpu.layout import KINDS, laid_out, places

LEAST = 64  # values of a row in norm.c


class Normaliser:
    """The kernels as PyTorch operations."""

    def __init__(self, kernels: Kernels) -> None:
        self.library = kernels.library

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels are made for such a map: (N, C, H, W) on the CPU, of a type and size."""
        channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
        fits = LEAST % channels == 0 or channels % LEAST == 0
        return (
            x.device.type == "cpu"
            and x.dtype in KINDS
            and fits
            and pixels * channels % max(channels, LEAST) == 0
            and len(x) * pixels > 1
        )

    def relu(
        self,
        x: Tensor,
        shortcut: Tensor | None,
        affine: tuple[Tensor, Tensor],
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """`relu(BN(x) + shortcut)` for its two uses: the same numbers, their gradients added in passing.

        x and shortcut are (N, C, H, W) of one type; weight, bias and the running averages, which are
        brought up to date, are (C,) float32.
        """
        given = (x, shortcut, *affine)
        both: tuple[Tensor, Tensor] = _Normalise.apply(self.library, running, momentum, eps, *given)
        return both


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
        x: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = laid_out(x)
        shortcut = None if shortcut is None else laid_out(shortcut.to(x.dtype))
        width = max(x.shape[1], LEAST)
        y = torch.empty_like(x)
        saved, partial = torch.empty(4, width), torch.empty(len(x), 2, width)
        getattr(library, f"forward_{KINDS[x.dtype]}")(
            *places(x, shortcut, y, weight, bias, *running, saved, partial), momentum, eps, *_sizes(x)
        )
        ctx.library, ctx.added = library, shortcut is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, saved, *([y] if ctx.added else []))
        return y, y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, saved, *y = ctx.saved_tensors
        dy, *side = [laid_out(gradient) for gradient in gradients if gradient is not None]
        if side and not ctx.added:  # as no block has it; norm.c adds only on the way through a shortcut
            dy, side = dy + side[0], []
        width = max(x.shape[1], LEAST)
        dx, shortcut = torch.empty_like(x), torch.empty_like(x) if ctx.added else None
        weight, bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        factors, partial = torch.empty(3, width), torch.empty(len(x), 2, width)
        getattr(ctx.library, f"backward_{KINDS[x.dtype]}")(
            *places(
                dy, side[0] if side else None, y[0] if y else None, x, dx, shortcut, saved, weight, bias,
                factors, partial,
            ),
            *_sizes(x),
        )  # fmt: skip
        return None, None, None, None, dx, shortcut, weight, bias


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Images, pixels, channels, threads."""
    return len(x), x.shape[2] * x.shape[3], x.shape[1], torch.get_num_threads()
