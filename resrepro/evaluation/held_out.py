"""The held-out images that an evaluation measures a net on, from memory or from a folder of photographs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resrepro.data import ProcessGroup, data_folder, load_dataset
from resrepro.data.augment import on_device
from resrepro.data.feeds import memory_views
from resrepro.data.folder import Photos, imagenet_classes, scan
from resrepro.data.loader import Loading
from resrepro.data.photos import PhotoViews, Views
from resrepro.errors import UsageError
from resrepro.evaluation.sources import LoadedNet
from resrepro.spec.catalogue import Protocol
from resrepro.spec.experiment import IMAGENET_IMAGES
from resrepro.spec.recipe import ImageNetRecipe
from resrepro.training.parallel import process_group

IMAGE_SHAPES = {"cifar10": (32, 32), "digits": (16, 16)}
SEEN = "the 5,000 validation images were among those trained on"


@dataclass
class HeldOut:
    """Some sets of images under a protocol.

    Attributes:
        name: of the dataset, with its split where it has one, for file names.
        sets: for each set what gives this process's share of its views.
        notices: sentences that must stand beside every number.
        describe: what the record keeps; to be called when all views have been read.
        key_set: the set whose checksum tells this data apart.
    """

    name: str
    dataset: str
    sets: Mapping[str, Callable[[], Iterator[Views]]]
    notices: tuple[str, ...]
    describe: Callable[[], dict[str, Any]]
    key_set: str


def open_held_out(
    subject: LoadedNet,
    protocol: Protocol,
    dataset: str | None,
    data: str | Path | None,
    split: str | None,
    device: torch.device,
    loading: Loading,
) -> HeldOut:
    """The held-out images for a net under a protocol; by default those of its own dataset.

    Raises:
        DataError: if they are missing or damaged, or have a class that the net does not know.
        UsageError: if they do not fit the net.
    """
    name, group = dataset or subject.spec.dataset, process_group()
    if subject.family == "imagenet":
        return _photos(subject, protocol, name, data, device, loading, group)
    return _memory(subject, name, data, split, device, group)


def _memory(
    subject: LoadedNet,
    name: str,
    data: str | Path | None,
    split: str | None,
    device: torch.device,
    group: ProcessGroup,
) -> HeldOut:
    own = str(getattr(subject.recipe, "split", "all")) if subject.seed is not None else "all"
    split = split or own
    loaded = load_dataset(name, split, data)
    if split == "45k5k" and own != "45k5k":
        seen = SEEN if subject.seed is not None else SEEN.replace("were", "may have been")
        loaded = replace(loaded, notices=(*loaded.notices, seen))
    shape = tuple(subject.normalisation.mean.shape[1:])
    if shape not in ((1, 1), IMAGE_SHAPES[name]):
        raise UsageError(
            f"{subject.path} subtracts a mean image of {shape[0]}x{shape[1]} pixels, and {name} has "
            "none of that size: evaluate it on the dataset that it was trained on."
        )
    sets = {
        key: lambda images=images: memory_views(*on_device(images, device), group)
        for key, images in loaded.held_out.items()
    }
    return HeldOut(f"{name}-{split}", name, sets, loaded.notices, loaded.info.describe, "test")


def _photos(
    subject: LoadedNet,
    protocol: Protocol,
    name: str,
    data: str | Path | None,
    device: torch.device,
    loading: Loading,
    group: ProcessGroup,
) -> HeldOut:
    assert isinstance(subject.recipe, ImageNetRecipe)
    photos: Photos = group.on_first(lambda: scan(data_folder(data), "val"))
    numbered = photos.labelled_by(*_classes(subject, name, photos))
    views = PhotoViews(numbered, protocol, subject.recipe.image_size, loading, group)
    notices = _photo_notices(name, photos)

    def describe() -> dict[str, Any]:
        readable, checksum = views.gather()
        return {
            "name": name,
            "images": {"val": len(readable)},
            "classes": subject.num_classes,
            "sha256": {"val": checksum},
            "notices": [*notices, *views.bad.notices()],
        }

    return HeldOut(name, name, {"val": lambda: views.read(device)}, notices, describe, "val")


def _classes(subject: LoadedNet, name: str, photos: Photos) -> tuple[tuple[str, ...], str]:
    """The names that the net's outputs stand for, and who says so."""
    if subject.classes is not None:
        return subject.classes, "ImageNet" if subject.seed is None else "the run's training set"
    if name == "imagenet":
        raise UsageError(
            f"{subject.path} has {subject.num_classes} outputs, and ImageNet 1,000 classes: "
            "for other photographs say --dataset folder."
        )
    if subject.num_classes != len(photos.classes):
        raise UsageError(
            f"{subject.path} has {subject.num_classes} outputs, and val {len(photos.classes)} classes: "
            "name the photographs that it was trained for."
        )
    return photos.classes, "val"


def _photo_notices(name: str, photos: Photos) -> tuple[str, ...]:
    text = f"{len(photos):,} validation images of {len(photos.classes):,} classes"
    if name != "imagenet":
        return (f"the folder {photos.root.resolve().name} has {text}",)
    if len(photos) == IMAGENET_IMAGES["val"] and photos.classes == imagenet_classes():
        return ()
    return (f"the images are not ImageNet's 50,000: {text}",)
