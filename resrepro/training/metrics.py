"""Loss and top-k errors, summed on the device and read only when somebody looks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Mean loss, and errors in percent, over `count` images."""

    loss: float
    top1_err: float
    top5_err: float
    count: int


class ErrorSums:
    """Running sums of loss and wrong answers; `add` never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        # float32 counts exactly up to 16.7 million images; MPS has no float64.
        self.sums = torch.zeros(3, device=device)
        self.count = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, classes) and labels (N,)."""
        n = len(labels)
        # An image is right at k if its label is among the k highest logits (all, if there are fewer).
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        right1, right5 = right[:, 0].sum(), right.sum()
        self.sums += torch.stack((loss.float() * n, n - right1.float(), n - right5.float()))
        self.count += n

    def read(self) -> Errors:
        """The means so far; waits for the device. All zero images give NaN."""
        loss, wrong1, wrong5 = self.sums.tolist()
        n = self.count or float("nan")
        return Errors(loss / n, 100 * wrong1 / n, 100 * wrong5 / n, self.count)

    def reset(self) -> None:
        """Start again from zero."""
        self.sums.zero_()
        self.count = 0
