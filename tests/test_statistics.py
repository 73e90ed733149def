"""The pass over the photographs against plain numpy, and the cache that keeps what it finds."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torchvision import transforms

from resrepro.data import ProcessGroup, statistics
from resrepro.data.folder import scan_both
from resrepro.data.loader import Loading
from resrepro.data.photos import planes, read_image
from resrepro.data.statistics import Statistics, principal_axes, statistics_of
from resrepro.errors import DataError

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


def spoil(top: Path) -> dict[str, dict[str, str]]:
    """Make some files unreadable; says which by split, and why."""
    (top / "train/cat/00-rgb.jpg").write_bytes(b"")
    (top / "train/owl/notes.txt").write_text("not a photograph")
    (top / "val/dog/05-palette.png").write_bytes(b"GIF")
    path = top / "val/owl/08-rgb.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    return {
        "train": {"cat/00-rgb.jpg": "not an image", "owl/notes.txt": "not an image"},
        "val": {"dog/05-palette.png": "not an image", "owl/08-rgb.jpg": "truncated"},
    }


# --- what is found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crops(photographs: Path) -> np.ndarray:
    """Centre crops of all training images by torchvision, (80, 3, 32, 32); 37 is to 32 as 256 to 224."""
    view = transforms.Compose([transforms.Resize(37), transforms.CenterCrop(SIZE)])
    files = sorted(path for path in (photographs / "train").rglob("*") if path.is_file())
    return np.stack([planes(view(read_image(path).image)) for path in files]).astype(float)


def test_the_mean_image_is_that_of_the_centre_crops(photographs: Path, crops: np.ndarray) -> None:
    found = found_in(photographs)
    assert found.mean.shape == (3, SIZE, SIZE)
    assert np.allclose(found.mean, crops.mean(axis=0), rtol=1e-13)


def test_the_components_are_those_of_the_covariance_of_all_pixels(
    photographs: Path, crops: np.ndarray
) -> None:
    found = found_in(photographs)
    pixels = crops.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    wanted = np.cov(pixels, bias=True)
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
    assert found.bad == {"train": {}, "val": {}}


def test_checksums_change_with_contents_and_names_but_not_with_times(copy: Path) -> None:
    before = found_in(copy).checksums
    for path in copy.rglob("*.jpg"):
        os.utime(path, (0, 0))
    assert found_in(copy).checksums == before
    (copy / "val/dog/00-rgb.jpg").rename(copy / "val/dog/01-rgb.jpg")
    renamed = found_in(copy).checksums
    assert renamed["train"] == before["train"]
    assert renamed["val"] != before["val"]
    shutil.copy(copy / "val/owl/07-rgb.png", copy / "val/dog/01-rgb.jpg")
    replaced = found_in(copy).checksums
    assert replaced["train"] == before["train"]
    assert replaced["val"] not in (before["val"], renamed["val"])


# --- bad files --------------------------------------------------------------------------------------


def test_bad_files_are_left_out_and_told(copy: Path) -> None:
    bad = spoil(copy)
    found = found_in(copy)
    assert found.bad == bad
    told = found.bad_images(most=4)
    (notice,) = told.notices()
    assert notice.startswith("4 files are no readable images: train/cat/00-rgb.jpg (not an image), ")
    for split, names in bad.items():
        for name in names:
            (copy / split / name).unlink()
    clean = found_in(copy)
    assert clean.checksums == found.checksums
    assert np.array_equal(clean.mean, found.mean)
    assert clean.bad_images(most=0).notices() == ()


def test_too_many_bad_files_are_counted_over_both_splits(copy: Path) -> None:
    spoil(copy)
    with pytest.raises(DataError) as trouble:
        found_in(copy).bad_images(most=1)
    text = str(trouble.value)
    assert text.startswith("4 files are no readable images: ")
    assert "val/owl/08-rgb.jpg (truncated)" in text
    assert "--max-bad-images 4" in text


def test_a_training_set_of_no_images_at_all_is_an_error_for_people(copy: Path) -> None:
    for path in (copy / "train").rglob("*.*"):
        path.write_text("no image")
    found = found_in(copy)
    assert len(found.bad["train"]) == 80
    with pytest.raises(DataError, match=r"^80 files .* and 75 more"):
        found.bad_images(most=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_find_what_none_find(workers: int, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(copy)
    plain = found_in(copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy / "other"))
    assert same(found_in(copy, Loading(workers)), plain)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_find_what_one_finds(
    world: int, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads its chunks; what would be sent between them is handed on here."""
    spoil(copy)
    plain = found_in(copy)
    photos = scan_both(copy)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    sums: list[list[object]] = [[], []]
    for rank in range(world):
        group = ProcessGroup(rank, world)
        sums[0].append(statistics._sums(photos.train, SIZE, INLINE, group, with_pixels=True))
        sums[1].append(statistics._sums(photos.val, SIZE, INLINE, group, with_pixels=False))
    received = iter(sums)
    group = ProcessGroup(all_gather=lambda part: next(received))
    assert same(statistics._pass(photos, SIZE, INLINE, group), plain)


# --- the cache --------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every split that is read."""
    counted: list[int] = []
    ordinary = statistics.read_ahead

    def read_ahead(reader: object, items: range, *rest: object, **named: object) -> Iterator[object]:
        counted.append(len(items))
        return ordinary(reader, items, *rest, **named)

    monkeypatch.setattr(statistics, "read_ahead", read_ahead)
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


def test_another_size_makes_a_pass_of_its_own(photographs: Path, passes: list[int]) -> None:
    for size in (SIZE, 48, SIZE, 48):
        assert found_in(photographs, size=size).mean.shape == (3, size, size)
    assert len(passes) == 4


def test_a_changed_file_makes_a_new_pass(copy: Path, passes: list[int]) -> None:
    first = found_in(copy)
    shutil.copy(copy / "train/owl/07-rgb.png", copy / "train/cat/07-rgb.png")
    second = found_in(copy)
    assert len(passes) == 4
    assert not np.array_equal(first.mean, second.mean)
    os.utime(copy / "val/cat/07-rgb.png", (0, 0))
    assert same(found_in(copy), second)
    assert len(passes) == 6


def test_a_damaged_cache_is_made_anew(photographs: Path, empty_cache: Path, passes: list[int]) -> None:
    first = found_in(photographs)
    path = cache_file(empty_cache)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [b"", b"\n", whole[:-1], whole[: len(whole) // 2], b"\0" * len(whole), whole[100:]]
    for place in [*range(0, 70, 3), *rng.integers(0, len(whole), 60), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        assert statistics._read(path) is None
    assert same(found_in(photographs), first)
    assert len(passes) == 4
    assert path.read_bytes() == whole
    assert same(found_in(photographs), first)
    assert len(passes) == 4


def test_names_that_are_no_utf8_are_kept(copy: Path, passes: list[int]) -> None:
    odd = os.fsdecode(b"cat/\xe9.jpg")
    (copy / "val" / odd).write_bytes(b"no image")
    assert found_in(copy).bad["val"] == found_in(copy).bad["val"] == {odd: "not an image"}
    assert len(passes) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    photographs: Path, empty_cache: Path, passes: list[int]
) -> None:
    empty_cache.write_text("a file where the folder should be")
    assert same(found_in(photographs), found_in(photographs))
    assert len(passes) == 4


def test_a_user_without_a_home_has_no_cache(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert same(found_in(photographs), found_in(photographs))
    assert len(passes) == 4


def test_the_cache_lies_where_the_user_keeps_caches(
    photographs: Path, tmp_path: Path, empty_cache: Path
) -> None:
    found_in(photographs)
    assert cache_file(empty_cache).suffix == ".json"
    assert [path.name for path in empty_cache.iterdir()] == ["resrepro"]
