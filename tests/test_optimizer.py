"""SGD against its forms written out by hand."""

import pytest
import torch
from torch import Tensor, nn

from resrepro.nets import build_net
from resrepro.spec import catalogue
from resrepro.spec.recipe import Recipe
from resrepro.training.optimizer import make_optimizer, set_learning_rate

RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.1, 0.1]  # falling, and rising as after a warm-up


def recipe_with(**settings: object) -> Recipe:
    return catalogue.derive(catalogue.find("cifar10-resnet20"), **settings).recipe


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def gradients(net: nn.Module) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in RATES]


def walk(recipe: Recipe) -> list[Tensor]:
    """The parameters after an update with each of the rates and gradients."""
    net = small_net()
    optimizer = make_optimizer(net, recipe)
    for rate, step in zip(RATES, gradients(net), strict=True):
        for parameter, gradient in zip(net.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        set_learning_rate(optimizer, rate, recipe.momentum_form)
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def by_hand(form: str, momentum: float, decay: float, decay_all: bool = True) -> list[Tensor]:
    net = small_net()
    found = []
    steps = gradients(net)
    for index, parameter in enumerate(net.parameters()):
        w = parameter.detach().double()
        v = torch.zeros_like(w)
        own_decay = decay if decay_all or w.ndim > 1 else 0.0
        for rate, step in zip(RATES, steps, strict=True):
            g = step[index].double() + own_decay * w
            if form == "caffe":  # SGDSolver: history = momentum * history + rate * gradient; w -= history
                v = momentum * v + rate * g
                w = w - v
            elif form == "torch":
                v = momentum * v + g
                w = w - rate * v
            else:
                v = momentum * v + g
                w = w - rate * (g + momentum * v)
        found.append(w.float())
    return found


@pytest.mark.parametrize("form", ["caffe", "torch", "nesterov"])
def test_each_momentum_form_takes_the_steps_of_its_formula_also_across_rate_changes(form: str) -> None:
    for ours, wanted in zip(walk(recipe_with(momentum_form=form)), by_hand(form, 0.9, 1e-4), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_the_forms_differ_once_the_rate_changes() -> None:
    ends = [torch.cat([p.flatten() for p in walk(recipe_with(momentum_form=form))])
            for form in ("caffe", "torch", "nesterov")]  # fmt: skip
    assert min(float((a - b).abs().max()) for a, b in zip(ends, ends[1:] + ends[:1], strict=True)) > 0.01


@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_reaches_bn_and_biases_only_if_the_recipe_says_so(decay_all: bool) -> None:
    ours = walk(recipe_with(weight_decay=0.3, decay_bn_bias=decay_all))
    for mine, wanted in zip(ours, by_hand("caffe", 0.9, 0.3, decay_all), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
    other = by_hand("caffe", 0.9, 0.3, not decay_all)
    apart = [float((a - b).abs().max()) > 1e-3 for a, b in zip(ours, other, strict=True)]
    assert apart == [False, True, True, False, True]  # conv | BN scale, BN shift | fc weight | fc bias


def test_every_parameter_of_a_net_is_updated_once() -> None:
    net = build_net("digits", 8, shortcut="B")
    optimizer = make_optimizer(net, recipe_with())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


def test_without_momentum_a_step_is_the_rate_times_the_decayed_gradient() -> None:
    for ours, wanted in zip(walk(recipe_with(momentum=0.0)), by_hand("torch", 0.0, 1e-4), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
