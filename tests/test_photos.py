"""Photographs: listed in order, opened whatever their kind, scaled and cut as torchvision does."""

import dataclasses
import hashlib
import io
import os
import re
import struct
import zlib
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from conftest import PHOTO_KINDS, TURNED, blotches, write_photo
from PIL import Image, ImageOps
from torchvision import transforms

from resrepro.data import photos as listing
from resrepro.data.augment import scaled_to
from resrepro.data.feeds import notices_of
from resrepro.data.photos import BadImage, Photos, PhotoSet, imagenet_classes, read_image, scan, scan_both
from resrepro.errors import DataError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(blotches(np.random.default_rng(seed), height, width))


def written(folder: Path, kind: str, width: int = 41, height: int = 30) -> Path:
    path = folder / f"a-{kind}"
    write_photo(path, np.asarray(photo(width, height)))
    return path


def raw(path: Path) -> tuple[np.ndarray, Image.Image]:
    """What is stored in a file, and the image itself."""
    with Image.open(path) as image:
        image.load()
    return np.asarray(image), image


def rgb(path: Path) -> np.ndarray:
    return np.asarray(read_image(path)[0])


# --- any mode becomes RGB ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PHOTO_KINDS)
def test_every_kind_is_rgb_of_its_own_size_and_known_by_its_content(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    image, digest = read_image(path)
    assert (image.mode, image.size) == ("RGB", (41, 30))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_grey_is_repeated_alpha_dropped_palettes_looked_up_and_rotation_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, "grey.jpg")
    assert np.array_equal(rgb(path), np.stack([raw(path)[0]] * 3, axis=2))
    path = written(tmp_path, "alpha.png")
    assert np.array_equal(rgb(path), raw(path)[0][..., :3])
    path = written(tmp_path, "palette.png")
    stored, image = raw(path)
    assert "transparency" in image.info
    assert np.array_equal(rgb(path), np.array(image.getpalette(), np.uint8).reshape(-1, 3)[stored])
    path = written(tmp_path, "turned.jpg")
    stored, image = raw(path)
    assert image.getexif()[0x0112] == TURNED
    assert ImageOps.exif_transpose(image).size == (30, 41)  # what a viewer would show
    assert np.array_equal(rgb(path), stored)


def test_one_bit_becomes_0_and_255_and_sixteen_are_scaled_to_eight(tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(0, 2, (20, 22)).astype(bool)
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert np.array_equal(rgb(tmp_path / "a.png")[..., 2], stored * 255)
    stored = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert np.array_equal(rgb(tmp_path / "a.png")[..., 1], stored // 257)
    (tmp_path / "a.ppm").write_bytes(b"P5 32 32 65535\n" + stored.astype(">u2").tobytes())
    assert np.array_equal(rgb(tmp_path / "a.ppm")[..., 1], stored // 257)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_what_nothing_tells_the_white_of_is_refused(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.arange(256).reshape(16, 16).astype(kind)).save(tmp_path / "a.tif")
    assert reason(tmp_path / "a.tif").startswith("floats, signed, inverted or 32-bit integers")
    sixteen = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16))
    sixteen.save(tmp_path / "b.tif", tiffinfo={262: 0})  # white is zero
    assert reason(tmp_path / "b.tif") == reason(tmp_path / "a.tif")


def test_a_picture_in_the_transparency_alone_is_refused(tmp_path: Path) -> None:
    alpha = np.zeros((20, 20, 4), np.uint8)
    Image.fromarray(alpha).save(tmp_path / "black.png")
    assert not rgb(tmp_path / "black.png").any()
    alpha[5:, :, 3] = 255
    Image.fromarray(alpha).save(tmp_path / "a.png")
    assert "transparency alone" in reason(tmp_path / "a.png")


def test_inks_are_subtracted_from_white(tmp_path: Path) -> None:
    cmyk = np.random.default_rng(1).integers(0, 256, (24, 30, 4), np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    white = 255 - cmyk.astype(float)
    assert np.abs(rgb(tmp_path / "a.tif") - white[..., :3] * white[..., 3:] / 255).max() <= 1
    path = written(tmp_path, "cmyk.jpg", 64, 48)
    assert raw(path)[1].mode == "CMYK"
    assert np.abs(rgb(path) - np.asarray(photo(64, 48)).astype(int)).mean() < 4


# --- what is no image -------------------------------------------------------------------------------


def reason(path: Path) -> str:
    with pytest.raises(BadImage) as trouble:
        read_image(path)
    return str(trouble.value)


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    photo(90, 70).save(stream, form)
    return stream.getvalue()


def header_of_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an image"),
        (b"n01440764 tench\n" * 50, "not an image"),
        (encoded("JPEG")[:-300], "truncated"),
        (encoded("JPEG")[:500], "truncated"),
        (encoded("PNG")[:-300], "truncated"),
        (header_of_png(9_500, 9_500), "too many pixels"),  # where PIL only warns
        (header_of_png(60_000, 60_000), "too many pixels"),
    ],
    ids=["empty", "text", "late cut", "early cut", "cut png", "large", "bomb"],
)
def test_a_bad_file_says_why(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason(tmp_path / "a.jpg") == why


def test_a_missing_file_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.jpg") == "cannot be read: No such file or directory"
    assert reason(tmp_path) == "cannot be read: Is a directory"


@pytest.mark.parametrize("turn", [False, True])
def test_a_long_strip_is_no_photograph(turn: bool, tmp_path: Path) -> None:
    for factor, name in ((40, "good"), (41, "bad")):
        size = (2, 2 * factor) if turn else (2 * factor, 2)
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    assert read_image(tmp_path / "good.png")[0].size[turn] == 80
    assert reason(tmp_path / "bad.png") == ("2x82" if turn else "82x2") + " pixels, too long a strip"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_damage_of_any_sort_is_no_other_error(form: str, tmp_path: Path) -> None:
    whole, rng, path = encoded(form), np.random.default_rng(3), tmp_path / "a"
    readable, reasons = 0, set()
    for _ in range(40):
        content = bytearray(whole[: int(rng.integers(1, len(whole) + 1))] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, min(len(content), 600), 4):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            readable += read_image(path)[0].mode == "RGB"
        except BadImage as trouble:
            reasons.add(str(trouble))
    assert readable < 40
    plain = {reason for reason in reasons if not reason.endswith("pixels, too long a strip")}
    assert plain <= {"damaged", "truncated", "not an image", "too many pixels"}


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_format_of_photographs_is_read(form: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(form))
    assert read_image(tmp_path / "a")[0].size == (90, 70)


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO"])
def test_another_format_is_no_image_here(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(form))
    monkeypatch.setattr("subprocess.Popen", None)  # Ghostscript would be called by it
    assert reason(tmp_path / "a.jpg") == "not an image"


# --- scaling and cutting, as torchvision does -------------------------------------------------------


SIZES = [(1, 1), (7, 7), (64, 64), (1, 20), (33, 32), (500, 375), (375, 500), (106, 160)] + [
    (int(width), int(height)) for width, height in np.random.default_rng(4).integers(8, 300, (6, 2))
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_scaling_is_that_of_torchvision(size: tuple[int, int]) -> None:
    image = photo(*size)
    for shorter in (32, 37, 64, 101):
        ours, theirs = scaled_to(image, shorter), transforms.Resize(shorter)(image)
        assert min(ours.size) == shorter
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


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


def test_classes_that_are_all_numbers_are_counted_as_numbers(tmp_path: Path) -> None:
    made(tmp_path, *(f"train/{k}/1" for k in range(12)), *(f"val/{k}/1" for k in (10, 9, 2, 1, 0)))
    both = scan_both(tmp_path)
    assert both.train.classes == tuple(map(str, range(12)))
    assert both.val.labels.tolist() == [0, 1, 2, 9, 10]
    assert listing.told(both.train.classes) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert listing.told(map(str, range(30))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, .., 29"
    assert listing.told(["a\x1b[2J", "b"]) == "'a\\x1b[2J', b"
    assert listing.ordered(["1", "10", "01"], tmp_path) == ["01", "1", "10"]
    assert listing.ordered(["1a", "10", "9"], tmp_path) == ["10", "1a", "9"]
    (warning,) = listing.warn_of_text(both.train.classes)
    assert "(0, 1, 10, 11, 2, 3," in warning
    assert listing.warn_of_text(("a", "b")) == ()
    (tmp_path / "class_order.txt").write_text("\n".join(sorted(map(str, range(12)))))
    assert scan(tmp_path, "train").classes[:4] == ("0", "1", "10", "11")
    assert scan(tmp_path, "val").classes == ("0", "1", "10", "2", "9")
    (tmp_path / "class_order.txt").write_text("0\n1\n")
    with pytest.raises(DataError, match=r"class_order\.txt lacks the class '10'"):
        scan(tmp_path, "train")


@pytest.mark.parametrize(("train", "val"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_class_names_are_compared_in_one_form_of_unicode(train: str, val: str, tmp_path: Path) -> None:
    made(tmp_path, f"train/{normalize(train, 'Grün')}/1", "train/rot/1", f"val/{normalize(val, 'Grün')}/1")
    both = scan_both(tmp_path)
    assert (both.train.classes, both.val.labels.tolist()) == (("Grün", "rot"), [0])
    assert both.val.path(0).exists()
    assert both.val.labelled_by([normalize("NFD", "Grün"), "rot"], "").labels.tolist() == [0]


def test_tiny_imagenet_is_read_as_it_is_shipped(tmp_path: Path) -> None:
    made(tmp_path, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "val/val_annotations.txt")
    made(
        tmp_path, *(f"train/{c}/{file}" for c in ("n1", "n2") for file in ("images/a.JPEG", f"{c}_boxes.txt"))
    )
    (tmp_path / "val/val_annotations.txt").write_text(
        "val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t5\t5\t6\t6\n"
    )
    train, val = scan_both(tmp_path)
    assert names_of(train) == ["n1/images/a.JPEG", "n2/images/a.JPEG"]
    assert (names_of(val), val.labels.tolist()) == (["images/val_1.JPEG", "images/val_0.JPEG"], [0, 1])
    (tmp_path / "val/val_annotations.txt").write_text("\ufeffval_0.JPEG n2\nval_1.JPEG n1\n")
    made(tmp_path, "val/images/val_2.JPEG")
    assert "has no label of val/images/val_2.JPEG" in refusal(tmp_path)


def flat(top: Path) -> Path:
    """A val of three images of the classes n2, n1, n2, without folders."""
    images = (f"val/ILSVRC2012_val_{number:08}.JPEG" for number in (1, 2, 3))
    return made(top, "train/n1/1.JPEG", "train/n2/1.JPEG", *images)


KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"ILSVRC2012_val_{number:08},{synset} 85 1 499 272 {synset} 1 2 3 4 \n"
    for number, synset in ((3, "n2"), (1, "n2"), (2, "n1"), (4, "n1"))
)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("LOC_val_solution.csv", KAGGLE), ("val/LOC_val_solution.csv", KAGGLE),
        ("../LOC_val_solution.csv", KAGGLE), ("imagenet_2012_validation_synset_labels.txt", "n2\nn1\nn2\n"),
    ],
)  # fmt: skip
def test_a_flat_val_is_labelled_by_the_official_lists(tmp_path: Path, place: str, content: str) -> None:
    root = flat(tmp_path / "data")
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    val = scan_both(root).val
    assert {path[-7:-5]: label for path, label in zip(names_of(val), val.labels.tolist(), strict=True)} == {
        "01": 1, "02": 0, "03": 1,
    }  # fmt: skip
    if "csv" in place:
        path.write_text("a,\n")
        assert "is not the official list of labels" in refusal(root)


def test_a_flat_val_without_a_list_is_told_which_to_put_there(tmp_path: Path) -> None:
    told = refusal(flat(tmp_path))
    assert re.search(r"LOC_val_solution\.csv .*synset_labels\.txt into .*into val/<class>/", told)
    made(tmp_path / "x", "train/a/1.png", "train/b/1.png", "val/images/1.png")
    assert "has images but no class folders" in refusal(tmp_path / "x")


def test_hidden_files_and_files_beside_the_classes_are_passed_over(tmp_path: Path) -> None:
    made(
        tmp_path, "val/a/1.jpg", "val/a/.DS_Store", "val/.cache/x.jpg", "val/a/.thumbs/1.jpg", "val/list.txt"
    )
    photos = scan(tmp_path, "val")
    assert (photos.classes, names_of(photos)) == (("a",), ["a/1.jpg"])


def test_links_are_followed(tmp_path: Path) -> None:
    made(tmp_path, "store/a/1.jpg", "secret.txt", "val/b/1.jpg")
    (tmp_path / "val/a").symlink_to(tmp_path / "store/a")
    (tmp_path / "val/b/2.jpg").symlink_to(tmp_path / "secret.txt")
    photos = scan(tmp_path, "val")
    assert names_of(photos) == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert reason(photos.path(2)) == "not an image"


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/é.jpg", "val/a/1.jpg")
    odd = os.fsdecode(b"\xe9.jpg")
    (tmp_path / "val/a" / odd).write_bytes(b"x")
    both = scan_both(tmp_path)
    assert names_of(both.val) == ["a/1.jpg", f"a/{odd}"]
    assert both.val.path(1).read_bytes() == b"x"
    assert len(both.val.stamp) == 64


# --- what is refused --------------------------------------------------------------------------------


def refusal(top: Path) -> str:
    with pytest.raises(DataError) as trouble:
        scan_both(top)
    text = str(trouble.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


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


@pytest.mark.parametrize(
    ("aim", "told"), [("val", "Too many levels of symbolic links"), ("nowhere", "No such file or directory")]
)
def test_links_that_lead_round_in_a_circle_or_nowhere(aim: str, told: str, tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    (tmp_path / "val/a/2.jpg").symlink_to(tmp_path / aim)
    assert f"2.jpg cannot be read: {told}" in refusal(tmp_path)


# --- labels and parts -------------------------------------------------------------------------------


def test_val_may_lack_classes_and_counts_those_of_train(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1", "train/b/1", "train/c/1", "val/a/1", "val/c/1", "val/c/2")
    val = scan_both(tmp_path).val
    assert val.classes == ("a", "b", "c")
    assert val.labels.tolist() == [0, 2, 2]


def test_without_some_files_the_others_keep_what_is_theirs(photographs: Path) -> None:
    whole = scan(photographs, "val")
    rest = whole.without({whole.name(index) for index in (0, 17, 39)} | {"train/" + names_of(whole)[1]})
    kept = [index for index in range(40) if index not in (0, 17, 39)]
    assert names_of(rest) == [names_of(whole)[index] for index in kept]
    assert rest.labels.tolist() == [whole.labels[index] for index in kept]


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
