"""Photographs, `train/<class>/*` and `val/<class>/*` or as published: listed, decoded, scaled and cut.

All pixels here are uint8; crops are (3, S, S), as a net wants them (Section 3.4). Links are followed, out of
the folder too: data sets are often put together of links, and what one leads to must be an image.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from resrepro.data.classes import by_class, one_form, ordered
from resrepro.errors import DataError
from resrepro.spec import IMAGENET_IMAGES
from resrepro.spec.catalogue import Protocol
from resrepro.spec.recipe import ImageNetRecipe, scaled

# What Pillow decodes itself; of others, EPS would start Ghostscript. An MPO is a JPEG of several views.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
UNREADABLE = "cannot be read"  # the disk's fault, not the file's
LONGEST = 40  # times the shorter side; a longer strip is no photograph, and costs memory without bound
Pixels = npt.NDArray[np.uint8]


# --- listing ----------------------------------------------------------------------------------------------


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

    def without(self, bad: Collection[str]) -> "Photos":
        """The same without some of the names; those of another split do not count."""
        start = f"{self.split}/"
        own = [os.fsencode(name.removeprefix(start)) for name in bad if name.startswith(start)]
        if not own:
            return self
        kept = ~np.isin(self.paths, own)
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
    """The training and validation images of a folder.

    DataError if a split is missing or empty, or `val` has a class that `train` lacks.
    """
    train, val = scan(root, "train"), scan(root, "val")
    if len(train.classes) < 2:
        raise DataError(f"{root / 'train'} has a single class: a classifier needs two or more.")
    return PhotoSet(train, val.labelled_by(train.classes, "train"))


def scan(root: Path, split: str) -> Photos:
    """List the images of one split: classes in their order, or a flat `val` as its list labels it.

    Hidden files and Tiny-ImageNet's boxes are passed over; all else counts as an image until it is opened, a
    link to nothing too. DataError if the split is missing, a class is empty, or an image has no label.
    """
    top = root / split
    try:
        if not top.is_dir():
            raise DataError(
                f"{root} has no folder {split!r}: expected {split}/<class>/<image> there, "
                "with one folder per class."
            )
        listed = by_class(root, split)
        classes = ordered(listed, root)
    except OSError as error:
        raise DataError(f"{error.filename or top} cannot be read: {error.strerror}.") from None
    if not classes:
        raise DataError(f"{top} has no classes: expected one folder per class there.")
    files = [file for name in classes for file in listed[name]]
    stamp = hashlib.sha256()
    for path, about in files:
        stamp.update(b"%s %s\n" % (path, about))
    labels = np.repeat(np.arange(len(classes)), [len(listed[name]) for name in classes])
    return Photos(
        root, split, tuple(classes), np.array([path for path, _ in files]), labels, stamp.hexdigest()
    )


def checksum(photos: Photos, digests: Sequence[str]) -> str:
    """SHA-256 (hex) over the name and content digest of each image, in order."""
    total = hashlib.sha256()
    for path, digest in zip(photos.paths, digests, strict=True):
        total.update(b"%s %s\n" % (path, digest.encode()))
    return total.hexdigest()


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes in the order of their indices."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def notices_of(dataset: str, photos: PhotoSet) -> tuple[str, ...]:
    """What must be said of the images beside every number."""
    train, val = photos
    sizes = {"train": len(train), "val": len(val)}
    if dataset == "imagenet" and train.classes == imagenet_classes() and sizes == IMAGENET_IMAGES:
        return ()
    told = f"{len(train.classes):,} classes, {len(train):,} training and {len(val):,} validation images"
    if dataset == "imagenet":
        told = f"the images are not those of ImageNet: {told} instead of 1,000, 1,281,167 and 50,000"
    else:
        told = f"the folder {train.root.resolve().name} has {told}"
    unseen = len(train.classes) - len(set(val.labels.tolist()))
    return (told, f"val has no images of {unseen} of the classes") if unseen else (told,)


# --- decoding ---------------------------------------------------------------------------------------------


class BadImage(Exception):
    """A file that is no readable image; says why."""


def read_image(path: Path) -> tuple[Image.Image, str]:
    """An image file in RGB, and the SHA-256 (hex) of its content.

    EXIF rotation is ignored, as ImageNet's usual loaders do. BadImage if it cannot be read, is no image, cut
    short, or too large or long to be one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadImage("missing") from None
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
        tiff = content.startswith((b"II*\0", b"MM\0*"))  # of floats in colour, say
        raise BadImage("a TIFF, damaged or of a kind that is not read" if tiff else "not an image") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        cut_short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if cut_short else "damaged") from None
    if max(image.size) > LONGEST * min(image.size):
        raise BadImage(f"{image.width}x{image.height} pixels, too long a strip")
    return image, hashlib.sha256(content).hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: grey repeated, palettes looked up, alpha dropped, others scaled by their range.

    Those are floats from 0 to 1, and grey of 16 bits or fewer; of others nothing tells what is white.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        grey, tags = np.asarray(image, np.float64), getattr(image, "tag_v2", {})  # TIFF's
        if image.mode == "I" and tags:
            raise BadImage("32-bit or signed integers, of which nothing tells what is white")
        white = 1 if image.mode == "F" else 2 ** tags.get(258, (16,))[0] - 1  # bits per sample
        if not (grey.min() >= 0 and grey.max() <= white):
            raise BadImage("floats beyond 0..1, of which nothing tells what is white")
        if tags.get(262) == 0:  # white is zero, which Pillow minds in 8 bits alone
            grey = white - grey
        to_whole = np.rint if image.mode == "F" else np.floor
        image = Image.fromarray(to_whole(grey * 255 / white).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        ranges = np.ptp(np.asarray(image.convert("RGBA")), axis=(0, 1))
        if ranges[3] and not ranges[:3].any():
            raise BadImage("one colour, its picture is in the transparency alone")
    return image if image.mode == "RGB" else image.convert("RGB")


class Decoded:
    """The pixels of `count` images, which all processes map from one file.

    It has (h, w, 3) uint8 of each, then h and w of all. OSError or ValueError if it is missing or not whole.
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


# --- scaling and cutting ----------------------------------------------------------------------------------


def scaled_to(image: Image.Image, shorter: int) -> Image.Image:
    """Scale an image so that its shorter side has `shorter` pixels (bilinear, antialiased)."""
    width, height = image.size
    if min(width, height) == shorter:
        return image
    longer = int(shorter * max(width, height) / min(width, height))
    size = (shorter, longer) if width <= height else (longer, shorter)
    return image.resize(size, Image.Resampling.BILINEAR)


def planes(image: Image.Image) -> Pixels:
    """An RGB image as (3, H, W)."""
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


def cut(image: Image.Image, left: int, top: int, size: int) -> Pixels:
    """The crop of `size` x `size` pixels at a place, (3, size, size)."""
    return planes(image.crop((left, top, left + size, top + size)))


def center_crop(image: Image.Image, size: int) -> Pixels:
    """The crop in the middle, (3, size, size); of two middles the one that rounding to even takes."""
    left, top = (round((side - size) / 2) for side in image.size)
    return cut(image, left, top, size)


def ten_crops(image: Image.Image, size: int) -> Pixels:
    """Four corners and centre of the image, then those of its flip, (10, 3, size, size) [21]."""
    crops = []
    for side in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        right, bottom = side.width - size, side.height - size
        crops += [cut(side, *place, size) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
        crops.append(center_crop(side, size))
    return np.stack(crops)


def views_of(image: Image.Image, protocol: Protocol, image_size: int) -> list[Pixels]:
    """The views of one image: per scale crops (V, 3, S, S), or the whole image (1, 3, h, w)."""
    large = [scaled_to(image, scaled(side, image_size)) for side in protocol.sides]
    if protocol.crops == "dense":
        return [planes(scale)[None] for scale in large]
    if protocol.crops == "ten":
        return [ten_crops(scale, image_size) for scale in large]
    return [center_crop(scale, image_size)[None] for scale in large]


def training_crop(image: Image.Image, recipe: ImageNetRecipe, choice: Sequence[float]) -> Pixels:
    """A crop of the scaled image or its flip, (3, S, S), by a row of the views of `crop_choices`.

    The shorter side is uniform on the whole numbers of the recipe's range, the place on all that the crop
    fits in; half of the crops are flipped.
    """
    low, high = recipe.scale
    size = recipe.image_size
    large = scaled_to(image, low + int(choice[0] * (high - low + 1)))
    left, top = (int(u * (side - size + 1)) for u, side in zip(choice[1:3], large.size, strict=True))
    crop = cut(large, left, top, size)
    return crop[:, :, ::-1] if recipe.flip and choice[3] < 0.5 else crop
