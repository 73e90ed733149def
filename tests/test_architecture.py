"""The formulas of the nets: against the nets as built, counts of others, and the paper's own numbers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from resrepro.nets import Net, build_net
from resrepro.nets.layers import ZeroPadShortcut
from resrepro.spec import catalogue
from resrepro.spec.architecture import architecture_of, architectures, vgg19

KINDS = {nn.MaxPool2d: "max pool", nn.Identity: "identity", ZeroPadShortcut: "zeros", nn.Linear: "fc"}


def layers_as_built(net: Net, size):
    """(kind, kernel, stride, channels, size) of each layer in the order in which an image meets them."""
    found = []

    def note(name, module, output):
        kind = KINDS.get(type(module), "projection" if ".shortcut" in name else "conv")
        side = output.shape[-1] if output.dim() == 4 else 1
        kernel, stride = (getattr(module, key, 1) for key in ("kernel_size", "stride"))
        kernel, stride = (key[0] if isinstance(key, tuple) else key for key in (kernel, stride))
        if name != "pool" or kind == "max pool":  # CIFAR's nets have none
            found.append((kind, kernel, stride, output.shape[1], side))

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, *KINDS)):
            module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
    net(torch.empty(1, 3, size, size))
    return found


def by_formula(net):
    layers = [layer for part in net.walk() for layer in part.all_layers]
    return [(x.kind, x.kernel, x.stride, x.channels, x.size) for x in layers if x.kind != "avg pool"]


@pytest.mark.parametrize(
    "name",
    [
        "cifar10-plain20", "cifar10-resnet26", "cifar10-resnet110", "digits-resnet20", "imagenet-plain18",
        "imagenet-resnet34", "imagenet-resnet34-b", "imagenet-resnet34-c", "imagenet-resnet50",
        "imagenet-resnet152",
    ],
)  # fmt: skip
def test_the_formula_is_the_net_as_built(name):
    experiment = catalogue.find(name)
    spec, net = experiment.spec(), architecture_of(experiment)
    with torch.device("meta"), torch.no_grad():
        built = build_net(spec.dataset, spec.depth, spec.plain, spec.shortcut).eval()
        with FlopCounterMode(display=False) as counter:
            assert layers_as_built(built, net.image_size) == by_formula(net)
    assert net.multiply_adds == counter.get_total_flops() // 2
    assert net.parameters == sum(weight.numel() for weight in built.parameters())


# Parameters of the nets, counted from their shapes in the protocol sheet (Section 3).
EITHER = {
    "cifar10-{}20": 269_722, "cifar10-{}32": 464_154, "cifar10-{}44": 658_586, "cifar10-{}56": 853_018,
    "cifar10-{}110": 1_727_962, "imagenet-{}18": 11_515_688, "imagenet-{}34": 21_623_848,
}  # fmt: skip
PARAMETERS = {
    **{name.format(kind): count for name, count in EITHER.items() for kind in ("plain", "resnet")},
    "cifar10-resnet1202": 19_421_274,
    "imagenet-resnet34-b": 21_797_672, "imagenet-resnet34-c": 22_716_840,
    "imagenet-resnet50": 25_557_032, "imagenet-resnet101": 44_549_160, "imagenet-resnet152": 60_192_808,
}  # fmt: skip


def test_parameters_are_the_known_ones():
    assert {name: net.parameters for name, net in architectures().items()} == PARAMETERS


def test_every_net_that_the_paper_trains_is_there():
    wanted = [e for e in catalogue.experiments().values() if e.dataset in ("cifar10", "imagenet")]
    assert [net.label for net in architectures().values()] == [e.label for e in wanted]
    assert [net.layers for net in architectures().values()] == [e.depth for e in wanted]


def test_the_cifar_nets_are_6n_plus_2_layers_of_the_paper():
    # Section 4.2: 16, 32 and 64 filters on maps of 32, 16 and 8; multiply-adds in closed form.
    for name, net in architectures().items():
        if name.startswith("cifar10"):
            n = (net.layers - 2) // 6
            stages = [(stage.times, stage.width, stage.channels, stage.size) for stage in net.stages]
            assert stages == [(n, 16, 16, 32), (n, 32, 32, 16), (n, 64, 64, 8)]
            full = 9 * 16 * 16 * 32 * 32  # a stage's convolution; its first one has half the inputs
            assert net.multiply_adds == 9 * 3 * 16 * 32 * 32 + full * (6 * n - 2) + full + 640


def test_the_34_layer_nets_need_18_percent_of_vgg_19():  # Section 3.3
    plain, residual = (architectures()[f"imagenet-{kind}34"] for kind in ("plain", "resnet"))
    assert plain.multiply_adds == residual.multiply_adds  # identity shortcuts and option A cost nothing
    share = plain.multiply_adds / vgg19().multiply_adds
    assert share == pytest.approx(0.18, abs=0.01)


def test_vgg_19_is_torchvisions():
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = models.vgg19().eval()
        net(torch.empty(1, 3, 224, 224))
    assert vgg19().multiply_adds == counter.get_total_flops() // 2
    assert vgg19().parameters == sum(weight.numel() for weight in net.parameters())
    assert vgg19().layers == 19
    kinds = {nn.Conv2d: "conv", nn.MaxPool2d: "max pool", nn.Linear: "fc"}
    found = [kinds[type(module)] for module in net.modules() if type(module) in kinds]
    assert [layer.kind for part in vgg19().walk() for layer in part.layers] == found
