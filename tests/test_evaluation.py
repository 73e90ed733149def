"""Measuring a net against one image after the other."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resrepro.data import Images
from resrepro.data.augment import Augmentation
from resrepro.data.feeds import memory_views, on_device
from resrepro.nets import build_net
from resrepro.spec import catalogue
from resrepro.training.evaluation import EVAL_BATCH, Member, measure
from resrepro.training.metrics import Errors

RECIPE = catalogue.find("digits-resnet8").spec().recipe
CPU = torch.device("cpu")


def images(count: int) -> Images:
    rng = np.random.default_rng(count)
    return Images(rng.integers(0, 256, (count, 3, 8, 8), np.uint8), rng.integers(0, 10, count))


def worn_net() -> torch.nn.Module:
    """A net whose running averages are not those of the images it is tested on."""
    net = build_net("digits", 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.3 - 0.2)
    return net


def measured(net: torch.nn.Module, data: Images, augmentation: Augmentation) -> Errors:
    return measure([Member(net, augmentation)], memory_views(*on_device(data, CPU)), False, CPU)


@pytest.mark.parametrize("count", [1, 37, EVAL_BATCH + 7])
def test_errors_are_those_of_single_images_in_evaluation_mode(count: int) -> None:
    data = images(count)
    augmentation = Augmentation.from_training_images(RECIPE, images(64), CPU)
    net = worn_net().eval()
    losses, ranks = [], []
    mean = images(64).pixels.astype(np.float64).mean(axis=0)
    with torch.no_grad():
        for pixels, label in zip(data.pixels, data.labels, strict=True):
            logits = net(torch.tensor((pixels - mean) / 255, dtype=torch.float32)[None])
            losses.append(float(F.cross_entropy(logits, torch.tensor([label]))))
            ranks.append(int((logits[0] > logits[0, label]).sum()))
    read = measured(net.train(), data, augmentation)
    assert read.loss == pytest.approx(sum(losses) / count, rel=1e-4)
    assert read.top1_err == pytest.approx(100 * sum(rank >= 1 for rank in ranks) / count, abs=1e-3)
    assert read.top5_err == pytest.approx(100 * sum(rank >= 5 for rank in ranks) / count, abs=1e-3)
    assert read.count == count


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_weights_running_averages_and_mode_as_they_were(training: bool) -> None:
    net = worn_net().train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    augmentation = Augmentation.from_training_images(RECIPE, images(64), CPU)
    measured(net, images(20), augmentation)
    assert net.training is training
    assert all(module.training is training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_pixels_and_labels_arrive_unchanged_also_from_views_of_larger_arrays() -> None:
    data = images(10)
    pixels, labels = on_device(data.part(3, 7), CPU)
    assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(pixels.numpy(), data.pixels[3:7])
    assert np.array_equal(labels.numpy(), data.labels[3:7])
