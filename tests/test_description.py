"""What is read off the built nets, against counts and nets that are not ours."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from resrepro.errors import RecordError
from resrepro.nets import build_net, description
from resrepro.nets.description import describe, describe_all, summary_path, trace, write_summary
from resrepro.spec import catalogue
from resrepro.spec.architectures import architectures, to_json


def test_the_packaged_summary_is_that_of_the_nets_as_built():
    built = describe_all()
    assert built == dict(architectures())
    text = summary_path().read_text(encoding="utf-8")
    assert to_json(built) == text, "the nets have changed: run `resrepro describe --write`"


@pytest.mark.parametrize(
    "name",
    ["cifar10-plain20", "cifar10-resnet56", "imagenet-plain18", "imagenet-resnet34",
     "imagenet-resnet34-b", "imagenet-resnet34-c", "imagenet-resnet50", "imagenet-resnet152"],
)  # fmt: skip
def test_multiply_adds_and_parameters_are_those_that_torch_counts(name):
    spec = catalogue.experiments()[name].spec()
    size = 32 if spec.dataset == "cifar10" else 224
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = build_net(spec.dataset, spec.depth, spec.plain, spec.shortcut).eval()
        net(torch.empty(1, 3, size, size))
    assert architectures()[name].multiply_adds == counter.get_total_flops() // 2
    assert architectures()[name].parameters == sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("imagenet-plain34", 21_623_848), ("imagenet-resnet34", 21_623_848),
     ("imagenet-resnet34-b", 21_797_672), ("imagenet-resnet34-c", 22_716_840),
     ("imagenet-resnet50", 25_557_032), ("imagenet-resnet152", 60_192_808),
     ("cifar10-resnet20", 269_722), ("cifar10-resnet1202", 19_421_274)],
)  # fmt: skip
def test_parameters_are_the_known_ones(name, parameters):
    assert architectures()[name].parameters == parameters


def torchvisions_convolutions(net):
    """(kernel, channels, stride, size) of each convolution in the order in which it is run."""
    found = []

    def note(module, _, output):
        kernel, stride = module.kernel_size[0], module.stride[0]
        found.append((kernel, module.out_channels, stride, output.shape[-1]))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        net.eval()(torch.empty(1, 3, 224, 224))
    return found


def test_layers_of_resnet_34_b_are_torchvisions_in_order_and_size():
    with torch.device("meta"):
        theirs = torchvisions_convolutions(models.resnet34())
    ours = [
        (layer.kernel, layer.channels, layer.stride, layer.size)
        for part in architectures()["imagenet-resnet34-b"].walk()
        for layer in part.all_layers
        if layer.kind in ("conv", "projection")
    ]
    assert ours == theirs


def test_a_bottleneck_halves_the_map_in_its_first_1x1_and_its_projection():
    part = next(p for p in architectures()["imagenet-resnet50"].walk() if p.name == "conv3_x")
    told = [(layer.kernel, layer.channels, layer.stride, layer.size) for layer in part.all_layers]
    assert told == [(1, 128, 2, 28), (3, 128, 1, 28), (1, 512, 1, 28), (1, 512, 2, 28)]


def test_tracing_leaves_the_net_without_hooks():
    net = build_net("cifar10", 8)
    assert [name for name, _ in trace(net, torch.zeros(1, 3, 32, 32))][-2:] == ["avg pool", "fc"]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_described_net_does_not_disturb_the_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    describe(catalogue.find("cifar10-plain20"))
    assert torch.equal(torch.rand(3), expected)


def test_the_summary_is_written_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(description, "summary_path", lambda: tmp_path / "nets.json")
    assert write_summary(architectures()).as_posix() == "resrepro/spec/catalogue/nets.json"
    assert (tmp_path / "nets.json").read_bytes() == summary_path().read_bytes()


def test_a_package_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(description, "summary_path", lambda: tmp_path / "file" / "nets.json")
    with pytest.raises(RecordError, match=r"cannot write \S*/nets.json of .*: run") as caught:
        write_summary(architectures())
    assert str(tmp_path) not in str(caught.value)
