"""Measuring a net on images: single view, top-1 and top-5 error (Section 4.2)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.data import Images
from resrepro.data.batches import Preparation
from resrepro.device import arithmetic
from resrepro.metrics import Errors, ErrorSums

EVAL_BATCH = 500  # images; large enough to keep the cores busy, small enough for caches and memory


def on_device(images: Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) uint8 and labels (N,) int64 as tensors on the device."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(device)
    return pixels, torch.from_numpy(np.ascontiguousarray(images.labels)).to(device)


def measure(
    net: nn.Module, pixels: Tensor, labels: Tensor, preparation: Preparation, precision: str = "float32"
) -> Errors:
    """Loss and errors of the net in evaluation mode; the net is left in the mode it was in."""
    sums = ErrorSums(pixels.device)
    was_training = net.training
    net.eval()
    with torch.inference_mode(), arithmetic(precision, pixels.device):
        for part, truth in zip(torch.split(pixels, EVAL_BATCH), torch.split(labels, EVAL_BATCH), strict=True):
            logits = net(preparation.test(part)).float()
            sums.add(F.cross_entropy(logits, truth), logits, truth)
    net.train(was_training)
    return sums.read()
