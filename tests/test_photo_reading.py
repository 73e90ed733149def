"""Photographs read for a net: test views, each image once over all processes, and training crops."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blotches, write_photo
from PIL import Image
from torch import Tensor
from torchvision import transforms

from resrepro.data import ALONE, ProcessGroup, augment, loader
from resrepro.data.augment import Normalisation, colour_axes, crop_choices, planes, training_crop
from resrepro.data.feeds import open_feed
from resrepro.data.loader import CropReader, Loading, PhotoViews, Views, photo_batches
from resrepro.data.photos import Photos, read_image, scan, scan_both
from resrepro.data.statistics import principal_axes, statistics_of
from resrepro.errors import DataError
from resrepro.spec import catalogue
from resrepro.spec.catalogue import protocol_for
from resrepro.spec.recipe import ImageNetRecipe

CPU = torch.device("cpu")
SIZE = 32
INLINE = Loading(workers=0)
SIDES = {"center": (37,), "ten_crop": (37,), "multi_scale": (32, 37, 55, 69, 91)}  # 224.. times 32 / 224


def photo_views(
    photos: Photos, protocol: str = "center", loading: Loading = INLINE, group: ProcessGroup = ALONE
) -> PhotoViews:
    return PhotoViews(photos, protocol_for(protocol, "imagenet"), SIZE, loading, group)


def expected(path: Path, protocol: str) -> list[np.ndarray]:
    """The views of one image by torchvision, one array (V, 3, h, w) per scale."""
    image = read_image(path)[0]
    large = [transforms.Resize(side)(image) for side in SIDES[protocol]]
    if protocol == "multi_scale":
        return [planes(each)[None] for each in large]
    cut = transforms.TenCrop(SIZE) if protocol == "ten_crop" else transforms.CenterCrop(SIZE)
    crops = [cut(each) for each in large]
    return [
        np.stack([planes(crop) for crop in (each if isinstance(each, tuple) else [each])]) for each in crops
    ]


def one_by_one(groups: list[Views]) -> Counter:
    """How often each image occurs: all its pixels, sizes and its label as one key."""
    found: Counter = Counter()
    for group in groups:
        for index, label in enumerate(group.labels.tolist()):
            found[key([scale[index].numpy() for scale in group.scales], label)] += 1
    return found


def key(scales: list[np.ndarray], label: int) -> tuple[object, ...]:
    return (label, *((scale.shape, scale.tobytes()) for scale in scales))


def wanted(photos: Photos, protocol: str) -> Counter:
    found: Counter = Counter()
    for index, label in enumerate(photos.labels.tolist()):
        found[key(expected(photos.path(index), protocol), label)] += 1
    return found


@pytest.mark.parametrize("protocol", ["center", "ten_crop", "multi_scale"])
def test_every_image_is_shown_once_as_the_protocol_says(protocol: str, photographs: Path) -> None:
    photos = scan(photographs, "val")
    groups = list(photo_views(photos, protocol).read(CPU))
    assert one_by_one(groups) == wanted(photos, protocol)


def test_images_of_one_size_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loader.CHUNKS, "dense", 6)
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(3):
            sides = [(40, 51), (51, 40)][number % 2]
            pixels = blotches(np.random.default_rng([ord(name), number]), *sides)
            write_photo(tmp_path / f"val/{name}/{number}-rgb.png", pixels)
    photos = scan(tmp_path, "val")
    groups = list(photo_views(photos, "multi_scale").read(CPU))
    assert sorted(len(group.labels) for group in groups) == [2, 4]
    assert one_by_one(groups) == wanted(photos, "multi_scale")


# --- several processes, and workers -----------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 7, 60])
def test_every_image_is_shown_once_whatever_the_number_of_processes(
    world: int, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNKS", dict.fromkeys(loader.CHUNKS, 3))
    photos, total = scan(photographs, "val"), Counter()
    digests: dict[int, str] = {}
    sizes = []
    for rank in range(world):
        own = photo_views(photos, group=ProcessGroup(rank, world))
        total += one_by_one(list(own.read(CPU)))
        assert not digests.keys() & own.digests.keys()
        digests |= own.digests
        sizes.append(len(own.digests))
    assert total == wanted(photos, "center")
    assert max(sizes) - min(sizes) <= 3
    assert sorted(digests) == list(range(40))


# --- what was read ----------------------------------------------------------------------------------


def test_what_was_read_gives_the_checksum_of_the_pass_over_all_images(photographs: Path) -> None:
    both = scan_both(photographs)
    shown = photo_views(both.val, "ten_crop")
    for _ in range(2):  # they may be read again
        assert sum(len(group.labels) for group in shown.read(CPU)) == 40
    readable, checksum = shown.gather()
    assert len(readable) == 40
    assert checksum == statistics_of(both, SIZE, INLINE).checksums["val"]


def test_bad_images_are_left_out_and_remembered(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs / "val", tmp_path / "val")
    whole = scan(tmp_path, "val")
    (tmp_path / "val/cat/03-turned.jpg").write_bytes(b"")
    path = tmp_path / "val/owl/09-grey.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    shown = photo_views(whole, loading=Loading(1, max_bad_images=2))
    groups = list(shown.read(CPU))
    assert shown.bad == {
        "val/cat/03-turned.jpg": "not an image", "val/owl/09-grey.jpg": "truncated",
    }  # fmt: skip
    rest, _ = shown.gather()
    assert len(rest) == 38
    assert one_by_one(groups) == wanted(rest, "center")
    assert sorted(shown.digests) == [index for index in range(40) if index not in (3, 39)]
    with pytest.raises(DataError, match=r"^2 files are no readable images: val/cat/03-turned.jpg"):
        list(photo_views(whole, loading=Loading(0, max_bad_images=1)).read(CPU))


def recipe_with(**settings: object) -> ImageNetRecipe:
    settings = {"image_size": SIZE, "batch_size": 8, "bn_group": 0} | settings
    return catalogue.derive(catalogue.find("folder-resnet18"), **settings).recipe


def made_up_axes() -> tuple[np.ndarray, np.ndarray]:
    """Some components and variances of colours."""
    variances, components = principal_axes(np.cov(np.random.default_rng(0).random((3, 50))))
    return components, variances


MEAN = 255 * np.random.default_rng(1).random((3, SIZE, SIZE))


def reader_of(
    photographs: Path, seed: int = 0, group: ProcessGroup = ALONE, **settings: object
) -> CropReader:
    recipe = recipe_with(**settings)
    return CropReader(scan(photographs, "train"), recipe, colour_axes(recipe, *made_up_axes()), seed, group)


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, one, other))


# --- one crop ---------------------------------------------------------------------------------------


def slow_crop(image: Image.Image, recipe: ImageNetRecipe, choice: np.ndarray) -> np.ndarray:
    """A training crop by torchvision's resize, and pixel by pixel."""
    low, high = recipe.scale
    sides = list(range(low, high + 1))
    large = np.asarray(transforms.Resize(sides[int(choice[0] * len(sides))])(image))
    height, width, _ = large.shape
    lefts, tops = range(width - SIZE + 1), range(height - SIZE + 1)
    left, top = lefts[int(choice[1] * len(lefts))], tops[int(choice[2] * len(tops))]
    crop = np.empty((3, SIZE, SIZE), np.uint8)
    for y in range(SIZE):
        for x in range(SIZE):
            across = SIZE - 1 - x if choice[3] < 0.5 and recipe.flip else x
            crop[:, y, x] = large[top + y, left + across]
    return crop


@pytest.mark.parametrize("size", [(64, 48), (33, 90), (20, 20), (5, 9), (SIZE, SIZE)])
@pytest.mark.parametrize("flip", [True, False])
def test_a_crop_is_that_of_a_slow_reference(size: tuple[int, int], flip: bool) -> None:
    recipe, rng = recipe_with(flip=flip), np.random.default_rng(1)
    image = Image.fromarray(blotches(rng, size[1], size[0]))
    edges = np.nextafter(1, 0)
    choices = [*rng.random((12, 4)), [0, 0, 0, 0], [edges] * 4, [0, edges, 0, 0.5]]
    for choice in choices:
        assert np.array_equal(training_crop(image, recipe, choice), slow_crop(image, recipe, choice))


def test_all_sides_places_and_flips_are_equally_likely() -> None:
    """The image tells where a crop lies: red counts columns, green rows, and nothing is resampled."""
    across, down = np.meshgrid(np.arange(37), np.arange(35))
    image = Image.fromarray(np.stack([across, down, down], axis=2).astype(np.uint8))
    recipe = recipe_with(scale=(35, 35))
    found: Counter = Counter()
    for choice in np.concatenate([crop_choices(7, iteration, 256)[0] for iteration in range(24)]):
        crop = training_crop(image, recipe, choice).astype(int)
        flipped = crop[0, 0, 0] > crop[0, 0, 1]
        found[crop[0].min(), crop[1].min(), flipped] += 1
    assert set(found) == {(x, y, f) for x in range(6) for y in range(4) for f in (False, True)}
    statistic = sum((count - 128) ** 2 / 128 for count in found.values())
    assert statistic < 47 + 4 * np.sqrt(2 * 47) + 8  # chi-squared; passed by all but one in 30,000 by chance


def test_draws_of_images_iterations_and_seeds_are_independent() -> None:
    batches = [crop_choices(seed, iteration, 256) for seed in range(3) for iteration in range(3)]
    views = np.stack([np.concatenate(each, axis=1) for each in batches])
    assert len(np.unique(views)) == views.size
    columns = views.transpose(2, 0, 1).reshape(7, -1)
    assert np.abs(np.corrcoef(columns) - np.eye(7)).max() < 4.5 / np.sqrt(columns.shape[1])
    assert np.abs(np.corrcoef(views[..., 0]) - np.eye(9)).max() < 4.5 / np.sqrt(256)


# --- colours ----------------------------------------------------------------------------------------


def in_closed_form(variances: np.ndarray, components: np.ndarray, strength: float) -> np.ndarray:
    """Covariance of the shifts: strength^2 times the sum of lambda^2 p p^T, on the scale 0..255."""
    terms = [lam**2 * np.outer(p, p) for lam, p in zip(variances, components.T, strict=True)]
    return (255 * strength) ** 2 * np.sum(terms, axis=0)


@pytest.mark.parametrize("colour", ["pca_computed", "pca_published"])
@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_shifts_have_the_covariance_of_the_closed_form(colour: str, strength: float) -> None:
    components, variances = made_up_axes()
    if colour == "pca_computed":
        wanted = in_closed_form(variances, components, strength)
    else:
        published = np.array(augment.PUBLISHED_VARIANCES), np.array(augment.PUBLISHED_COMPONENTS)
        wanted = in_closed_form(*published, strength)
    axes = colour_axes(recipe_with(colour=colour, colour_std=strength), components, variances)
    assert np.allclose(axes @ axes.T, wanted, rtol=1e-12)


@pytest.mark.parametrize("settings", [{"colour": "none"}, {"colour_std": 0.0}])
def test_without_the_augmentation_nothing_is_shifted(settings: dict[str, object]) -> None:
    assert not colour_axes(recipe_with(**settings), *made_up_axes()).any()


# --- batches ----------------------------------------------------------------------------------------


def test_a_batch_holds_the_crops_of_its_images(photographs: Path) -> None:
    reader = reader_of(photographs)
    (crops, labels, shifts), (choices, colours) = reader[11], crop_choices(0, 11, 8)
    for place, index in enumerate(reader.sampler.indices(11).tolist()):
        image = read_image(reader.photos.path(index))[0]
        assert np.array_equal(crops[place], slow_crop(image, reader.recipe, choices[place]))
        assert labels[place] == reader.photos.labels[index]
    assert np.allclose(shifts[:, :, 0, 0], [reader.axes @ numbers for numbers in colours])
    assert (crops.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_a_batch_depends_on_seed_and_iteration_alone(photographs: Path) -> None:
    one = reader_of(photographs, seed=4)
    known = [one[iteration] for iteration in range(13)]  # beyond the first epoch
    other = reader_of(photographs, seed=4)
    for iteration in (12, 3, 0):  # as after a resumption, in any order
        assert same(other[iteration], known[iteration])
    assert not same(known[0], known[1])
    assert not same(reader_of(photographs, seed=5)[0], known[0])


@pytest.mark.parametrize("world", [2, 8])
def test_processes_have_the_batch_between_them(world: int, photographs: Path) -> None:
    whole = reader_of(photographs)[5]
    shares = [reader_of(photographs, group=ProcessGroup(rank, world))[5] for rank in range(world)]
    for parts, together in zip(zip(*shares, strict=True), whole, strict=True):
        assert {len(part) for part in parts} == {8 // world}
        assert torch.equal(torch.cat(parts), together)


def batches_of(
    reader: CropReader, start: int, stop: int, workers: int = 0, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    normalisation = Normalisation(reader.recipe, torch.as_tensor(MEAN, dtype=torch.float32)).to(device)
    return photo_batches(reader, range(start, stop), normalisation, Loading(workers))


def test_images_are_shifted_less_the_mean_and_divided(photographs: Path) -> None:
    reader = reader_of(photographs, pixel_divisor=58.0, colour_std=0.3)
    (images, labels), (crops, truth, shifts) = next(batches_of(reader, 2, 3)), reader[2]
    wanted = (crops.numpy().astype(float) + shifts.numpy() - MEAN) / 58
    assert np.abs(images.numpy() - wanted).max() < 1e-5
    assert images.dtype == torch.float32
    assert torch.equal(labels, truth)
    assert shifts.abs().min() > 0


def test_an_image_that_has_gone_stops_the_run(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs / "train", tmp_path / "train")
    reader = reader_of(tmp_path)
    path = reader.photos.path(int(reader.sampler.indices(1)[3]))
    path.unlink()
    batches = batches_of(reader, 0, 3, workers=1)
    next(batches)
    told = (
        f"an image has changed .* all: train/{path.parent.name}/{path.name} \\(cannot be read: No such file"
    )
    with pytest.raises(DataError, match=told):
        next(batches)


@pytest.mark.gpu
def test_a_gpu_gets_the_batches_of_a_cpu(photographs: Path) -> None:
    reader = reader_of(photographs)
    read = batches_of(reader, 0, 4, workers=2, device=torch.device("cuda"))
    for (images, labels), (others, truth) in zip(batches_of(reader, 0, 4), read, strict=True):
        assert others.is_cuda
        assert torch.allclose(images, others.cpu(), atol=1e-4)
        assert torch.equal(labels, truth.cpu())


def test_waiting_for_images_is_told_once_while_the_run_goes_on(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = catalogue.derive(catalogue.find("folder-resnet18"), image_size=SIZE, batch_size=8)
    monkeypatch.setattr("resrepro.data.feeds.TELL_AFTER", 3)
    said: list[str] = []
    feed = open_feed(spec, photographs, CPU, 0, INLINE, said.append)
    said.clear()
    for _ in feed.batches(0, 3):
        pass
    assert not said
    for _ in feed.batches(0, 10):  # nothing is done but to wait
        pass
    (sentence,) = said
    assert re.fullmatch(
        r"So far (9\d|100)% of the time goes by waiting for images: see --workers\.", sentence
    )
    assert feed.waited > 0
