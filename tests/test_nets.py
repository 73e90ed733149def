"""The nets against plain loops written anew from the paper, and against torchvision's block."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from resrepro.errors import UsageError
from resrepro.nets import Block, GroupedBatchNorm2d, ProjectionShortcut, build_net

KINDS = [(None, "trailing"), ("A", "trailing"), ("A", "symmetric"), ("B", "trailing"), ("C", "trailing")]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def disturb(net: nn.Module) -> None:
    """Give BN scales, shifts and running averages values that show when they are misplaced."""
    generator = seeded(99)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.add_(torch.rand(tensor.shape, generator=generator))


def reference(net: nn.Module, x: Tensor, n: int, option: str | None, zeros: str, training: bool) -> Tensor:
    """Logits of a 6n+2-layer net by plain loops over its state dict, as Sections 3.3 and 4.2 tell it."""
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def norm(y: Tensor, at: str) -> Tensor:
        averages = (weights[f"{at}.running_mean"], weights[f"{at}.running_var"])
        return F.batch_norm(y, *averages, weights[f"{at}.weight"], weights[f"{at}.bias"], training)

    def zero_padded(y: Tensor, channels: int) -> Tensor:
        small = F.max_pool2d(y, 1, 2)  # a window of one pixel, every second place
        full = torch.zeros(len(y), channels, *small.shape[2:])
        start = (channels - y.shape[1]) // 2 if zeros == "symmetric" else 0
        full[:, start : start + y.shape[1]] = small
        return full

    x = torch.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for stage in range(3):
        for block in range(n):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage in (1, 2) and block == 0 else 1
            y = F.conv2d(x, weights[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = torch.relu(norm(y, f"{at}.bn1"))
            y = norm(F.conv2d(y, weights[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if option == "C" or (option == "B" and stride == 2):
                projected = F.conv2d(x, weights[f"{at}.shortcut.0.weight"], stride=stride)
                y = y + norm(projected, f"{at}.shortcut.1")
            elif option is not None:
                y = y + (zero_padded(x, y.shape[1]) if stride == 2 else x)
            x = torch.relu(y)
    pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    return pooled @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("option", "zeros"), KINDS)
@pytest.mark.parametrize(("n", "size"), [(1, 32), (3, 16)])
def test_a_net_computes_what_the_paper_describes(
    n: int, size: int, option: str | None, zeros: str, training: bool
) -> None:
    net = build_net(
        "cifar10", 6 * n + 2, option is None, option, option_a_zeros=zeros, generator=seeded(1)
    ).train(training)
    disturb(net)
    images = torch.randn(4, 3, size, size, generator=seeded(2))
    with torch.no_grad():
        wanted = reference(net, images, n, option, zeros, training)
        torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-4)


def test_the_options_and_the_place_of_the_zeros_make_different_nets() -> None:
    images = torch.randn(4, 3, 32, 32, generator=seeded(2))
    outputs = []
    with torch.no_grad():
        for option, zeros in KINDS:
            net = build_net("cifar10", 8, option is None, option, option_a_zeros=zeros, generator=seeded(1))
            outputs.append(net.eval()(images))
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-3


def test_a_plain_net_is_the_residual_net_without_the_additions() -> None:
    plain = build_net("cifar10", 20, plain=True, generator=seeded(3))
    residual = build_net("cifar10", 20, generator=seeded(3))
    images = torch.randn(4, 3, 32, 32, generator=seeded(4))
    with torch.no_grad():
        assert (plain(images) - residual(images)).abs().max() > 1e-3
        residual.load_state_dict(plain.state_dict())  # same names, same shapes
        for module in residual.modules():
            if isinstance(module, Block):
                module.shortcut = nn.Threshold(math.inf, 0.0)  # adds nothing
        residual.stages[1][0].shortcut = residual.stages[2][0].shortcut = None
        torch.testing.assert_close(plain(images), residual(images))


@pytest.mark.parametrize("zeros", ["trailing", "symmetric"])
def test_option_a_takes_every_second_pixel_and_fills_new_channels_with_zeros(zeros: str) -> None:
    net = build_net("cifar10", 8, option_a_zeros=zeros)
    shortcut = net.stages[1][0].shortcut
    assert list(shortcut.parameters()) == []
    x = torch.arange(1.0, 1 + 2 * 16 * 32 * 32).reshape(2, 16, 32, 32)
    y = shortcut(x)
    assert y.shape == (2, 32, 16, 16)
    first = 8 if zeros == "symmetric" else 0
    for channel in range(32):
        if first <= channel < first + 16:
            for row in (0, 1, 7, 15):
                wanted = x[:, channel - first, 2 * row, [2 * column for column in range(16)]]
                assert torch.equal(y[:, channel, row], wanted)
        else:
            assert not y[:, channel].any()


def test_shortcuts_across_equal_sizes_are_the_identity_under_a_and_b() -> None:
    x = torch.randn(2, 16, 8, 8)
    for option in ("A", "B"):
        assert torch.equal(build_net("cifar10", 8, shortcut=option).stages[0][0].shortcut(x), x)


@pytest.mark.parametrize(("option", "projections"), [("A", 0), ("B", 2), ("C", 9)])
def test_each_option_has_its_number_of_projections(option: str, projections: int) -> None:
    net = build_net("cifar10", 20, shortcut=option)
    ones = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(ones) == projections


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (32, 2)])
def test_a_block_with_projection_equals_torchvisions_basic_block(
    channels: int, stride: int, training: bool
) -> None:
    torch.manual_seed(0)
    projection = nn.Sequential(nn.Conv2d(16, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    theirs = BasicBlock(16, channels, stride, projection).train(training)
    shortcut = ProjectionShortcut(
        nn.Conv2d(16, channels, 1, stride, bias=False), GroupedBatchNorm2d(channels)
    )
    ours = Block(16, channels, stride, shortcut, GroupedBatchNorm2d).train(training)
    disturb(theirs)
    ours.load_state_dict({key.replace("downsample", "shortcut"): v for key, v in theirs.state_dict().items()})
    x = torch.randn(3, 16, 12, 12)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("depth", "plain"), [(8, True), (20, False), (56, True), (110, False)])
def test_a_net_has_6n_plus_1_convolutions_and_one_fully_connected_layer(depth: int, plain: bool) -> None:
    with torch.device("meta"):
        net = build_net("cifar10", depth, plain)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 1
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convolutions)
    (fc,) = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert (fc.in_features, fc.out_features, fc.bias is not None) == (64, 10, True)
    assert not [m for m in net.modules() if isinstance(m, nn.Dropout)]


def test_feature_maps_are_32_16_8_wide_with_16_32_64_channels() -> None:
    net = build_net("cifar10", 20)
    shapes: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 7 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
    assert net.trunk(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 8, 8)


def test_the_number_of_classes_can_be_chosen() -> None:
    assert build_net("cifar10", 8, num_classes=100)(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("fan", ["fan_in", "fan_out"])
def test_weights_are_normal_with_the_variance_of_he_initialisation(fan: str) -> None:
    net = build_net("cifar10", 20, shortcut="B", init=fan, generator=seeded(5))
    standardised = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            count = area * (module.in_channels if fan == "fan_in" else module.out_channels)
        elif isinstance(module, nn.Linear):
            count = 64 if fan == "fan_in" else 10
        else:
            continue
        z = module.weight.detach().flatten() / math.sqrt(2 / count)
        tolerance = 4 / math.sqrt(2 * len(z))  # four standard errors
        assert float(z.std()) == pytest.approx(1, abs=tolerance)
        standardised.append(z)
    z = torch.cat(standardised)
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float((z.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.003)  # as of a normal


def test_biases_start_at_zero_and_bn_at_the_identity() -> None:
    net = build_net("cifar10", 8, shortcut="C")
    assert not net.fc.bias.any()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_the_generators_seed_decides_the_weights_and_nothing_else_does() -> None:
    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return torch.cat([p.flatten() for p in build_net("digits", 8, generator=seeded(seed)).parameters()])

    assert torch.equal(weights(1, 1), weights(1, 2))
    assert not torch.equal(weights(1, 1), weights(2, 1))


def test_plain_and_residual_nets_of_a_seed_start_from_the_same_weights() -> None:
    plain = build_net("cifar10", 20, plain=True, generator=seeded(6)).state_dict()
    residual = build_net("cifar10", 20, generator=seeded(6)).state_dict()
    assert plain.keys() == residual.keys()
    assert all(torch.equal(plain[name], residual[name]) for name in plain)


def test_grouped_bn_normalises_each_group_by_its_own_statistics() -> None:
    grouped = GroupedBatchNorm2d(5, group=4, momentum=0.3)
    ordinary = nn.BatchNorm2d(5, momentum=1 - 0.7**0.5)  # two steps of it decay by 0.7, as one of 0.3 does
    disturb(grouped)
    ordinary.load_state_dict(grouped.state_dict())
    x = torch.randn(8, 5, 6, 6, generator=seeded(7)) * 3 + torch.arange(8.0).reshape(8, 1, 1, 1)
    halves = torch.cat([ordinary(x[:4]), ordinary(x[4:])])
    torch.testing.assert_close(grouped(x), halves)
    torch.testing.assert_close(grouped.running_mean, ordinary.running_mean)
    torch.testing.assert_close(grouped.running_var, ordinary.running_var)
    whole = nn.BatchNorm2d(5)(x)
    assert (grouped(x) - whole).abs().max() > 0.1


def test_grouped_bn_is_ordinary_bn_in_evaluation_and_with_no_group() -> None:
    x = torch.randn(6, 5, 4, 4, generator=seeded(8)) + 2  # six is no multiple of four
    grouped, ordinary = GroupedBatchNorm2d(5, group=4), nn.BatchNorm2d(5)
    disturb(grouped)
    ordinary.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(grouped.eval()(x), ordinary.eval()(x))
    torch.testing.assert_close(GroupedBatchNorm2d(5)(x), nn.BatchNorm2d(5)(x))


def test_the_group_reaches_every_bn_layer_of_a_net() -> None:
    grouped = build_net("digits", 8, bn_group=4, generator=seeded(9))
    whole = build_net("digits", 8, generator=seeded(9))
    images = torch.randn(8, 3, 16, 16, generator=seeded(10))
    images[4:] *= 5
    with torch.no_grad():
        halves = torch.cat([whole(images[:4]), whole(images[4:])])
        torch.testing.assert_close(grouped(images), halves, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("cifar10", 21), "20 or 26"),
        (("cifar10", 20, True, "A"), "--plain and --shortcut A"),
        (("cifar10", 20, False, "D"), "A, B and C"),
        (("imagenet", 50), "'imagenet'"),
    ],
)
def test_an_impossible_net_is_a_value_error(arguments: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        build_net(*arguments)
    assert isinstance(caught.value, UsageError)
