"""Listing folders of photographs: which files, in which order, under which labels, and what is refused."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resrepro.data.photos import (
    BadImage,
    Photos,
    PhotoSet,
    checksum,
    imagenet_classes,
    notices_of,
    read_image,
    scan,
    scan_both,
)
from resrepro.errors import DataError


def made(top: Path, *files: str) -> Path:
    """A folder with such files, whose content is their name."""
    for file in files:
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_text(file)
    return top


def names_of(photos: Photos) -> list[str]:
    return [os.fsdecode(path) for path in photos.paths]


# --- which files ------------------------------------------------------------------------------------


def test_classes_and_files_come_in_order_of_their_names(tmp_path: Path) -> None:
    made(tmp_path, "val/b/2.jpg", "val/b/10.jpg", "val/a/z.jpg", "val/B/1.png", "val/a/m/deep/3.jpg")
    photos = scan(tmp_path, "val")
    assert photos.classes == ("B", "a", "b")
    assert names_of(photos) == ["B/1.png", "a/m/deep/3.jpg", "a/z.jpg", "b/10.jpg", "b/2.jpg"]
    assert photos.labels.tolist() == [0, 1, 1, 2, 2]
    assert (len(photos), photos.name(3), photos.path(3)) == (5, "val/b/10.jpg", tmp_path / "val/b/10.jpg")


def test_hidden_files_pipes_and_files_beside_the_classes_are_passed_over(tmp_path: Path) -> None:
    made(
        tmp_path, "val/a/1.jpg", "val/a/.DS_Store", "val/.cache/x.jpg", "val/a/.thumbs/1.jpg", "val/list.txt"
    )
    os.mkfifo(tmp_path / "val/a/0.jpg")
    photos = scan(tmp_path, "val")
    assert (photos.classes, names_of(photos)) == (("a",), ["a/1.jpg"])


def test_links_are_followed_and_one_to_nothing_counts_as_a_file(tmp_path: Path) -> None:
    made(tmp_path, "store/a/1.jpg", "secret.txt", "val/b/1.jpg")
    (tmp_path / "val/a").symlink_to(tmp_path / "store/a")
    (tmp_path / "val/b/2.jpg").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "val/b/3.jpg").symlink_to(tmp_path / "nothing.jpg")
    photos = scan(tmp_path, "val")
    assert names_of(photos) == ["a/1.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"]
    for index, told in ((2, "not an image"), (3, "missing")):
        with pytest.raises(BadImage, match=f"^{told}$"):
            read_image(photos.path(index))


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/é.jpg", "val/a/1.jpg")
    odd = os.fsdecode(b"\xe9.jpg")
    (tmp_path / "val/a" / odd).write_bytes(b"x")
    both = scan_both(tmp_path)
    assert names_of(both.val) == ["a/1.jpg", f"a/{odd}"]
    assert both.val.path(1).read_bytes() == b"x"
    assert len(both.fingerprint()) == len(checksum(both.val, ["1", "2"])) == 64


# --- what is refused --------------------------------------------------------------------------------


def refusal(top: Path) -> str:
    with pytest.raises(DataError) as trouble:
        scan_both(top)
    text = str(trouble.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    ordinary = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return ordinary(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == f"{tmp_path / 'train/b'} cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["train/a/1", "train/b/1"], "has no folder 'val'"),
        (["val/a/1"], "has no folder 'train'"),
        (["train/a/1", "train/b/1", "val"], "has no folder 'val'"),
        (["train/1.jpg", "val/a/1"], "train has no classes"),
        (["train/a/1", "train/b/1", "val/a/1", "val/b/.hidden"], "the class 'b' in .*/val is empty"),
        (["train/a/1", "val/a/1"], "a single class"),
        (["train/a/1", "train/b/1", "val/heron/1"], "val has the class 'heron', which train lacks"),
        (["train/a/1", "train/b\n/1", "val/\x1b[2J/1"], r"val has the class '\\x1b\[2J'"),
    ],
)
def test_a_folder_that_cannot_be_trained_on(tmp_path: Path, files: list[str], told: str) -> None:
    assert re.search(told, refusal(made(tmp_path, *files)))


def test_links_that_lead_round_in_a_circle(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    (tmp_path / "val/loop").symlink_to(tmp_path / "val")
    assert "cannot be read: Too many levels of symbolic links" in refusal(tmp_path)


# --- labels and parts -------------------------------------------------------------------------------


def test_val_may_lack_classes_and_counts_those_of_train(tmp_path: Path) -> None:
    made(
        tmp_path,
        "train/a/1.jpg",
        "train/b/1.jpg",
        "train/c/1.jpg",
        "val/a/1.jpg",
        "val/c/1.jpg",
        "val/c/2.jpg",
    )
    val = scan_both(tmp_path).val
    assert val.classes == ("a", "b", "c")
    assert val.labels.tolist() == [0, 2, 2]


def test_without_some_files_the_others_keep_what_is_theirs(photographs: Path) -> None:
    whole = scan(photographs, "val")
    rest = whole.without({whole.name(index) for index in (0, 17, 39)} | {"train/" + names_of(whole)[1]})
    kept = [index for index in range(40) if index not in (0, 17, 39)]
    assert names_of(rest) == [names_of(whole)[index] for index in kept]
    assert rest.labels.tolist() == [whole.labels[index] for index in kept]


# --- checksums and fingerprints ---------------------------------------------------------------------


def test_a_checksum_is_that_of_names_and_contents_in_order(tmp_path: Path) -> None:
    photos = scan(made(tmp_path, "val/a/1.jpg", "val/b/2.jpg"), "val")
    wanted = hashlib.sha256(b"a/1.jpg one\nb/2.jpg two\n").hexdigest()
    assert checksum(photos, ["one", "two"]) == wanted
    assert checksum(photos, ["two", "one"]) != wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda top: os.utime(top / "train/a/1.jpg", ns=(0, 1_000_000_008)),
        lambda top: (top / "train/a/1.jpg").write_text("longer than it was"),
        lambda top: (top / "train/a/1.jpg").rename(top / "train/a/2.jpg"),
        lambda top: (top / "train/a/1.jpg").rename(top / "val/a/1.jpg"),
    ],
)
def test_a_fingerprint_changes_with_name_size_time_and_split(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    top = made(tmp_path, "train/a/0.jpg", "train/a/1.jpg", "train/b/1.jpg", "val/a/0.jpg")
    os.utime(top / "train/a/1.jpg", ns=(0, 1_000_000_007))
    before = scan_both(top).fingerprint()
    assert scan_both(top).fingerprint() == before
    change(top)
    assert scan_both(top).fingerprint() != before


# --- ImageNet ---------------------------------------------------------------------------------------


def test_imagenet_has_a_thousand_classes_in_order() -> None:
    classes = imagenet_classes()
    assert len(classes) == len(set(classes)) == 1000
    assert list(classes) == sorted(classes)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes)
    # tench, goldfish, golden retriever, tabby, Egyptian cat, banana, toilet tissue
    anchors = {0: "n01440764", 1: "n01443537", 207: "n02099601", 281: "n02123045", 285: "n02124075"}
    anchors |= {954: "n07753592", 999: "n15075141"}
    assert {index: classes[index] for index in anchors} == anchors


def of_imagenet(photos: PhotoSet, **lengths: int) -> PhotoSet:
    """Photographs that pass for as many of ImageNet's classes."""
    parts = {
        split: dataclasses.replace(
            getattr(photos, split), classes=imagenet_classes(), paths=range(length), labels=np.zeros(length)
        )
        for split, length in lengths.items()
    }
    return PhotoSet(**parts)


def test_other_images_than_those_of_imagenet_are_told(photographs: Path) -> None:
    ours = scan_both(photographs)
    told = "4 classes, 80 training and 40 validation images"
    assert notices_of("folder", ours) == (f"the folder {photographs.name} has {told}",)
    (notice,) = notices_of("imagenet", ours)
    assert notice.startswith(f"the images are not those of ImageNet: {told}")
    assert notices_of("imagenet", of_imagenet(ours, train=1_281_167, val=50_000)) == ()
    notice, lacking = notices_of("imagenet", of_imagenet(ours, train=1_281_166, val=50_000))
    assert "1,281,166 training" in notice
    assert re.fullmatch(r"val has no images of \d+ of the classes", lacking)
