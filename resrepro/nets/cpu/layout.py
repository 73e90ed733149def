"""How tensors are handed to the kernels."""

import torch
from torch import Tensor

KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def laid_out(x: Tensor) -> Tensor:
    """x with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def places(*tensors: Tensor | None) -> list[int | None]:
    """Where the numbers of tensors lie; None for one that is not there."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
