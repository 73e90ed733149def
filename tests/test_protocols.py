"""The test protocols of Section 3.4 against torchvision's transforms and slow loops over single views."""

import math

import numpy as np
import pytest
import torch
from conftest import blotches
from PIL import Image
from seeds import disturb, seeded
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from resrepro.data.augment import Normalisation, views_of
from resrepro.data.loader import Views
from resrepro.nets import Net, build_net
from resrepro.spec import catalogue
from resrepro.training.measure import Member, in_passes, log_scores, measure_errors

SIZE = 64  # of the crops: the feature map is 2 x 2 there
RECIPE = catalogue.derive(catalogue.find("folder-resnet18"), image_size=SIZE).recipe
CPU = torch.device("cpu")
CLASSES = 7
MEAN = torch.linspace(60, 190, 3 * SIZE * SIZE).reshape(3, SIZE, SIZE)
SIDES = {"center": [256], "ten_crop": [256], "multi_scale": [224, 256, 384, 480, 640]}  # at crops of 224


def worn_net(seed: int = 0) -> Net:
    """A net whose BN scales and running averages differ from layer to layer, with moderate logits."""
    net = build_net("folder", 18, num_classes=CLASSES, generator=seeded(seed))
    disturb(net)
    net.fc.weight.data.mul_(0.1)
    return net.eval()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(blotches(np.random.default_rng(seed), height, width))


def member(net: Net) -> Member:
    return Member(net, Normalisation(RECIPE, MEAN), window=2)


def views(images: list[Image.Image], protocol: str, labels: list[int]) -> Views:
    told = catalogue.protocol_for(protocol, "imagenet")
    stacks = zip(*(views_of(image, told, SIZE) for image in images), strict=True)
    return Views([torch.from_numpy(np.stack(each)) for each in stacks], torch.tensor(labels))


def softmax_of(net: Net, pixels: Tensor) -> Tensor:
    """Softmax of one crop (3, S, S) of pixels 0..255 by the ordinary pass of the net."""
    with torch.no_grad():
        return net((pixels[None] - MEAN) / 255).softmax(1)[0]


def by_hand(net: Net, image: Image.Image, protocol: str) -> Tensor:
    """The scores of one image, view by view, with torchvision's transforms."""
    sides = [round(side * SIZE / 224) for side in SIDES[protocol]]
    if protocol == "multi_scale":
        return torch.stack([slow_dense(net, image, side) for side in sides]).mean(0)
    crops = {"center": transforms.CenterCrop(SIZE), "ten_crop": transforms.TenCrop(SIZE)}[protocol]
    found = crops(transforms.Resize(sides[0])(image))
    found = [found] if protocol == "center" else found
    scores = [softmax_of(net, transforms.PILToTensor()(crop).float()) for crop in found]
    return torch.stack(scores).mean(0)


def slow_dense(net: Net, image: Image.Image, side: int) -> Tensor:
    """One scale: features of the whole image, each 2 x 2 window of them classified by itself."""
    large = transforms.PILToTensor()(transforms.Resize(side)(image)).float()
    flips = []
    for pixels in (large, large.flip(2)):
        normalised = (pixels - MEAN.mean((1, 2)).reshape(3, 1, 1)) / 255
        with torch.no_grad():
            features = net.trunk(normalised[None])[0]
            places = []
            for row in range(features.shape[1] - 1):
                for column in range(features.shape[2] - 1):
                    window = features[:, row : row + 2, column : column + 2].mean((1, 2))
                    places.append((net.fc.weight @ window + net.fc.bias).softmax(0))
        flips.append(torch.stack(places).mean(0))
    return torch.stack(flips).mean(0)


@pytest.mark.parametrize("size", [(91, 70), (64, 130)])
@pytest.mark.parametrize("protocol", SIDES)
def test_a_protocol_scores_an_image_as_the_slow_loop_over_its_views(
    protocol: str, size: tuple[int, int]
) -> None:
    net, image = worn_net(), photo(*size)
    with torch.inference_mode():
        ours = log_scores([member(net)], views([image], protocol, [0]).scales, protocol == "multi_scale")
    wanted = by_hand(net, image, protocol)
    torch.testing.assert_close(ours[0].exp(), wanted, rtol=1e-3, atol=1e-5)
    assert wanted.max() - wanted.min() > 0.01  # the scores say something


def test_an_ensemble_averages_the_softmax_of_its_members_and_its_loss_is_that_of_the_average() -> None:
    nets = [worn_net(0), worn_net(1)]
    images, labels = [photo(90, 70, seed) for seed in range(3)], [0, 3, 6]
    averages = torch.stack(
        [torch.stack([by_hand(net, image, "ten_crop") for net in nets]).mean(0) for image in images]
    )
    errors = measure_errors([member(net) for net in nets], [views(images, "ten_crop", labels)], False, CPU)
    truth = torch.tensor(labels)
    assert errors.loss == pytest.approx(float(F.nll_loss(averages.log(), truth)), rel=1e-3)
    assert errors.top1_err == pytest.approx(100 * float((averages.argmax(1) != truth).double().mean()))
    right5 = (averages.topk(5).indices == truth[:, None]).any(1)
    assert errors.top5_err == pytest.approx(100 * float((~right5).double().mean()))
    assert errors.count == 3


def test_a_class_that_no_view_believes_in_costs_a_finite_loss() -> None:
    net = worn_net()
    with torch.no_grad():
        net.fc.bias.copy_(torch.tensor([1000.0, *[0.0] * (CLASSES - 1)]))
    errors = measure_errors([member(net)], [views([photo(90, 70)], "ten_crop", [3])], False, CPU)
    assert math.isfinite(errors.loss)
    assert errors.loss > 80
    assert errors.top1_err == 100


@pytest.mark.parametrize(
    ("shape", "each"), [((1000, 3, 224, 224), 1), ((9, 3, 640, 2000), 2), ((600, 3, 8, 8), 1)]
)
def test_passes_are_bounded_in_pixels_and_images_and_hold_every_image(
    shape: tuple[int, ...], each: int
) -> None:
    parts = in_passes(torch.empty(shape, dtype=torch.uint8, device="meta"), each)
    assert sum(len(part) for part in parts) == shape[0]
    bound = max(1, 3_300_000 // (shape[2] * shape[3] * each))
    assert max(len(part) for part in parts) == min(bound, 500, shape[0])
