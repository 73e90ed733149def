"""The nets' convolutions: PyTorch's, and what computes them faster on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.nets.cpu.convolving import Convolver


class Convolution(nn.Conv2d):
    """A convolution without bias.

    Attributes:
        wide: in bf16, take the gradient of the weights in float32 where the stride is not 1: faster on a
            CPU, whose bf16 kernel for strides is slow (docs/performance.md), and no less exact.
        folded: weights and bias that BN is part of, in evaluation.
        kernels: what computes it in training, where it can.
    """

    wide = False
    kernels: Convolver | None = None
    folded: tuple[Tensor, Tensor] | None = None

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, channels, kernel, stride, padding, bias=False)
        self._fits = (kernel, stride, padding) == (3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, about H / stride, about W / stride)."""
        if self.folded is not None:
            return F.conv2d(x, *self.folded, self.stride, self.padding)
        if self._fits and self.kernels and self.kernels.takes(x, self.weight) and torch.is_grad_enabled():
            return self.kernels.convolve(x, self.weight)
        if self.wide and x.dtype == torch.bfloat16 and self.stride != (1, 1) and torch.is_grad_enabled():
            convolved: Tensor = _WideGradient.apply(x, self.weight, self.stride, self.padding)
            return convolved
        return super().forward(x)


class _WideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        return F.conv2d(x, narrow, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors

        def gradients(*tensors: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
            shape = ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(*tensors, None, *shape, (*wanted, False))
            return of_x, of_weight

        of_x, _ = gradients(gradient, x, narrow, wanted=(ctx.needs_input_grad[0], False))
        wide = gradient.float(), x.float(), narrow.float()
        _, of_weight = gradients(*wide, wanted=(False, ctx.needs_input_grad[1]))
        return of_x, of_weight, None, None
