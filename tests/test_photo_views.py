"""Test views: every image once over all processes, cut as the protocol says, groups of equal size."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blotches, write_photo
from torchvision import transforms

from resrepro.data import ALONE, ProcessGroup, loader
from resrepro.data.loader import Loading, PhotoViews, Views
from resrepro.data.photos import Photos, planes, read_image, scan, scan_both
from resrepro.data.statistics import statistics_of
from resrepro.errors import DataError
from resrepro.spec.catalogue import protocol_for

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
    image = read_image(path).image
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


@pytest.mark.parametrize("protocol", ["center", "multi_scale"])
def test_workers_show_what_none_show_in_the_same_order(protocol: str, photographs: Path) -> None:
    photos = scan(photographs, "val")
    plain = list(photo_views(photos, protocol).read(CPU))
    read = list(photo_views(photos, protocol, Loading(workers=2)).read(CPU))
    assert len(plain) == len(read)
    for one, other in zip(plain, read, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(a, b) for a, b in zip(one.scales, other.scales, strict=True))


# --- what was read ----------------------------------------------------------------------------------


def test_what_was_read_gives_the_checksum_of_the_pass_over_all_images(photographs: Path) -> None:
    both = scan_both(photographs)
    shown = photo_views(both.val, "ten_crop")
    for _ in range(2):  # they may be read again
        assert sum(len(group.labels) for group in shown.read(CPU)) == 40
    readable, checksum = shown.gather()
    assert readable is both.val
    assert checksum == statistics_of(both, SIZE, INLINE).checksums["val"]


def test_bad_images_are_left_out_and_remembered(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs / "val", tmp_path / "val")
    whole = scan(tmp_path, "val")
    (tmp_path / "val/cat/03-turned.jpg").write_bytes(b"")
    path = tmp_path / "val/owl/09-grey.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    shown = photo_views(whole, loading=Loading(1, max_bad_images=2))
    groups = list(shown.read(CPU))
    assert shown.bad.reasons == {
        "val/cat/03-turned.jpg": "not an image", "val/owl/09-grey.jpg": "truncated",
    }  # fmt: skip
    rest, _ = shown.gather()
    assert len(rest) == 38
    assert one_by_one(groups) == wanted(rest, "center")
    assert sorted(shown.digests) == [index for index in range(40) if index not in (3, 39)]
    with pytest.raises(DataError, match=r"^2 files are no readable images: val/cat/03-turned.jpg"):
        list(photo_views(whole, loading=Loading(0, max_bad_images=1)).read(CPU))
