"""The arithmetic of a training step, counted from the layers without building the net.

An operation is a multiplication or an addition, hence a multiply-add is two. Backward takes each
convolution twice, once for the gradient of its weights and once for that of its input; the first
convolution has images as input, whose gradient nobody needs.
"""

from resrepro.spec.architecture import Architecture, architecture_of
from resrepro.spec.catalogue import experiment_for

PASSES = 3  # forward, gradient of the weights, gradient of the input
FORWARD_SHARE = 1 / PASSES  # of a training step, that measuring an image costs


def multiply_adds(depth: int) -> int:
    """Multiply-adds of one image through a CIFAR net, plain or with shortcuts of option A."""
    return _net(depth).multiply_adds


def first_convolution() -> int:
    """Those of the first convolution alone."""
    return _net(20).layer("conv1").multiply_adds


def _net(depth: int) -> Architecture:
    return architecture_of(experiment_for("cifar10", depth))


def step_operations(depth: int) -> int:
    """Operations of a training step, per image."""
    return 2 * (PASSES * multiply_adds(depth) - first_convolution())
