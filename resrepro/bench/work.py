"""The arithmetic of a training step, counted from the layers without building the net.

An operation is a multiplication or an addition, hence a multiply-add is two. Backward takes each
convolution twice, once for the gradient of its weights and once for that of its input; the first
convolution has images as input, whose gradient nobody needs.
"""

from resrepro.spec.architectures import count_multiply_adds

WIDTHS = ((16, 32), (32, 16), (64, 8))  # channels and side of the maps of each stage, Section 4.2
CLASSES = 10
PASSES = 3  # forward, gradient of the weights, gradient of the input
FORWARD_SHARE = 1 / PASSES  # of a training step, that measuring an image costs


def multiply_adds(depth: int) -> int:
    """Multiply-adds of one image through a CIFAR net, plain or with shortcuts of option A.

    Of convolutions and the fully connected layer, as `resrepro describe` counts.
    """
    per_stage = (depth - 2) // 3  # convolutions
    total, inputs = first_convolution(), WIDTHS[0][0]
    for channels, size in WIDTHS:
        total += count_multiply_adds(3, inputs, channels, size)
        total += (per_stage - 1) * count_multiply_adds(3, channels, channels, size)
        inputs = channels
    return total + count_multiply_adds(1, inputs, CLASSES, 1)


def first_convolution() -> int:
    """Those of the first convolution alone."""
    channels, size = WIDTHS[0]
    return count_multiply_adds(3, 3, channels, size)


def step_operations(depth: int) -> int:
    """Operations of a training step, per image."""
    return 2 * (PASSES * multiply_adds(depth) - first_convolution())
