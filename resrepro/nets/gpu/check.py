"""Whether the kernels compute on this GPU what PyTorch computes: two updates of small nets, before a run."""

import copy
import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.errors import ResreproError
from resrepro.nets import build_net
from resrepro.nets.gpu import Lanes

DEPTH, IMAGES = 14, 32  # the least depth that has every kind of layer
RATE, MOMENTUM, DECAY = 1e-3, 0.9, 1e-2
# How far, of its length, a net's way may be from PyTorch's in float32, whose own gradients in bf16 are off by
# up to 0.2 (measured).
TOLERANCE = {"float32": 1e-3, "tf32": 0.1, "bf16": 0.3}


@functools.cache
def disagreement(device: torch.device, side: int, precision: str) -> str:
    """Why the kernels are not to be used for images of `side` pixels; empty if they compute the right thing.

    What does not compile, or cannot be launched, counts as wrong. A full memory is raised as it is, and as a
    ResreproError a fault after which this process can use the GPU no more.
    """
    try:
        error = distance(device, side, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as trouble:  # of a compiler, a driver, a GPU that nobody has tried
        told = f"our kernels do not run on this GPU ({type(trouble).__name__}: {str(trouble).strip()[:100]})"
        try:
            torch.zeros(1, device=device).item()
        except RuntimeError:
            raise ResreproError(f"{told}: use --engine graph.") from None
        return told
    if error <= TOLERANCE[precision]:
        return ""
    return f"our kernels disagree with PyTorch on this GPU (updates differ by {error:.1e})"


def distance(device: torch.device, side: int, precision: str) -> float:
    """How far two nets' ways, in parameters and in running averages, are from PyTorch's, of their length."""
    source = torch.Generator().manual_seed(0)
    before = [build_net("cifar10", DEPTH, plain, generator=source).to(device) for plain in (True, False)]
    nets, references = copy.deepcopy(before), copy.deepcopy(before)
    images = torch.randn(2, IMAGES, 3, side, side, generator=source).to(device)
    truth = torch.randint(10, (2, IMAGES), generator=source).to(device)
    lanes = Lanes(nets, [_sgd(net) for net in nets], IMAGES, side, precision)
    lanes.x.view(2, IMAGES, side, side, -1)[..., :3] = images.permute(0, 1, 3, 4, 2)
    lanes.truth.copy_(truth)
    lanes.rates.fill_(RATE)
    for _ in range(2):
        lanes.update()
    errors = list[float]()
    for lane, (net, reference) in enumerate(zip(nets, references, strict=True)):
        optimizer = _sgd(reference)
        with torch.backends.cudnn.flags(allow_tf32=False):
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(reference.train()(images[lane]), truth[lane]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for start, end, wanted in zip(*map(_state, (before[lane], net, reference)), strict=True):
            errors.append(((end - wanted).norm() / (wanted - start).norm()).item())
    return max(errors, key=lambda error: (math.isnan(error), error))


def _sgd(net: nn.Module) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    for parameter in net.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _state(net: nn.Module) -> list[Tensor]:
    """All parameters as one row of numbers, and all running averages."""
    parts = list(net.parameters()), [buffer for buffer in net.buffers() if buffer.ndim]
    return [torch.cat([tensor.detach().flatten() for tensor in part]) for part in parts]
