"""Photographs, `train/<class>/*` and `val/<class>/*` or as published: listed, numbered by class, decoded.

Links are followed, out of the folder too: data sets are often put together of links. All pixels are uint8.
"""

import hashlib
import io
import os
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from resrepro.errors import DataError

# What Pillow decodes itself; of others, EPS would start Ghostscript. An MPO is a JPEG of several views.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
UNREADABLE = "cannot be read"  # the disk's fault, not the file's
LONGEST = 40  # times the shorter side; a longer strip is no photograph, and costs memory without bound
ORDER = "class_order.txt"
ANNOTATIONS, SOLUTION = "val_annotations.txt", "LOC_val_solution.csv"  # Tiny-ImageNet's, and Kaggle's
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # WordNet ids of ImageNet's images in order
NUMBERED = "ILSVRC2012_val_{:08}"  # images of ImageNet's val, counted from 1
SUFFIXES = {".jpeg", ".jpg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}  # in a flat folder
ALL_TOLD = 20  # classes; of more the first and the last are told
Pixels = npt.NDArray[np.uint8]
File = tuple[bytes, bytes]  # path below the split; size and time of change


@dataclass(frozen=True)
class Photos:
    """The images of one split, not yet read."""

    root: Path  # the folder of the splits
    split: str  # the folder in it that holds the classes
    classes: tuple[str, ...]  # what the labels count, in Unicode's form NFC
    paths: npt.NDArray[np.bytes_]  # below the split, `<class>/<file>`, (N,): one array, which workers share
    labels: npt.NDArray[np.int64]  # (N,)
    stamp: str  # SHA-256 (hex) of the names, sizes and times of change of all files
    decoded: "Decoded | None" = None  # their pixels, if these are kept

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Image `index` as messages call it, `<split>/<class>/<file>`."""
        return f"{self.split}/{os.fsdecode(self.paths[index])}"

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.name(index)

    def read(self, index: int) -> tuple[Image.Image, str]:
        """Image `index` as `read_image` gives it; of one whose pixels are kept the checksum is empty."""
        return read_image(self.path(index)) if self.decoded is None else (self.decoded.image(index), "")

    def pixels(self, index: int) -> Pixels:
        """Image `index` as (h, w, 3) (BadImage)."""
        return np.asarray(self.read(index)[0])

    def without(self, bad: Collection[str]) -> "Photos":
        """The same without some of the names; those of another split do not count."""
        start = f"{self.split}/"
        own = [os.fsencode(name.removeprefix(start)) for name in bad if name.startswith(start)]
        kept = ~np.isin(self.paths, own) if own else slice(None)
        return replace(self, paths=self.paths[kept], labels=self.labels[kept])

    def labelled_by(self, classes: Sequence[str], whose: str) -> "Photos":
        """The same images with labels that count the given classes (DataError if one is not among them)."""
        number = {one_form(name): index for index, name in enumerate(classes)}
        for name in self.classes:
            if name not in number:
                raise DataError(
                    f"{self.split} has the class {name!r}, which {whose} lacks: name the data that belong "
                    f"together, or move what is of other classes out of {self.split}."
                )
        own = np.array([number[name] for name in self.classes], np.int64)
        return replace(self, classes=tuple(classes), labels=own[self.labels])


class PhotoSet(NamedTuple):
    """Both splits, with labels that count the classes of `train`."""

    train: Photos
    val: Photos


def scan_both(root: Path) -> PhotoSet:
    """Both splits. DataError if one is missing or empty, or `val` has a class that `train` lacks."""
    train, val = scan(root, "train"), scan(root, "val")
    if len(train.classes) < 2:
        raise DataError(f"{root / 'train'} has a single class: a classifier needs two or more.")
    return PhotoSet(train, val.labelled_by(train.classes, "train"))


def scan(root: Path, split: str) -> Photos:
    """List the images of one split: classes in their order, or a flat `val` as its list labels it. Hidden
    files and Tiny-ImageNet's boxes are passed over; all else counts as an image until it is opened. DataError
    if the split is missing, a class is empty, a link leads to nothing, or an image has no label.
    """
    top = root / split
    try:
        if not top.is_dir():
            raise DataError(f"{root} has no folder {split!r}: expected {split}/<class>/<image> there.")
        listed = _by_class(root, split)
        classes = ordered(listed, root)
    except OSError as error:
        raise DataError(f"{error.filename or top} cannot be read: {error.strerror}.") from None
    if not classes:
        raise DataError(f"{top} has no classes: expected one folder per class there.")
    files = [file for name in classes for file in listed[name]]
    stamp = hashlib.sha256(b"".join(b"%s %s\n" % file for file in files)).hexdigest()
    labels = np.repeat(np.arange(len(classes)), [len(listed[name]) for name in classes])
    return Photos(root, split, tuple(classes), np.array([path for path, _ in files]), labels, stamp)


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes in the order of their indices."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii").split())


# --- classes: of which a file is, and their order ---------------------------------------------------------


def one_form(name: str) -> str:
    """A class's name in Unicode's form NFC: macOS and some archives write the same name otherwise."""
    return unicodedata.normalize("NFC", name)


def ordered(names: Collection[str], root: Path) -> list[str]:
    """The order of classes: that of `class_order.txt`, of numbers where all are whole ones, else of text."""
    try:
        given = [one_form(name.strip()) for name in _lines(root / ORDER)]
    except FileNotFoundError:
        if all(map(str.isdecimal, names)):
            return sorted(names, key=lambda name: (int(name), name))
        return sorted(names)
    if missing := sorted(set(names) - set(given)):
        raise DataError(f"{root / ORDER} lacks the class {missing[0]!r}: give each class a line.")
    return [name for name in dict.fromkeys(given) if name in names]


def told(classes: Iterable[str]) -> str:
    """Classes in their order, as a sentence tells them: `0, 1, 2, 10`."""
    names = [name if name.isprintable() else ascii(name) for name in classes]
    return ", ".join(names if len(names) <= ALL_TOLD else [*names[: ALL_TOLD // 2], "..", names[-1]])


def warn_of_text(classes: Sequence[str]) -> tuple[str, ...]:
    """What to say of another's checkpoint where loaders that sort names as text count otherwise."""
    if sorted(classes) == list(classes):
        return ()
    return (
        f"if the checkpoint counts names in order of text ({told(sorted(classes))}), as torchvision's "
        f"ImageFolder does, these errors are wrong: then list them so in {ORDER}, one a line, beside val",
    )


def _by_class(root: Path, split: str) -> dict[str, list[File]]:
    """The files of each class of a split: of its folder, or of a flat `val` as the list beside it says."""
    top = root / split
    entries = [entry for entry in os.scandir(top) if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    # Tiny-ImageNet has all images in one folder, ImageNet in none.
    in_one = folders == ["images"] and not (root / "train" / "images").is_dir()
    is_flat = not folders and any(Path(entry.name).suffix.lower() in SUFFIXES for entry in entries)
    if split == "val" and (in_one or is_flat):
        return _listed(root, top, _files(top / "images", "images") if in_one else _files(top))
    found: dict[str, list[File]] = {}
    for folder in folders:
        found.setdefault(one_form(folder), []).extend(_files(top / folder, folder))
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(f"the class {empty[0]!r} in {top} is empty: put images there, or move it away.")
    return found


def _files(folder: Path, below: str = "") -> Iterator[File]:
    """Relative path of each file below a class folder, in order; and its size and time of change."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or entry.name == f"{folder.name}_boxes.txt":
            continue
        if entry.is_dir():
            yield from _files(folder / entry.name, name)
        elif entry.is_file() or entry.is_symlink():  # of pipes and sockets nothing would be read, ever
            about = entry.stat()
            yield os.fsencode(name), b"%d %d" % (about.st_size, about.st_mtime_ns)


def _listed(root: Path, top: Path, files: Iterable[File]) -> dict[str, list[File]]:
    """The images of a flat folder `top` by the class that the official list beside it gives them."""
    above = [root, *root.resolve().parents[:3]]  # Kaggle's list lies three folders up
    lists = (folder / name for folder in (top, *above) for name in (ANNOTATIONS, SOLUTION, SYNSETS))
    source = next((path for path in lists if path.is_file()), None)
    if source is None:
        raise DataError(
            f"{top} has images but no class folders: put {SOLUTION} (Kaggle's) or {SYNSETS} into {root}, or "
            f"sort the images into {top.name}/<class>/."
        )
    labels = _labels(source)
    found: dict[str, list[File]] = {}
    for path, about in files:
        name = Path(os.fsdecode(path))
        if name.stem in labels:
            found.setdefault(labels[name.stem], []).append((path, about))
        elif name.suffix.lower() in SUFFIXES:
            raise DataError(f"{source} has no label of {top.name}/{name}: name images and list of one set.")
    return found


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _labels(path: Path) -> Mapping[str, str]:
    """The class of each image by its name without ending, of an official list."""
    lines = _lines(path)
    if path.name == SOLUTION:
        lines = [line.replace(",", " ", 1) for line in lines if not line.startswith("ImageId,")]
    elif path.name == SYNSETS:
        lines = [f"{NUMBERED.format(number)} {name}" for number, name in enumerate(lines, 1)]
    try:
        pairs = (line.split("\t" if "\t" in line else None)[:2] for line in lines)
        return {Path(image).stem: one_form(name) for image, name in pairs}
    except ValueError:
        raise DataError(f"{path} is not the official list of labels: get it again.") from None


# --- decoding ---------------------------------------------------------------------------------------------


class BadImage(Exception):
    """A file that is no readable image; says why."""


def read_image(path: Path) -> tuple[Image.Image, str]:
    """An image file in RGB, and the SHA-256 (hex) of its content. EXIF rotation is ignored, as ImageNet's
    usual loaders do. BadImage if it cannot be read, is no image, cut short, or too large or long to be one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{UNREADABLE}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF entries, of which ImageNet has some
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as stored:
                stored.load()
                image = _to_rgb(stored)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too many pixels") from None
    except (MemoryError, BadImage):
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        cut_short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if cut_short else "damaged") from None
    if max(image.size) > LONGEST * min(image.size):
        raise BadImage(f"{image.width}x{image.height} pixels, too long a strip")
    return image, hashlib.sha256(content).hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: grey repeated, palettes looked up, alpha dropped, grey of 16 bits scaled."""
    tags = getattr(image, "tag_v2", {})  # TIFF's; 262 is 0 where zero is white, which Pillow minds in 8 bits
    if image.mode == "F" or (image.mode == "I" and tags) or (image.mode[0] == "I" and tags.get(262) == 0):
        raise BadImage("floats, signed, inverted or 32-bit integers, of which nothing tells what is white")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) * 255 / 65535).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        ranges = np.ptp(np.asarray(image.convert("RGBA")), axis=(0, 1))
        if ranges[3] and not ranges[:3].any():
            raise BadImage("one colour, its picture is in the transparency alone")
    return image if image.mode == "RGB" else image.convert("RGB")


class Decoded:
    """The pixels of `count` images, which all processes map from one file. It has (h, w, 3) uint8 of each,
    then h and w of all. OSError or ValueError if it is missing or not whole.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.pixels = np.memmap(path, np.uint8, "r")
        self.sizes = self.pixels[-8 * count :].view(np.uint32).reshape(count, 2).astype(np.int64)
        self.ends = 3 * self.sizes.prod(axis=1).cumsum()
        if self.ends[-1] + 8 * count != len(self.pixels):
            raise ValueError(f"{path} is damaged")

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoded, (self.path, self.count)  # a process maps the file anew

    def image(self, index: int) -> Image.Image:
        """Image `index` in RGB."""
        (height, width), end = self.sizes[index], self.ends[index]
        return Image.fromarray(self.pixels[end - 3 * height * width : end].reshape(height, width, 3))
