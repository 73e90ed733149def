"""The layers of the nets against ordinary BN and statistics worked out by hand; copies for evaluation."""

import copy
from collections.abc import Callable

import pytest
import torch
from seeds import disturb, seeded
from torch import Tensor, nn

from resrepro.nets import Net, build_net
from resrepro.nets.layers import GroupedBatchNorm2d, averaging, folded, norms_of

MOMENTUM = 0.3


def images(count: int, channels: int = 5, size: int = 6) -> Tensor:
    """Maps of which each image has a mean and a spread of its own."""
    x = torch.randn(count, channels, size, size, generator=seeded(count))
    place = torch.arange(float(count)).reshape(count, 1, 1, 1)
    return x * (1 + place) + 2 * place


def statistics_of(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Mean over the groups of their means and of their variances (of a sample: divided by n - 1)."""
    parts = [x[start : start + group].double() for start in range(0, len(x), group)]
    means = [part.mean((0, 2, 3)) for part in parts]
    variances = []
    for part, mean in zip(parts, means, strict=True):
        squares = (part - mean[:, None, None]).square().sum((0, 2, 3))
        variances.append(squares / (part[:, 0].numel() - 1))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def disturbed_norm(group: int = 0, batch: int = 0) -> GroupedBatchNorm2d:
    norm = GroupedBatchNorm2d(5, group, batch, momentum=MOMENTUM)
    disturb(norm)
    return norm


def assert_averages(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    torch.testing.assert_close(norm.running_mean.double(), mean.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), var.double(), rtol=1e-5, atol=1e-5)


# --- groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 4])
def test_each_group_is_normalised_by_its_own_statistics(group: int) -> None:
    grouped, ordinary = disturbed_norm(group), nn.BatchNorm2d(5)
    ordinary.load_state_dict(grouped.state_dict())
    x = images(8).requires_grad_()
    parts = torch.cat([ordinary(part) for part in x.split(group)])
    assert (parts - ordinary(x)).abs().max() > 0.1
    torch.testing.assert_close(grouped(x), parts)
    weights = torch.randn(x.shape, generator=seeded(1))
    (ours,) = torch.autograd.grad((grouped(x) * weights).sum(), x)
    (wanted,) = torch.autograd.grad((parts * weights).sum(), x)
    torch.testing.assert_close(ours, wanted)


def test_it_is_ordinary_bn_in_evaluation_and_with_no_group() -> None:
    x = torch.randn(6, 5, 4, 4, generator=seeded(8)) + 2  # six is no multiple of four
    grouped, ordinary = disturbed_norm(4), nn.BatchNorm2d(5)
    ordinary.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(grouped.eval()(x), ordinary.eval()(x))
    torch.testing.assert_close(GroupedBatchNorm2d(5)(x), nn.BatchNorm2d(5)(x))


# --- several passes of one update -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "passes", "equal_group"),
    [(4, (8, 4), 4), (2, (4, 4, 4), 2), (0, (6, 6), 6), (0, (12,), 12)],
)
def test_the_averages_do_not_depend_on_how_an_update_is_cut_into_passes(
    group: int, passes: tuple[int, ...], equal_group: int
) -> None:
    at_once, in_passes = disturbed_norm(equal_group), disturbed_norm(group, 12)
    mean, var = in_passes.running_mean.clone(), in_passes.running_var.clone()
    for update in range(3):
        x = images(12) + update
        whole = at_once(x)
        torch.testing.assert_close(torch.cat([in_passes(part) for part in x.split(passes)]), whole)
        now = statistics_of(x, equal_group)
        mean = (1 - MOMENTUM) * mean + MOMENTUM * now[0]
        var = (1 - MOMENTUM) * var + MOMENTUM * now[1]
        assert_averages(in_passes, mean, var)
        assert_averages(at_once, mean, var)


# --- copies for evaluation --------------------------------------------------------------------------

NETS: dict[str, Callable[[], Net]] = {
    "plain": lambda: build_net("cifar10", 8, plain=True),
    "A": lambda: build_net("cifar10", 8),
    "C": lambda: build_net("cifar10", 8, shortcut="C"),
    "basic": lambda: build_net("imagenet", 18, num_classes=7),
    "bottleneck": lambda: build_net("imagenet", 50, num_classes=7),
}


def inside(net: nn.Module) -> dict[str, object]:
    """All that a net and its layers hold, but for the tensors."""
    return {
        f"{name}.{key}": value
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


def assert_untouched(net: nn.Module, before: nn.Module) -> None:
    assert inside(net) == inside(before)
    assert net.state_dict().keys() == before.state_dict().keys()
    assert all(map(torch.equal, net.state_dict().values(), before.state_dict().values()))


@pytest.mark.parametrize("kind", NETS)
def test_a_folded_copy_gives_the_same_logits_without_a_bn_layer(kind: str) -> None:
    torch.manual_seed(0)
    net = NETS[kind]().double()
    disturb(net)
    before = copy.deepcopy(net)
    pictures = torch.randn(2, 3, 64, 64, generator=seeded(1)).double()
    with torch.inference_mode():
        other = folded(net)
        logits = other(pictures)
    assert_untouched(net, before)
    assert not [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.inference_mode():
        torch.testing.assert_close(logits, net.eval()(pictures), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [0, 4])
def test_plain_averages_are_the_mean_of_the_statistics_of_all_passes(group: int) -> None:
    net = build_net("digits", 8, shortcut="B", bn_group=group, bn_batch=24, generator=seeded(3))
    disturb(net)
    before = copy.deepcopy(net.eval())
    other = averaging(net)
    seen: dict[nn.BatchNorm2d, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms_of(other)}

    def note(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        seen[norm].append(statistics_of(arguments[0].detach(), 8))

    for norm in seen:
        norm.register_forward_pre_hook(note)
    with torch.no_grad():
        for number in range(3):
            other(images(8, 3, 16) + number)
    for norm, passes in seen.items():
        assert len(passes) == 3
        mean, var = (torch.stack(list(each)).mean(0) for each in zip(*passes, strict=True))
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-4)
    assert_untouched(net, before)
