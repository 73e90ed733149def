"""The packaged summary of the nets, and VGG-19 counted from its list of layers."""

import json

import pytest
from conftest import ROOT

from resrepro.spec import catalogue
from resrepro.spec.architectures import architectures, count_multiply_adds, to_json, vgg19

SUMMARY = ROOT / "resrepro" / "spec" / "catalogue" / "nets.json"


def multiplications_one_by_one(kernel, inputs, channels, size):
    """The loops of a convolution, padding counted like any other place."""
    count = 0
    for _place in range(size * size):
        for _channel in range(channels):
            for _weight in range(kernel * kernel * inputs):
                count += 1
    return count


@pytest.mark.parametrize("case", [(3, 4, 5, 6), (1, 3, 8, 2), (7, 3, 2, 4)])
def test_multiply_adds_are_those_of_the_loops(case):
    assert count_multiply_adds(*case) == multiplications_one_by_one(*case)


def test_reading_and_writing_the_summary_give_back_the_very_file():
    assert to_json(architectures()) == SUMMARY.read_text(encoding="utf-8")


def test_the_summary_has_every_net_that_the_paper_trains():
    wanted = [e for e in catalogue.experiments().values() if e.dataset in ("cifar10", "imagenet")]
    assert [net.label for net in architectures().values()] == [e.label for e in wanted]
    assert [net.layers for net in architectures().values()] == [e.depth for e in wanted]


def test_the_totals_that_a_reader_of_the_file_sees_are_the_sums_of_its_lines():
    for name, entry in json.loads(SUMMARY.read_text(encoding="utf-8"))["nets"].items():
        work = layers = 0
        for part in entry["parts"]:
            for kind, *_, multiply_adds in [*part["layers"], part.get("shortcut", ["none", 0])]:
                work += part["times"] * multiply_adds
                layers += part["times"] * (kind in ("conv", "fc"))
        assert (entry["multiply_adds"], entry["layers"]) == (work, layers), name


def test_the_cifar_nets_are_6n_plus_2_layers_of_the_paper():
    # Section 4.2: 16, 32 and 64 filters on maps of 32, 16 and 8; multiply-adds in closed form.
    for name, net in architectures().items():
        if name.startswith("cifar10"):
            n = (net.layers - 2) // 6
            stages = [(stage.blocks, stage.width, stage.channels, stage.size) for stage in net.stages]
            assert stages == [(n, 16, 16, 32), (n, 32, 32, 16), (n, 64, 64, 8)]
            full = 9 * 16 * 16 * 32 * 32  # a stage's convolution; its first one has half the inputs
            assert net.multiply_adds == 9 * 3 * 16 * 32 * 32 + full * (6 * n - 2) + full + 640


def test_only_the_first_block_of_a_later_stage_changes_the_dimensions():
    kinds = [part.shortcut.kind for part in architectures()["imagenet-resnet34"].walk() if part.shortcut]
    assert [number for number, kind in enumerate(kinds) if kind == "zeros"] == [3, 7, 13]
    assert kinds.count("identity") == 13
    option_c = architectures()["imagenet-resnet34-c"]
    assert {part.shortcut.kind for part in option_c.walk() if part.shortcut} == {"projection"}
    assert all(part.shortcut is None for part in architectures()["imagenet-plain34"].walk())


def test_identity_shortcuts_and_option_a_cost_nothing():
    for depth in (18, 34):
        plain, residual = (architectures()[f"imagenet-{kind}{depth}"] for kind in ("plain", "resnet"))
        assert (plain.multiply_adds, plain.parameters) == (residual.multiply_adds, residual.parameters)


def test_the_34_layer_nets_need_18_percent_of_vgg_19():  # Section 3.3
    share = architectures()["imagenet-plain34"].multiply_adds / vgg19().multiply_adds
    assert share == pytest.approx(0.18, abs=0.01)


def test_vgg_19_is_torchvisions():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import vgg19 as reference

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = reference().eval()
        net(torch.empty(1, 3, 224, 224))
    assert vgg19().multiply_adds == counter.get_total_flops() // 2
    assert vgg19().parameters == sum(weight.numel() for weight in net.parameters())
    assert vgg19().layers == 19
    kinds = {torch.nn.Conv2d: "conv", torch.nn.MaxPool2d: "max pool", torch.nn.Linear: "fc"}
    found = [kinds[type(module)] for module in net.modules() if type(module) in kinds]
    assert [layer.kind for part in vgg19().walk() for layer in part.layers] == found
