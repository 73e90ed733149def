"""Errors against scikit-learn, counting by hand, and one image after the other."""

import math

import numpy as np
import pytest
import torch
from seeds import disturb, seeded
from sklearn.metrics import top_k_accuracy_score
from torch.nn import functional as F

from resrepro.data import Images
from resrepro.data.augment import normalisation_by, on_device
from resrepro.data.feeds import EVAL_BATCH, memory_views
from resrepro.nets import build_net
from resrepro.spec import catalogue
from resrepro.training.measure import ErrorSums, Member, measure_errors

# --- metrics ---------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def errors_of(logits, labels, loss=0.0):
    sums = ErrorSums(CPU)
    sums.add(torch.tensor(loss), logits, labels)
    return sums


def test_top_1_and_top_5_errors_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(257, 10, generator=generator)
    labels = torch.randint(10, (257,), generator=generator)
    read = errors_of(logits, labels).read()
    for k, error in ((1, read.top1_err), (5, read.top5_err)):
        accuracy = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(10))
        assert error == pytest.approx(100 * (1 - accuracy), abs=1e-4)
    assert 0 < read.top5_err < read.top1_err < 100


def test_batches_add_up_to_the_whole_each_image_counting_the_same():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
    sums = ErrorSums(CPU)
    for part in (slice(0, 1), slice(1, 30), slice(30, 50)):
        loss = torch.nn.functional.cross_entropy(logits[part], labels[part])
        sums.add(loss, logits[part], labels[part])
    read = sums.read()
    by_hand = [-math.log(math.exp(row[label]) / sum(map(math.exp, row)))
               for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    assert read.loss == pytest.approx(sum(by_hand) / 50, rel=1e-5)
    assert read.top1_err == pytest.approx(
        2 * sum(int(r.argmax()) != int(y) for r, y in zip(logits, labels, strict=True))
    )
    assert read.count == 50


def test_reset_starts_from_nothing_and_nothing_reads_as_nan():
    sums = errors_of(torch.eye(10), torch.zeros(10, dtype=torch.long), 2.5)
    sums.reset()
    assert sums.count == sums.read().count == 0
    assert math.isnan(sums.read().top1_err)
    sums.add(torch.tensor(0.5), torch.eye(10), torch.arange(10))
    assert (sums.read().loss, sums.read().top1_err, sums.read().count) == (0.5, 0, 10)


# --- evaluation ------------------------------------------------------------------------------------

RECIPE = catalogue.find("digits-resnet8").spec().recipe


def images(count):
    rng = np.random.default_rng(count)
    return Images(rng.integers(0, 256, (count, 3, 8, 8), np.uint8), rng.integers(0, 10, count))


def worn_net():
    """A net whose running averages are not those of the images it is tested on."""
    net = build_net("digits", 8, generator=seeded(0))
    disturb(net)
    return net


def measured(net, data, preparation):
    return measure_errors([Member(net, preparation)], memory_views(*on_device(data, CPU)), False, CPU)


@pytest.mark.parametrize("count", [1, 37, EVAL_BATCH + 7])
def test_errors_are_those_of_single_images_in_evaluation_mode(count):
    data = images(count)
    preparation = normalisation_by(RECIPE, images(64).pixels.mean(0, float), CPU)
    net = worn_net().eval()
    losses, ranks = [], []
    mean = images(64).pixels.astype(np.float64).mean(axis=0)
    with torch.no_grad():
        for pixels, label in zip(data.pixels, data.labels, strict=True):
            logits = net(torch.tensor((pixels - mean) / 255, dtype=torch.float32)[None])
            losses.append(float(F.cross_entropy(logits, torch.tensor([label]))))
            ranks.append(int((logits[0] > logits[0, label]).sum()))
    read = measured(net.train(), data, preparation)
    assert read.loss == pytest.approx(sum(losses) / count, rel=1e-4)
    assert read.top1_err == pytest.approx(100 * sum(rank >= 1 for rank in ranks) / count, abs=1e-3)
    assert read.top5_err == pytest.approx(100 * sum(rank >= 5 for rank in ranks) / count, abs=1e-3)
    assert read.count == count


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_weights_running_averages_and_mode_as_they_were(training):
    net = worn_net().train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    preparation = normalisation_by(RECIPE, images(64).pixels.mean(0, float), CPU)
    measured(net, images(20), preparation)
    assert net.training is training
    assert all(module.training is training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
