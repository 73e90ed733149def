"""The pass over the photographs against plain numpy, and the cache that keeps what it finds."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

from resrepro.data import loader
from resrepro.data.augment import planes
from resrepro.data.loader import CropReader, Loading, PhotoViews, left_out, read_ahead
from resrepro.data.photos import PhotoSet, read_image, scan_both
from resrepro.data.statistics import Statistics, decoded_once, principal_axes, statistics_of
from resrepro.spec import catalogue

SIZE = 32
INLINE = Loading(workers=0)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(photographs: Path, tmp_path: Path) -> Path:
    """The made-up photographs where a test may change them."""
    shutil.copytree(photographs, tmp_path / "copy")
    return tmp_path / "copy"


def found_in(top: Path, loading: Loading = INLINE, size: int = SIZE) -> Statistics:
    return statistics_of(scan_both(top), size, loading)


def same(one: Statistics, other: Statistics) -> bool:
    arrays = all(
        np.array_equal(getattr(one, part), getattr(other, part))
        for part in ("mean", "components", "variances")
    )
    return arrays and (one.bad, one.checksums) == (other.bad, other.checksums)


def spoil(top: Path) -> dict[str, str]:
    """Make some files unreadable; says which, and why."""
    (top / "train/cat/00-rgb.jpg").write_bytes(b"")
    (top / "train/owl/notes.txt").write_text("not a photograph")
    (top / "val/dog/05-palette.png").write_bytes(b"GIF")
    path = top / "val/owl/08-rgb.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    return {
        "train/cat/00-rgb.jpg": "not an image", "train/owl/notes.txt": "not an image",
        "val/dog/05-palette.png": "not an image", "val/owl/08-rgb.jpg": "truncated",
    }  # fmt: skip


# --- what is found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crops(photographs: Path) -> np.ndarray:
    """Centre crops of all training images by torchvision, (80, 3, 32, 32); 37 is to 32 as 256 to 224."""
    view = transforms.Compose([transforms.Resize(37), transforms.CenterCrop(SIZE)])
    files = sorted(path for path in (photographs / "train").rglob("*") if path.is_file())
    return np.stack([planes(view(read_image(path)[0])) for path in files]).astype(float)


def test_mean_image_and_components_are_those_of_the_centre_crops(
    photographs: Path, crops: np.ndarray
) -> None:
    found = found_in(photographs)
    assert found.mean.shape == (3, SIZE, SIZE)
    assert np.allclose(found.mean, crops.mean(axis=0), rtol=1e-13)
    wanted = np.cov(crops.transpose(1, 0, 2, 3).reshape(3, -1) / 255, bias=True)
    assert np.allclose((found.components * found.variances) @ found.components.T, wanted, rtol=1e-9)
    assert np.allclose(found.components.T @ found.components, np.eye(3), atol=1e-12)
    assert np.allclose(found.variances, np.linalg.svd(wanted, compute_uv=False), rtol=1e-9)


def test_axes_are_ordered_and_of_one_sign() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    variances, axes = principal_axes((turn * [0.2, 0.9, 0.5]) @ turn.T)
    assert np.allclose(variances, [0.9, 0.5, 0.2])
    for axis, wanted in zip(axes.T, turn.T[[1, 2, 0]], strict=True):
        assert np.isclose(abs(axis @ wanted), 1)
        assert axis[np.abs(axis).argmax()] > 0


def test_checksums_are_of_names_and_contents(photographs: Path) -> None:
    found = found_in(photographs)
    for split in ("train", "val"):
        total = hashlib.sha256()
        for path in sorted(path for path in (photographs / split).rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(photographs / split)} {content}\n".encode())
        assert found.checksums[split] == total.hexdigest()
    assert found.bad == {}


# --- bad files --------------------------------------------------------------------------------------


def test_bad_files_are_left_out_and_told_also_by_workers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = spoil(copy)
    found = found_in(copy)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(copy / ".cache"))
        assert same(found_in(copy, Loading(2)), found)
    assert found.bad == bad
    (notice,) = left_out(found.bad)
    assert notice.startswith("4 files are no readable images: train/cat/00-rgb.jpg (not an image), ")
    for name in bad:
        (copy / name).unlink()
    clean = found_in(copy)
    assert clean.checksums == found.checksums
    assert np.array_equal(clean.mean, found.mean)
    assert clean.bad == {}


# --- the cache --------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every split that is read."""
    counted: list[int] = []
    ordinary = loader.read_ahead

    def read_ahead(give: object, items: range, *rest: object) -> Iterator[object]:
        counted.append(len(items))
        return ordinary(give, items, *rest)

    monkeypatch.setattr(loader, "read_ahead", read_ahead)
    return counted


def cache_file(cache: Path) -> Path:
    (path,) = (cache / "resrepro").iterdir()
    return path


def test_a_second_run_reads_nothing(copy: Path, passes: list[int]) -> None:
    spoil(copy)
    said: list[str] = []
    first = statistics_of(scan_both(copy), SIZE, INLINE, said.append)
    assert len(passes) == 2
    (sentence,) = said
    assert sentence.startswith("Reading 121 images once")
    second = statistics_of(scan_both(copy), SIZE, Loading(workers=2), said.append)
    assert len(passes) == 2
    assert len(said) == 1
    assert same(first, second)


def test_a_changed_file_makes_a_new_pass(copy: Path, passes: list[int]) -> None:
    first = found_in(copy)
    assert found_in(copy, size=48).mean.shape == (3, 48, 48)  # another size has a file of its own
    passes.clear()
    shutil.copy(copy / "train/owl/07-rgb.png", copy / "train/cat/07-rgb.png")
    second = found_in(copy)
    assert len(passes) == 2
    assert not np.array_equal(first.mean, second.mean)
    os.utime(copy / "val/cat/07-rgb.png", (0, 0))
    assert same(found_in(copy), second)
    assert len(passes) == 4


def test_a_damaged_cache_is_made_anew(photographs: Path, empty_cache: Path, passes: list[int]) -> None:
    first = found_in(photographs)
    path = cache_file(empty_cache)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1", b"2", 1))
    assert same(found_in(photographs), first)
    assert same(found_in(photographs), first)
    assert len(passes) == 4
    assert path.read_bytes() == whole


@pytest.mark.parametrize("homeless", [True, False])
def test_a_cache_that_cannot_be_written_is_no_error(
    photographs: Path, empty_cache: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch, homeless: bool
) -> None:
    empty_cache.write_text("a file where the folder should be")
    if homeless:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    assert same(found_in(photographs), found_in(photographs))
    assert len(passes) == 4


# --- decoded pixels ---------------------------------------------------------------------------------


def kept(
    photos: PhotoSet, said: list[str] | None = None, size: int = 1, loading: Loading = INLINE
) -> PhotoSet:
    return decoded_once(photos, size, loading, [].append if said is None else said.append)


def pixel_files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.pixels"))


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_pixels_are_those_of_the_files_and_nothing_is_decoded_again(
    workers: int, photographs: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, said, loading = scan_both(photographs), list[str](), Loading(workers)
    size = found_in(photographs).size
    both = kept(photos, said, size, loading)
    assert said == [
        f"Keeping the decoded images, 1 MB, in {empty_cache / 'resrepro'} for all epochs and runs."
    ]
    assert sum(path.stat().st_size for path in pixel_files(empty_cache)) == size + 8 * 120
    recipe = catalogue.derive(catalogue.find("folder-resnet18"), image_size=SIZE, batch_size=8).recipe
    plain = [CropReader(photos.train, recipe, np.eye(3), 0)[number] for number in range(11)]
    views = list(
        PhotoViews(photos.val, catalogue.protocol_for("ten_crop", "imagenet"), SIZE, INLINE).read(None)
    )
    monkeypatch.setattr("resrepro.data.photos.read_image", None)
    reader = CropReader(kept(photos, said).train, recipe, np.eye(3), 0)
    for one, other in zip(read_ahead(reader.__getitem__, range(11), loading), plain, strict=True):
        assert all(map(torch.equal, one, other))
    shown = PhotoViews(both.val, catalogue.protocol_for("ten_crop", "imagenet"), SIZE, loading)
    for one, other in zip(shown.read(None), views, strict=True):
        assert all(map(torch.equal, one.scales, other.scales))
    assert len(said) == 1
    assert len(pickle.dumps(both)) < len(pickle.dumps(photos)) + 1000  # a process maps the file for itself


@pytest.mark.parametrize("damage", [b"", b"short", "cut", "longer"])
def test_damaged_pixels_are_decoded_anew(damage: bytes | str, photographs: Path, empty_cache: Path) -> None:
    photos = scan_both(photographs)
    kept(photos)
    for path in pixel_files(empty_cache):
        whole = path.read_bytes()
        other = path.with_suffix(".damaged")
        other.write_bytes({"cut": whole[:-4], "longer": whole + bytes(8)}.get(damage, damage))
        other.replace(path)
    said: list[str] = []
    both = kept(photos, said)
    assert len(said) == 1
    assert np.array_equal(planes(both.val.read(39)[0]), planes(photos.val.read(39)[0]))
    assert pixel_files(empty_cache)[0].read_bytes()


def test_too_many_pixels_or_too_small_a_disk_keep_nothing(
    photographs: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, said = scan_both(photographs), list[str]()
    for size in (4 * 10**9 + 1, 10**6):
        assert kept(photos, said, size).train.decoded is None
        monkeypatch.setattr("resrepro.data.statistics.free_memory", lambda: 3 * 10**6)
    assert not said
    monkeypatch.setattr("resrepro.data.statistics.free_memory", lambda: 10**9)
    empty_cache.rename(empty_cache.with_name("away"))
    empty_cache.write_text("a file where the folder should be")
    assert kept(photos, said).train.decoded is None
    (sentence,) = said
    assert sentence.endswith("each is decoded whenever it is needed.")


def test_an_image_that_has_gone_bad_since_is_left_to_the_run(copy: Path, empty_cache: Path) -> None:
    photos = scan_both(copy)
    photos.val.path(7).write_bytes(b"")
    assert kept(photos).val.decoded is None
    assert len(pixel_files(empty_cache)) == 1
