"""The arithmetic of a training step: forward, gradient of the weights, gradient of the input."""

FORWARD_SHARE = 1 / 3  # of a training step, that measuring an image costs
