"""Training batches: which images, in which order, cropped, flipped and normalised how."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from resrepro.data import Images
from resrepro.data.augment import Normalisation, TrainingBatches
from resrepro.spec import catalogue
from resrepro.spec.recipe import Recipe

CPU = torch.device("cpu")
SIZE = 12  # of the made-up images


def recipe_with(**settings: object) -> Recipe:
    return catalogue.derive(catalogue.find("cifar10-resnet20"), **settings).recipe


def noise(count: int, size: int = SIZE) -> Images:
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, 3, size, size), np.uint8)
    return Images(pixels, rng.integers(0, 10, count))


def numbered(count: int) -> Images:
    """Images whose label is their own number, so that a batch tells which images it holds."""
    return Images(np.zeros((count, 3, 4, 4), np.uint8), np.arange(count))


def batches_of(images: Images, seed: int = 0, **settings: object) -> TrainingBatches:
    return TrainingBatches(recipe_with(**settings), images, CPU, seed)


def chosen(batches: TrainingBatches, count: int, start: int = 0) -> list[int]:
    return [int(label) for k in range(start, start + count) for label in batches[k][1]]


# --- which images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(128, 128), (129, 128), (1438, 128), (10, 25)])
def test_every_batch_has_its_size_and_every_epoch_each_image_once(count: int, size: int) -> None:
    batches = batches_of(numbered(count), batch_size=size)
    assert {len(batches[k][0]) for k in range(40)} == {size}
    sequence = chosen(batches, 40)
    for epoch in range(40 * size // count):
        assert sorted(sequence[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_is_another_one_in_each_epoch_and_for_each_seed() -> None:
    each = itertools.product([batches_of(numbered(256), seed) for seed in range(3)], range(4))
    orders = [tuple(chosen(batches, 2, 2 * epoch)) for batches, epoch in each]
    assert len(set(orders)) == 12
    assert tuple(range(256)) not in orders
    for one, other in itertools.combinations(orders, 2):  # two random orders agree in about one place
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12


def test_a_batch_depends_on_nothing_but_the_seed_and_its_number() -> None:
    images = noise(200)
    forward = batches_of(images, seed=5)
    in_order = [forward[k] for k in range(12)]
    for k in (11, 0, 7, 7, 3):
        for again in (forward, batches_of(images, seed=5)):
            pixels, labels = again[k]
            assert torch.equal(pixels, in_order[k][0])
            assert torch.equal(labels, in_order[k][1])


def test_sampling_with_replacement_repeats_images_within_an_epoch() -> None:
    batches = batches_of(numbered(1280), sampling="replacement")
    sequence = chosen(batches, 10)
    assert len(sequence) == 1280
    # A share of 1 - 1/e = 63.2 % of the images is expected to be drawn.
    assert len(set(sequence)) / 1280 == pytest.approx(0.632, abs=0.05)
    assert sequence[128 * 7 :] == chosen(batches, 3, 7)


# --- crops and flips --------------------------------------------------------------------------------


def position_images(count: int) -> Images:
    """In each image the red value names the column and the green the row, from 1 on."""
    row, column = np.mgrid[1 : SIZE + 1, 1 : SIZE + 1]
    image = np.stack([column, row, row * 0]).astype(np.uint8)
    return Images(np.repeat(image[None], count, axis=0), np.zeros(count, np.int64))


def crops(count: int, **settings: object) -> tuple[list[tuple[int, int, bool]], Tensor]:
    """(row offset, column offset, flipped) of many crops, read off their pixels; and the crops."""
    fixed = {"batch_size": 128, "mean": "none", "pixel_divisor": 1.0} | settings
    batches = batches_of(position_images(128), **fixed)
    images = torch.cat([batches[k][0] for k in range(count // 128)]).round().int()
    middle = images[:, :, SIZE // 2, SIZE // 2 - 1 : SIZE // 2 + 1]  # inside at every offset up to 5
    found = []
    for red, green, _ in middle.tolist():
        flipped = red[1] < red[0]
        column = red[1] - SIZE // 2 if flipped else red[0] - SIZE // 2
        found.append((green[0] - SIZE // 2 - 1, column, flipped))
    return found, images


def test_all_81_offsets_occur_equally_often_and_no_others() -> None:
    found, _ = crops(128 * 64, flip=False)
    assert not any(flipped for *_, flipped in found)
    counts = Counter((row, column) for row, column, _ in found)
    assert set(counts) == set(itertools.product(range(-4, 5), repeat=2))
    mean = 128 * 64 / 81
    chi_square = sum((count - mean) ** 2 / mean for count in counts.values())
    assert chi_square < 124  # the 99.9 % quantile at 80 degrees of freedom


def test_padding_by_2_gives_25_offsets_and_none_gives_the_image_itself() -> None:
    found, _ = crops(128 * 8, flip=False, pad=2)
    assert {(row, column) for row, column, _ in found} == set(itertools.product(range(-2, 3), repeat=2))
    found, images = crops(256, flip=False, pad=0)
    assert set(found) == {(0, 0, False)}
    assert torch.equal(images[0], torch.from_numpy(position_images(1).pixels[0]).int())


def test_half_of_the_images_are_flipped_independently_of_their_offset() -> None:
    found, _ = crops(128 * 40)
    flips = [flipped for *_, flipped in found]
    assert np.mean(flips) == pytest.approx(0.5, abs=0.03)  # four standard deviations
    for side in (range(-4, 0), range(1, 5)):
        assert np.mean([f for row, column, f in found if column in side]) == pytest.approx(0.5, abs=0.05)
    by_batch = [sum(flips[128 * k : 128 * k + 128]) for k in range(40)]
    assert 10 < min(by_batch) <= max(by_batch) < 118  # one coin per image, not per batch


# --- normalisation ----------------------------------------------------------------------------------


def window(padded: np.ndarray, down: int, right: int, flipped: bool) -> np.ndarray:
    cut = padded[:, down : down + SIZE, right : right + SIZE]
    return cut[:, :, ::-1] if flipped else cut


def candidates(image: np.ndarray, mean: np.ndarray, order: str, value: float) -> np.ndarray:
    """All 81 x 2 crops of one image, made slowly: (162, 3, H, W)."""
    around = ((0, 0), (4, 4), (4, 4))
    if order == "mean_first":
        padded = np.pad((image - mean) / 255, around, constant_values=value)
        return np.stack([window(padded, *w) for w in itertools.product(range(9), range(9), (False, True))])
    padded = np.pad(image.astype(float), around, constant_values=value)
    crops = [(window(padded, d, r, False) - mean) / 255 for d, r in itertools.product(range(9), range(9))]
    return np.stack([*crops, *(crop[:, :, ::-1] for crop in crops)])


@pytest.mark.parametrize(
    ("order", "value"), [("mean_first", 0.0), ("mean_first", -0.5), ("pad_first", 0.0), ("pad_first", 128.0)]
)
@pytest.mark.parametrize("mean", ["per_pixel", "per_channel", "none"])
def test_every_image_is_one_of_the_crops_made_slowly_by_hand(mean: str, order: str, value: float) -> None:
    images = noise(40)
    settings = {"mean": mean, "pad_order": order, "pad_value": value, "batch_size": 20}
    batches = batches_of(images, **settings)
    whole = images.pixels.astype(float)
    by_hand = {"per_pixel": whole.mean(0), "per_channel": whole.mean((0, 2, 3)).reshape(3, 1, 1), "none": 0.0}
    shifted = 0
    for k in range(2):
        for index, ours in zip(batches.sampler.indices(k).tolist(), batches[k][0].numpy(), strict=True):
            slow = candidates(images.pixels[index], by_hand[mean], order, value)
            distance = np.abs(slow - ours).max(axis=(1, 2, 3))
            assert distance.min() < 1e-5
            assert np.sort(distance)[1] > 1e-2  # it is that crop and no other
            shifted += distance.argmin() != (4 * 9 + 4) * 2
    assert shifted > 30


def test_the_test_view_is_the_image_minus_the_mean_of_the_training_images() -> None:
    train, test = noise(30), noise(7)
    wanted = (test.pixels.astype(float) - train.pixels.astype(float).mean(axis=0)) / 255
    ours = batches_of(train).normalisation.test(torch.from_numpy(test.pixels))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)


def test_a_given_std_takes_the_place_of_the_divisor_channel_by_channel() -> None:
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ([100.0, 110, 120], [50.0, 60, 70]))
    images = noise(5)
    ours = Normalisation(recipe_with(), mean, std).test(torch.from_numpy(images.pixels)).numpy()
    for channel in range(3):
        wanted = (images.pixels[:, channel] - (100.0 + 10 * channel)) / (50 + 10 * channel)
        np.testing.assert_allclose(ours[:, channel], wanted, atol=1e-5)
