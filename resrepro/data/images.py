"""Photographs as they are: opened, made RGB, scaled by their shorter side, cut into crops (Section 3.4).

All images here are uint8; arrays are (H, W, 3) as PIL gives them, crops (3, S, S) as a net wants them.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from resrepro.records.storage import NotPlain, TooLarge, read_plain

# What Pillow decodes itself; of others, EPS would start Ghostscript. An MPO is a JPEG of several views.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGEST_FILE = 256 * 2**20  # bytes of the largest image that Pillow opens, as plain RGB
UNREADABLE = "cannot be read"  # the disk's fault, not the file's
LONGEST = 40  # times the shorter side; a longer strip is no photograph, and costs memory without bound
Pixels = npt.NDArray[np.uint8]


class BadImage(Exception):
    """A file that is no readable image; says why."""


@dataclass(frozen=True)
class Read:
    """An image in RGB and the SHA-256 (hex) of its file."""

    image: Image.Image
    digest: str


def read_image(path: Path) -> Read:
    """Open an image file and make it RGB; EXIF rotation is ignored, as ImageNet's usual loaders do.

    A link is followed wherever it leads: of what it leads to, nothing is read but an image.

    Raises:
        BadImage: if it cannot be read, is no image, cut short, or too large or long to be one.
    """
    try:
        content = read_plain(path, LARGEST_FILE)
    except FileNotFoundError:
        raise BadImage("missing") from None
    except NotPlain:
        raise BadImage("a pipe or device, not a file") from None
    except TooLarge as error:
        raise BadImage(f"too large a file of {error.size:,} bytes") from None
    except OSError as error:
        raise BadImage(f"{UNREADABLE}: {error.strerror}") from None
    return Read(_decoded(content), hashlib.sha256(content).hexdigest())


def _decoded(content: bytes) -> Image.Image:
    """The RGB image of a file's content.

    Raises:
        BadImage: if it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF entries, of which ImageNet has some
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                rgb = to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too many pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise BadImage(_reason(error)) from None
    if max(rgb.size) > LONGEST * min(rgb.size):
        raise BadImage(f"{rgb.width}x{rgb.height} pixels, too long a strip")
    return rgb


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    return "damaged"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: grey repeated, palettes looked up, alpha dropped, 16-bit grey scaled down."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.int64)
        return Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def scaled_to(image: Image.Image, shorter: int) -> Image.Image:
    """Scale an image so that its shorter side has `shorter` pixels (bilinear, antialiased)."""
    width, height = image.size
    if min(width, height) == shorter:
        return image
    longer = int(shorter * max(width, height) / min(width, height))
    size = (shorter, longer) if width <= height else (longer, shorter)
    return image.resize(size, Image.Resampling.BILINEAR)


def cut(image: Image.Image, left: int, top: int, size: int) -> Pixels:
    """The crop of `size` x `size` pixels at a place, (3, size, size)."""
    return planes(image.crop((left, top, left + size, top + size)))


def planes(image: Image.Image) -> Pixels:
    """An RGB image as (3, H, W)."""
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


def center_crop(image: Image.Image, size: int) -> Pixels:
    """The crop in the middle, (3, size, size); of two middles the one that rounding to even takes."""
    left, top = (round((side - size) / 2) for side in image.size)
    return cut(image, left, top, size)


def five_crops(image: Image.Image, size: int) -> Pixels:
    """The four corners, then the centre, (5, 3, size, size)."""
    right, bottom = image.width - size, image.height - size
    corners = [cut(image, *place, size) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    return np.stack([*corners, center_crop(image, size)])


def ten_crops(image: Image.Image, size: int) -> Pixels:
    """Four corners and centre of the image, then those of its flip, (10, 3, size, size) [21]."""
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.concatenate([five_crops(image, size), five_crops(mirrored, size)])
