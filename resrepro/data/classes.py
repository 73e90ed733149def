"""The classes of photographs: which files are of each, by folders or by the official lists; their order."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from resrepro.errors import DataError

ORDER = "class_order.txt"
ANNOTATIONS, SOLUTION = "val_annotations.txt", "LOC_val_solution.csv"  # Tiny-ImageNet's, and Kaggle's
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # WordNet ids of ImageNet's images in order
NUMBERED = "ILSVRC2012_val_{:08}"  # images of ImageNet's val, counted from 1
SUFFIXES = {".jpeg", ".jpg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}  # in a flat folder
File = tuple[bytes, bytes]  # path below the split; size and time of change
ALL_TOLD = 20  # classes; of more the first and the last are told


def one_form(name: str) -> str:
    """A class's name in Unicode's form NFC: macOS and some archives write the same name otherwise."""
    return unicodedata.normalize("NFC", name)


def ordered(names: Collection[str], root: Path) -> list[str]:
    """The order of classes: that of `class_order.txt`, else of numbers where all are some, else of text."""
    try:
        given = [one_form(name.strip()) for name in _lines(root / ORDER)]
    except FileNotFoundError:
        if all(re.fullmatch(r"-?\d+(\.\d+)?", name, re.ASCII) for name in names):
            return sorted(names, key=lambda name: (Decimal(name), name))
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


def by_class(root: Path, split: str) -> dict[str, list[File]]:
    """The files of each class of a split: of its folder, or of a flat `val` as the list beside it says.

    DataError if a class is empty or there twice or an image has no label, OSError if a folder is not listed.
    """
    top = root / split
    entries = [entry for entry in os.scandir(top) if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    # Tiny-ImageNet has all images in one folder, ImageNet in none.
    in_one = folders == ["images"] and not (root / "train" / "images").is_dir()
    if split == "val" and (in_one or (not folders and any(_is_image(entry.name) for entry in entries))):
        return _listed(root, top, list(_files(top / "images", "images") if in_one else _files(top)))
    found: dict[str, list[File]] = {}
    for folder in folders:
        name = one_form(folder)
        if name in found:
            raise DataError(f"{top} has two folders of the class {name!r}, spelled in two forms of Unicode.")
        found[name] = list(_files(top / folder, folder))
        if not found[name]:
            raise DataError(
                f"the class {name!r} in {top} is empty: put images there, or move its folder elsewhere."
            )
    return found


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _files(folder: Path, below: str = "") -> Iterator[File]:
    """Relative path of each file below a class folder, in order; and its size and time of change."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or entry.name == f"{folder.name}_boxes.txt":
            continue
        if entry.is_dir():
            yield from _files(folder / entry.name, name)
        elif entry.is_file():
            about = entry.stat()
            yield os.fsencode(name), b"%d %d" % (about.st_size, about.st_mtime_ns)
        elif entry.is_symlink() and not Path(entry.path).exists():
            yield os.fsencode(name), b""


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
        elif _is_image(name.name):
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
        fields = (line.split("\t" if "\t" in line else None)[:2] for line in lines)
        pairs = {(Path(image).stem, one_form(name)) for image, name in fields}
        if len(dict(pairs)) < len(pairs):
            raise ValueError("an image of two classes")
    except ValueError:
        raise DataError(f"{path} is not the official list of labels: get it again.") from None
    return dict(pairs)
