"""The learning rate: schedules, warm-up, plateaus; and SGD against its forms written out by hand."""

import dataclasses

import pytest
import torch
from torch import nn

from resrepro.nets import build_net
from resrepro.spec import catalogue
from resrepro.spec.recipe import ImageNetRecipe
from resrepro.training.updates import Plateau, learning_rate, make_optimizer, set_learning_rate

# --- schedule --------------------------------------------------------------------------------------

PAPER = catalogue.find("cifar10-resnet56").spec().recipe
WARM = catalogue.find("cifar10-resnet110").spec().recipe


@pytest.mark.parametrize(
    ("update", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_the_rate_drops_after_32k_and_48k_updates(update, rate):
    assert learning_rate(PAPER, update) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("iterations", "rates"), [(1, [0.1]), (2, [0.1, 0.01]), (5, [0.1, 0.1, 0.1, 0.01, 0.001])]
)
def test_a_shortened_run_drops_at_one_half_and_three_quarters(iterations, rates):
    recipe = PAPER.shortened_to(iterations)
    assert [learning_rate(recipe, k) for k in range(iterations)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("iterations", "every"),
    [(64_000, 1000), (32_001, 1000), (32_000, 1000), (2000, 63), (240, 8), (33, 2), (1, 1)],
)
def test_a_shortened_run_is_sampled_32_times_or_every_1000(iterations, every):
    assert PAPER.shortened_to(iterations).eval_every == every


def test_the_warm_up_rate_holds_until_the_switch_then_the_schedule_goes_on_as_before():
    assert [learning_rate(WARM, k, None) for k in (0, 399, 40_000)] == [0.01] * 3
    assert [learning_rate(WARM, k, 400) for k in (0, 399)] == [0.01] * 2
    after = [learning_rate(WARM, k, 400) for k in (400, 31_999, 32_000, 48_000)]
    assert after == pytest.approx([0.1, 0.1, 0.01, 0.001])


# --- plateau ---------------------------------------------------------------------------------------


def recipe(patience=3, gain=0.5, drops=2):
    found = catalogue.derive(catalogue.find("imagenet-resnet18"), lr_policy="plateau").recipe
    assert isinstance(found, ImageNetRecipe)
    fixed = tuple(range(100, 100 * drops + 1, 100))
    return dataclasses.replace(found, plateau_patience=patience, plateau_gain=gain, lr_drops=fixed)


def drops_of(plateau, errors, first=1):
    """The samples at which it says that the rate drops, counted from `first`, ten updates apart."""
    return [10 * k for k, error in enumerate(errors, first) if plateau.see(10 * k, error)]


@pytest.mark.parametrize(
    ("errors", "drops"),
    [
        ([90, 80, 70, 60, 50, 40, 30, 20], []),  # falls all the time
        ([90, 90, 90, 90], [40]),  # the first is no gain over nothing: three more to wait for
        ([90, 89.5, 89, 88.5, 88], []),  # each just good enough
        ([90, 89.6, 89.6, 89.6], [40]),  # none good enough
        ([90, 89.7, 89.4, 89.1, 88.8], []),  # together they are: 89.4 beats 90, 88.8 beats 89.4
        ([90, 91, 92, 80, 81, 82, 83], [70]),  # a gain starts the waiting anew
        ([50] * 10, [40, 70]),  # after a drop the waiting starts anew; no third, as the recipe has two
        ([50, 51, 52, 53, 52, 51, 50], [40]),  # after a drop the best is that of the drop, 53
        ([50, 51, 52, 53, 53, 53, 53], [40, 70]),
    ],
)
def test_the_rate_drops_after_so_many_samples_without_a_gain(errors, drops):
    plateau = Plateau(recipe())
    assert drops_of(plateau, errors) == drops
    assert plateau.drops == drops


def test_what_a_checkpoint_keeps_is_enough_to_go_on_at_any_sample():
    errors = [70, 60, 60.2, 59.9, 60.4, 50, 49.7, 49.6, 49.9, 48, 48.2]
    for cut in range(11):
        before, after = Plateau(recipe()), Plateau(recipe())
        drops_of(before, errors[:cut])
        after.drops, after.best, after.waited = before.drops, before.best, before.waited
        drops_of(after, errors[cut:], cut + 1)
        assert after.drops == [50, 90]


# --- optimizer -------------------------------------------------------------------------------------

RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.1, 0.1]  # falling, and rising as after a warm-up


def recipe_with(**settings):
    return catalogue.derive(catalogue.find("cifar10-resnet20"), **settings).recipe


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def gradients(net):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in RATES]


def walk(recipe):
    """The parameters after an update with each of the rates and gradients."""
    net = small_net()
    optimizer = make_optimizer(net, recipe)
    for rate, step in zip(RATES, gradients(net), strict=True):
        for parameter, gradient in zip(net.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        set_learning_rate(optimizer, rate, recipe.momentum_form)
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def by_hand(form, momentum, decay, decay_all=True):
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
def test_each_momentum_form_takes_the_steps_of_its_formula_also_across_rate_changes(form):
    for ours, wanted in zip(walk(recipe_with(momentum_form=form)), by_hand(form, 0.9, 1e-4), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_reaches_bn_and_biases_only_if_the_recipe_says_so(decay_all):
    ours = walk(recipe_with(weight_decay=0.3, decay_bn_bias=decay_all))
    for mine, wanted in zip(ours, by_hand("caffe", 0.9, 0.3, decay_all), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
    other = by_hand("caffe", 0.9, 0.3, not decay_all)
    apart = [float((a - b).abs().max()) > 1e-3 for a, b in zip(ours, other, strict=True)]
    assert apart == [False, True, True, False, True]  # conv | BN scale, BN shift | fc weight | fc bias


def test_every_parameter_of_a_net_is_updated_once():
    net = build_net("digits", 8, shortcut="B")
    optimizer = make_optimizer(net, recipe_with())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
