"""Stochastic gradient descent with momentum, in the forms in which it is written (Section 3.4)."""

import torch
from torch import nn

from resrepro.spec.recipe import Recipe


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over all parameters; weight decay on BN and biases only if the recipe says so."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]  # BN scales and shifts, and the fc bias
    other_decay = recipe.weight_decay if recipe.decay_bn_bias else 0.0
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": other_decay},
    ]
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum_form == "nesterov",
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.SGD, lr: float, momentum_form: str) -> None:
    """Set the rate of the next update.

    PyTorch keeps u = m u + g and steps by lr u; Caffe keeps v = m v + lr g and steps by v. While the
    rate is constant v = lr u and both are the same. When it changes, the Caffe form carries v over,
    so u is rescaled by old / new.
    """
    for group in optimizer.param_groups:
        old = group["lr"]
        if old == lr:
            continue
        group["lr"] = lr
        if momentum_form == "caffe":
            for parameter in group["params"]:
                buffer = optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    buffer.mul_(old / lr)
