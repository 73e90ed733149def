"""The nets against plain loops written anew from the paper, and against torchvision's nets."""

import math
import re

import pytest
import torch
from seeds import disturb, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from resrepro.errors import UsageError
from resrepro.nets import Net, build_net, net_of
from resrepro.nets.layers import norms_of
from resrepro.spec import catalogue

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Parameters of the nets of Table 1 with 1000 classes, and of Section 4.2; None is a plain net.
PARAMETERS = {
    (34, None): 21_623_848, (34, "A"): 21_623_848, (34, "B"): 21_797_672, (34, "C"): 22_716_840,
    (50, "B"): 25_557_032, (101, "B"): 44_549_160, (152, "B"): 60_192_808,
    (110, "A"): 1_727_962, (110, None): 1_727_962,
}  # fmt: skip
KINDS = [(None, "trailing"), ("A", "trailing"), ("A", "symmetric"), ("B", "trailing"), ("C", "trailing")]


def reference(
    net: nn.Module, x: Tensor, blocks: tuple[int, ...], option: str | None, zeros: str, training: bool
) -> Tensor:
    """Logits by plain loops over the state dict: CIFAR nets of three stages (4.2), ImageNet's of four (3.3).

    A net whose blocks have a third convolution is a bottleneck net, its stride on the first 1x1.
    """
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def norm(y: Tensor, at: str) -> Tensor:
        averages = (weights[f"{at}.running_mean"], weights[f"{at}.running_var"])
        return F.batch_norm(y, *averages, weights[f"{at}.weight"], weights[f"{at}.bias"], training)

    def convolved(y: Tensor, at: str, number: int, kernel: int, stride: int) -> Tensor:
        y = F.conv2d(y, weights[f"{at}.conv{number}.weight"], stride=stride, padding=kernel // 2)
        return norm(y, f"{at}.bn{number}")

    def zero_padded(y: Tensor, channels: int, stride: int) -> Tensor:
        small = F.max_pool2d(y, 1, stride)  # a window of one pixel, every second place
        full = torch.zeros(len(y), channels, *small.shape[2:])
        start = (channels - y.shape[1]) // 2 if zeros == "symmetric" else 0
        full[:, start : start + y.shape[1]] = small
        return full

    if len(blocks) == 3:
        x = torch.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    else:
        x = torch.relu(norm(F.conv2d(x, weights["conv1.weight"], stride=2, padding=3), "bn1"))
        windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)  # zeros never win after a ReLU
        x = windows.flatten(4).max(4).values
    for stage, count in enumerate(blocks):
        for block in range(count):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            if f"{at}.conv3.weight" in weights:
                y = torch.relu(convolved(x, at, 1, 1, stride))
                y = torch.relu(convolved(y, at, 2, 3, 1))
                y = convolved(y, at, 3, 1, 1)
            else:
                y = convolved(torch.relu(convolved(x, at, 1, 3, stride)), at, 2, 3, 1)
            grows = x.shape[1:] != y.shape[1:]
            if option == "C" or (option == "B" and grows):
                projected = F.conv2d(x, weights[f"{at}.shortcut.0.weight"], stride=stride)
                y = y + norm(projected, f"{at}.shortcut.1")
            elif option is not None:
                y = y + (zero_padded(x, y.shape[1], stride) if grows else x)
            x = torch.relu(y)
    pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    return pooled @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("option", "zeros"), KINDS)
@pytest.mark.parametrize(
    ("dataset", "depth", "shape"),
    [("cifar10", 20, (4, 3, 16, 16)), ("imagenet", 18, (3, 3, 64, 80)), ("imagenet", 50, (3, 3, 32, 64))],
)
def test_a_net_computes_what_the_paper_describes(
    dataset: str, depth: int, shape: tuple[int, ...], option: str | None, zeros: str
) -> None:
    net = build_net(dataset, depth, option is None, option, option_a_zeros=zeros, generator=seeded(1))
    disturb(net)
    images = torch.randn(shape, generator=seeded(2))
    blocks = (3, 3, 3) if dataset == "cifar10" else BLOCKS[depth]
    with torch.no_grad():
        for training in (False, True):
            wanted = reference(net, images, blocks, option, zeros, training)
            close_to_scale(net.train(training)(images), wanted)


def close_to_scale(ours: Tensor, wanted: Tensor) -> None:
    """Equal to float tolerance, measured on the largest value (nets at chance have logits of any size)."""
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("zeros", ["trailing", "symmetric"])
def test_the_gradient_of_option_a_is_that_of_its_definition(zeros: str) -> None:
    shortcut = build_net("cifar10", 8, option_a_zeros=zeros).stages[1][0].shortcut
    assert list(shortcut.parameters()) == []
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shortcut, x)


def torchvisions(depth: int) -> nn.Module:
    """A net of torchvision's with random weights, and BN scales, shifts and averages out of the ordinary."""
    torch.manual_seed(depth)
    theirs: nn.Module = getattr(models, f"resnet{depth}")()
    disturb(theirs)
    return theirs


def filled_from(theirs: nn.Module, depth: int, stride_3x3: bool = False) -> Net:
    """Our net of option B with their parameters and buffers: the names differ in two words only."""
    ours = build_net("imagenet", depth, shortcut="B", stride_3x3=stride_3x3)
    renamed = {}
    for key, value in theirs.state_dict().items():
        stage = re.sub(r"^layer(\d)", lambda found: f"stages.{int(found[1]) - 1}", key)
        renamed[stage.replace("downsample", "shortcut")] = value
    ours.load_state_dict(renamed)
    return ours


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_a_net_with_option_b_equals_torchvisions(depth: int) -> None:
    theirs = torchvisions(depth)
    ours = filled_from(theirs, depth, stride_3x3=depth >= 50)
    images = torch.randn(2, 3, 64, 64, generator=seeded(2))
    with torch.no_grad():
        if depth <= 50:  # in training first: it changes the averages
            close_to_scale(ours.train()(images), theirs.train()(images))
        close_to_scale(ours.eval()(images), theirs.eval()(images))


def multiply_adds(net: nn.Module, size: int) -> int:
    """Of convolutions and the classifier, for one image: every weight once for each place of its output."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(module.weight.numel() * math.prod(output.shape[2:]))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.zeros(1, 3, size, size, device="meta"))
    return sum(counts)


# The protocol sheet's counts (Section 1): with the paper's stride and with the later one.
@pytest.mark.parametrize(
    ("depth", "first", "third"), [(50, 3.86, 4.09), (101, 7.57, 7.80), (152, 11.28, 11.51)]
)
def test_the_later_place_of_the_stride_costs_more_multiply_adds(
    depth: int, first: float, third: float
) -> None:
    with torch.device("meta"):
        nets = [build_net("imagenet", depth, stride_3x3=later) for later in (False, True)]
    counts = [multiply_adds(net, 224) for net in nets]
    assert counts == [pytest.approx(billions * 1e9, abs=0.005e9) for billions in (first, third)]


@pytest.mark.parametrize(("depth", "option"), PARAMETERS)
def test_a_net_has_the_published_parameters_and_as_many_layers_as_its_name_says(
    depth: int, option: str | None
) -> None:
    with torch.device("meta"):
        net = build_net("cifar10" if depth == 110 else "imagenet", depth, option is None, option)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[depth, option]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    projections = [name for name, _ in net.named_modules() if name.endswith("shortcut.0")]
    assert len(convolutions) == depth - 1 + len(projections)
    assert len(projections) == {"B": 4 if depth >= 50 else 3, "C": 16}.get(str(option), 0)
    assert all(m.bias is None for m in convolutions)
    assert not [m for m in net.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(("depth", "option"), [(18, "A"), (34, "A"), (50, "B"), (101, "B"), (152, "B")])
def test_the_default_option_is_the_papers_for_the_depth(depth: int, option: str) -> None:
    with torch.device("meta"):
        wanted = build_net("imagenet", depth, shortcut=option).state_dict()
        default = build_net("folder", depth, num_classes=1000).state_dict()
        plain = build_net("imagenet", depth, plain=True).state_dict()
        under_a = build_net("imagenet", depth, shortcut="A").state_dict()
    assert {k: v.shape for k, v in default.items()} == {k: v.shape for k, v in wanted.items()}
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in under_a.items()}


# --- the net at every place -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_bottleneck_net() -> Net:
    net = build_net("imagenet", 50, num_classes=6, generator=seeded(11)).eval()
    disturb(net)
    return net


@pytest.mark.parametrize(("size", "window"), [(64, 2), (100, 4)])
def test_at_the_training_size_the_dense_net_is_the_ordinary_one(
    small_bottleneck_net: Net, size: int, window: int
) -> None:
    images = torch.randn(2, 3, size, size, generator=seeded(12))
    with torch.no_grad():
        dense = small_bottleneck_net.dense(images, window)
        assert dense.shape == (2, 6, 1, 1)
        close_to_scale(dense[:, :, 0, 0], small_bottleneck_net(images))


def test_on_larger_images_each_place_is_the_classifier_on_its_window(small_bottleneck_net: Net) -> None:
    net = small_bottleneck_net
    images = torch.randn(2, 3, 97, 160, generator=seeded(12))
    with torch.no_grad():
        features, dense = net.trunk(images), net.dense(images, 2)
        assert (features.shape, dense.shape) == ((2, 2048, 4, 5), (2, 6, 3, 4))
        for row in range(3):
            for column in range(4):
                mean = features[:, :, row : row + 2, column : column + 2].mean((2, 3))
                close_to_scale(dense[:, :, row, column], mean @ net.fc.weight.T + net.fc.bias)
        assert (dense - dense[:, :, :1, :1]).abs().max() > 1e-3


# --- what all nets have in common -------------------------------------------------------------------


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


def test_a_recipes_settings_reach_its_net() -> None:
    experiment = catalogue.find("imagenet-resnet50")
    changed = catalogue.derive(experiment, bn_momentum=0.25, bn_eps=0.001, stride_3x3=True)
    for spec, first, second in ((changed, 1, 2), (experiment.spec(), 2, 1)):
        net = net_of(spec, 12)
        assert net.fc.out_features == 12
        block = net.stages[1][0]
        assert (block.conv1.stride, block.conv2.stride) == ((first, first), (second, second))
        norms = {(norm.group, norm.momentum, norm.eps) for norm in norms_of(net)}
        assert norms == {(32, spec.recipe.bn_momentum, spec.recipe.bn_eps)}
    small = catalogue.find("cifar10-resnet8")
    ours = net_of(catalogue.derive(small, option_a_zeros="symmetric", init="fan_out"), 10, seeded(1))
    wanted = build_net("cifar10", 8, option_a_zeros="symmetric", init="fan_out", generator=seeded(1))
    images = torch.randn(2, 3, 32, 32, generator=seeded(2))
    assert torch.equal(ours(images), wanted(images))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("cifar10", 21), "20 or 26"),
        (("cifar10", 20, True, "A"), "--plain and --shortcut A"),
        (("cifar10", 20, False, "D"), "A, B and C"),
        (("imagenet", 20), "18, 34, 50, 101 or 152"),
        (("folder", 56), "18, 34, 50, 101 or 152"),
        (("imagenet", 50, True, "B"), "--plain and --shortcut B"),
        (("mnist", 20), "'mnist'.*cifar10, digits, imagenet and folder"),
    ],
)
def test_an_impossible_net_is_a_value_error(arguments: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        build_net(*arguments)
    assert isinstance(caught.value, UsageError)
