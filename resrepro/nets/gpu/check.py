"""Whether the kernels compute on this GPU what PyTorch computes: one update of a small net, before a run."""

import copy
import functools
import math

import torch
from torch.nn import functional as F

from resrepro.nets import build_net
from resrepro.nets.gpu import Lanes

DEPTH, IMAGES = 8, 32
# How far, of its length, the gradient may be from PyTorch's; its own in bf16 is off by up to 0.2 (measured).
TOLERANCE = {"float32": 1e-3, "tf32": 0.1, "bf16": 0.3}


@functools.cache
def disagreement(device: torch.device, side: int, precision: str) -> str:
    """Why the kernels are not to be used for images of `side` pixels; empty if they compute the right thing.

    What does not compile, or cannot be launched, counts as wrong.
    """
    try:
        error = gradient_error(device, side, precision)
    except Exception as trouble:  # of a compiler, a driver, a GPU that nobody has tried
        return f"our kernels do not run on this GPU ({type(trouble).__name__}: {str(trouble).strip()[:100]})"
    if error <= TOLERANCE[precision]:
        return ""
    return f"our kernels disagree with PyTorch on this GPU (gradients differ by {error:.1e})"


def gradient_error(device: torch.device, side: int, precision: str) -> float:
    """The distance of a net's gradient from PyTorch's, relative: the larger of a plain and a residual net."""
    source = torch.Generator().manual_seed(0)
    nets = [build_net("cifar10", DEPTH, plain, generator=source).to(device) for plain in (True, False)]
    references = copy.deepcopy(nets)
    optimizers = [torch.optim.SGD(net.parameters(), 1.0) for net in nets]
    for optimizer, net in zip(optimizers, nets, strict=True):
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    before = copy.deepcopy(nets)
    lanes = Lanes(nets, optimizers, IMAGES, side, precision)
    images = torch.randn(2, IMAGES, 3, side, side, generator=source).to(device)
    lanes.x.view(2, IMAGES, side, side, -1)[..., :3] = images.permute(0, 1, 3, 4, 2)
    lanes.truth.copy_(torch.randint(10, (2, IMAGES), generator=source))
    lanes.rates.fill_(1.0)
    lanes.update()
    errors = list[float]()
    for lane, (net, reference) in enumerate(zip(nets, references, strict=True)):
        loss = F.cross_entropy(reference.train()(images[lane]), lanes.truth[lane])
        gradient = torch.autograd.grad(loss, list(reference.parameters()))
        wanted = torch.cat([part.flatten() for part in gradient])
        moved = zip(before[lane].parameters(), net.parameters(), strict=True)
        found = torch.cat([(old - new).flatten() for old, new in moved])
        errors.append(((found - wanted).norm() / wanted.norm()).item())
    return max(errors, key=lambda error: (math.isnan(error), error))
