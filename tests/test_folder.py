"""Listing folders of photographs: which files, in which order, under which labels, and what is refused."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTO_CLASSES, PHOTOS_PER_CLASS

from resrepro.data.folder import (
    Names,
    PhotoSet,
    checksum,
    imagenet_classes,
    notices_of,
    scan,
    scan_both,
)
from resrepro.data.photos import BadImage, read_image
from resrepro.errors import DataError


def made(top: Path, *files: str) -> Path:
    """A folder with such files, whose content is their name."""
    for file in files:
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_text(file)
    return top


# --- which files ------------------------------------------------------------------------------------


def test_classes_and_files_come_in_order_of_their_names(tmp_path: Path) -> None:
    made(tmp_path, "val/b/2.jpg", "val/b/10.jpg", "val/a/z.jpg", "val/B/1.png", "val/a/a.jpg")
    photos = scan(tmp_path, "val")
    assert photos.classes == ("B", "a", "b")
    assert list(photos.paths) == ["B/1.png", "a/a.jpg", "a/z.jpg", "b/10.jpg", "b/2.jpg"]
    assert photos.labels.tolist() == [0, 1, 1, 2, 2]
    assert photos.sizes.tolist() == [len(f"val/{path}") for path in photos.paths]
    assert len(photos) == 5
    assert photos.path(3) == tmp_path / "val/b/10.jpg"


def test_the_listing_is_that_of_a_sorted_walk(photographs: Path) -> None:
    for split, count in PHOTOS_PER_CLASS.items():
        photos = scan(photographs, split)
        files = sorted(path for path in (photographs / split).rglob("*") if path.is_file())
        assert [photos.path(index) for index in range(len(photos))] == files
        assert [photos.classes[label] for label in photos.labels] == [path.parent.name for path in files]
        assert photos.labels.tolist() == np.repeat(range(len(PHOTO_CLASSES)), count).tolist()


def test_hidden_files_and_files_beside_the_classes_are_passed_over(tmp_path: Path) -> None:
    made(
        tmp_path, "val/a/1.jpg", "val/a/.DS_Store", "val/.cache/x.jpg", "val/a/.thumbs/1.jpg", "val/list.txt"
    )
    photos = scan(tmp_path, "val")
    assert photos.classes == ("a",)
    assert list(photos.paths) == ["a/1.jpg"]


def test_folders_in_a_class_belong_to_it(tmp_path: Path) -> None:
    made(tmp_path, "val/a/images/2.jpg", "val/a/1.jpg", "val/a/more/deep/3.jpg", "val/b/1.jpg")
    photos = scan(tmp_path, "val")
    assert list(photos.paths) == ["a/1.jpg", "a/images/2.jpg", "a/more/deep/3.jpg", "b/1.jpg"]
    assert photos.labels.tolist() == [0, 0, 0, 1]


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    made(tmp_path, "store/a/1.jpg", "store/2.jpg", "val/b/1.jpg")
    (tmp_path / "val/a").symlink_to(tmp_path / "store/a")
    (tmp_path / "val/b/2.jpg").symlink_to(tmp_path / "store/2.jpg")
    photos = scan(tmp_path, "val")
    assert list(photos.paths) == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert photos.sizes[2] == len("store/2.jpg")


def test_links_that_lead_back_are_passed_over(tmp_path: Path) -> None:
    made(tmp_path, "val/a/1.jpg", "val/a/below/2.jpg", "elsewhere/3.jpg")
    (tmp_path / "val/a/below/up").symlink_to(tmp_path / "val/a")
    (tmp_path / "val/a/round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "val/a")
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
    assert list(scan(tmp_path, "val").paths) == ["a/1.jpg", "a/below/2.jpg", "a/round/3.jpg"]


def test_a_link_to_nothing_counts_as_a_file(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    (tmp_path / "val/a/2.jpg").symlink_to(tmp_path / "nothing.jpg")
    photos = scan(tmp_path, "val")
    assert list(photos.paths) == ["a/1.jpg", "a/2.jpg"]
    assert scan_both(tmp_path).fingerprint()


def test_pipes_are_passed_over(tmp_path: Path) -> None:
    made(tmp_path, "val/a/1.jpg")
    os.mkfifo(tmp_path / "val/a/0.jpg")
    assert list(scan(tmp_path, "val").paths) == ["a/1.jpg"]


def test_a_link_out_of_the_folder_is_listed_and_gives_at_most_an_image(tmp_path: Path) -> None:
    made(tmp_path, "secret.txt", "top/val/a/1.jpg")
    (tmp_path / "top/val/a/2.jpg").symlink_to(tmp_path / "secret.txt")
    photos = scan(tmp_path / "top", "val")
    assert list(photos.paths) == ["a/1.jpg", "a/2.jpg"]
    with pytest.raises(BadImage, match=r"^not an image$"):
        read_image(photos.path(1))


def test_names_with_control_characters_are_kept_but_written_out_in_messages(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1\n.jpg", "train/b/1.jpg", "val/a/1.jpg")
    assert scan(tmp_path, "train").paths[0] == "a/1\n.jpg"
    made(tmp_path, "val/\x1b[2J/1.jpg")
    assert refusal(tmp_path).startswith("val has the class '\\x1b[2J'")


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/é.jpg", "val/a/1.jpg")
    odd = os.fsdecode(b"\xe9.jpg")
    (tmp_path / "val/a" / odd).write_bytes(b"x")
    both = scan_both(tmp_path)
    assert list(both.val.paths) == ["a/1.jpg", f"a/{odd}"]
    assert both.val.path(1).read_bytes() == b"x"
    assert len(both.fingerprint()) == len(checksum(both.val, ["1", "2"])) == 64


# --- many names in one buffer -----------------------------------------------------------------------


def test_names_are_a_sequence_of_strings() -> None:
    wanted = ["a/1.jpg", "", "b/éß漢.jpg", "c"]
    names = Names(wanted)
    assert list(names) == wanted
    assert [names[index] for index in range(4)] == wanted
    assert [names[np.int64(-1)], names[-4], len(names), len(Names([]))] == ["c", "a/1.jpg", 4, 0]
    for index in (4, -5):
        with pytest.raises(IndexError):
            names[index]


def test_a_worker_gets_little_more_than_the_names_themselves() -> None:
    wanted = [f"n{k // 1300:08}/n{k // 1300:08}_{k}.JPEG" for k in range(20_000)]
    sent = pickle.dumps(Names(wanted))
    assert len(sent) < sum(map(len, wanted)) + 9 * len(wanted)
    assert list(pickle.loads(sent)) == wanted


# --- what is refused --------------------------------------------------------------------------------


def refusal(top: Path) -> str:
    with pytest.raises(DataError) as trouble:
        scan_both(top)
    text = str(trouble.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_a_missing_split(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    assert "no folder 'val'" in refusal(tmp_path)
    made(tmp_path / "other", "val/a/1.jpg")
    assert "no folder 'train'" in refusal(tmp_path / "other")
    assert len(scan(tmp_path / "other", "val")) == 1  # enough to evaluate


def test_a_split_that_is_a_file(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val")
    assert "no folder 'val'" in refusal(tmp_path)


def test_no_classes(tmp_path: Path) -> None:
    made(tmp_path, "train/1.jpg", "val/a/1.jpg")
    assert f"{tmp_path / 'train'} has no classes" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_named(split: str, tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", f"{split}/b/.hidden")
    (tmp_path / split / "c").mkdir(exist_ok=True)
    for name in ("b", "c"):
        shutil.rmtree(tmp_path / split / name)
        (tmp_path / split / name).mkdir()
        assert f"the class {name!r} in {tmp_path / split} is empty" in refusal(tmp_path)
        made(tmp_path, f"{split}/{name}/1.jpg")


def test_a_class_that_is_a_link_to_its_own_split_is_empty(tmp_path: Path) -> None:
    made(tmp_path, "val/a/1.jpg")
    (tmp_path / "val/loop").symlink_to(tmp_path / "val")
    with pytest.raises(DataError, match=r"the class 'loop' in .* is empty"):
        scan(tmp_path, "val")


def test_a_class_that_only_val_has_is_named(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/heron/1.jpg")
    assert "val has the class 'heron', which train lacks" in refusal(tmp_path)


def test_a_single_class(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    assert "a single class" in refusal(tmp_path)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    ordinary = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return ordinary(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == f"{tmp_path / 'train/b'} cannot be read: Permission denied."


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


def test_other_classes_may_number_the_labels(photographs: Path) -> None:
    val = scan(photographs, "val").labelled_by(("owl", "fish", "dog", "cat", "yak"), "the run")
    names = [val.classes[label] for label in val.labels]
    assert names == [path.partition("/")[0] for path in val.paths]


def test_without_some_files_the_others_keep_what_is_theirs(photographs: Path) -> None:
    whole = scan(photographs, "val")
    gone = {whole.paths[0], whole.paths[17], whole.paths[39]}
    rest = whole.without(sorted(gone))
    assert list(rest.paths) == [path for path in whole.paths if path not in gone]
    kept = [index for index, path in enumerate(whole.paths) if path not in gone]
    for name in ("sizes", "labels", "changed"):
        assert getattr(rest, name).tolist() == [getattr(whole, name)[index] for index in kept]


# --- checksums and fingerprints ---------------------------------------------------------------------


def test_a_checksum_is_that_of_names_and_contents_in_order(tmp_path: Path) -> None:
    photos = scan(made(tmp_path, "val/a/1.jpg", "val/b/2.jpg"), "val")
    wanted = hashlib.sha256(b"a/1.jpg one\nb/2.jpg two\n").hexdigest()
    assert checksum(photos, ["one", "two"]) == wanted
    assert checksum(photos, ["two", "one"]) != wanted


def test_a_fingerprint_changes_with_name_size_time_and_split(tmp_path: Path) -> None:
    top = made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    known = {scan_both(top).fingerprint()}
    assert scan_both(top).fingerprint() in known

    def changed() -> bool:
        before = len(known)
        known.add(scan_both(top).fingerprint())
        return len(known) == before + 1

    file = top / "train/a/1.jpg"
    os.utime(file, ns=(0, 1_000_000_007))
    assert changed()
    os.utime(file, ns=(0, 1_000_000_008))
    assert changed()
    file.write_text("longer than it was")
    os.utime(file, ns=(0, 1_000_000_008))
    assert changed()
    file.rename(top / "train/a/2.jpg")
    assert changed()
    (top / "train/a/2.jpg").rename(top / "val/a/2.jpg")
    made(top, "train/a/1.jpg")
    assert changed()
    (top / "train/b/1.jpg").rename(top / "train/a/0.jpg")
    made(top, "train/b/0.jpg")
    assert changed()


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
