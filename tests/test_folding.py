"""BN folded into convolutions: the same logits, every BN layer, and nothing left behind."""

from collections.abc import Callable

import pytest
import torch
from seeds import disturb, seeded

from resrepro.nets import Net, build_net
from resrepro.nets.folding import folded, pairs_of
from resrepro.nets.normalisation import norms_of

NETS: dict[str, Callable[[], Net]] = {
    "plain": lambda: build_net("cifar10", 8, plain=True),
    "A": lambda: build_net("cifar10", 8),
    "C": lambda: build_net("cifar10", 8, shortcut="C"),
    "basic": lambda: build_net("imagenet", 18, num_classes=7),
    "bottleneck": lambda: build_net("imagenet", 50, num_classes=7),
}


@pytest.mark.parametrize("kind", NETS)
def test_the_logits_are_the_same_and_the_net_comes_back_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    net = NETS[kind]().eval().double()
    disturb(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(2, 3, 64, 64, generator=seeded(1)).double()
    with torch.inference_mode():
        wanted = net(images)
        with folded(net):
            torch.testing.assert_close(net(images), wanted, rtol=1e-9, atol=1e-9)
        assert torch.equal(net(images), wanted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", NETS)
def test_every_bn_layer_has_its_convolution(kind: str) -> None:
    net = NETS[kind]()
    pairs = list(pairs_of(net))
    assert {id(norm) for _, norm in pairs} == {id(norm) for norm in norms_of(net)}
    assert len({id(convolution) for convolution, _ in pairs}) == len(pairs)
    assert all(convolution.out_channels == norm.num_features for convolution, norm in pairs)


def test_training_within_is_untouched_and_an_error_unfolds() -> None:
    net = build_net("cifar10", 8)
    with pytest.raises(RuntimeError, match="channels"), folded(net):  # noqa: PT012
        assert all(norm.folded for norm in norms_of(net))
        net.eval()(torch.zeros(1, 4, 8, 8))
    assert not any(norm.folded for norm in norms_of(net))
    assert all(convolution.folded is None for convolution, _ in pairs_of(net))
