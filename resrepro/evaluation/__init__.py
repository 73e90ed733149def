"""Measuring finished nets, ours and other people's: errors under a test protocol (Sections 3.4 and 4.2)."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resrepro.data import DatasetInfo, data_folder, load_dataset
from resrepro.data.augment import on_device
from resrepro.data.feeds import memory_views, open_feed
from resrepro.data.loader import Loading, PhotoViews, Views, left_out
from resrepro.data.photos import Photos, imagenet_classes, scan, told, warn_of_text
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.sources import LoadedNet, ThirdPartyCheckpoint, read_net
from resrepro.records.reading import FORMAT, json_bytes
from resrepro.records.storage import write_out
from resrepro.spec import IMAGENET_IMAGES
from resrepro.spec.catalogue import Protocol, protocol_for
from resrepro.spec.recipe import ImageNetRecipe
from resrepro.training import engine, is_first, world_size
from resrepro.training.measure import Errors, Member, bn_stats_of, measure_errors, with_precise_statistics
from resrepro.training.parallel import bn_group_for, join, process_group, split_batch, told_as_lost

Say = Callable[[str], None]
TRIAL = 1000  # images on which both places of option A's zeros are tried
ZEROS_DIFFER = 1.0  # points of error beyond which the better place is taken


@told_as_lost()
def evaluate(
    target: str | Path | Sequence[str | Path], *, protocol: str | None = None, bn_stats: str | None = None,
    dataset: str | None = None, data: str | Path | None = None, split: str | None = None,
    third_party: ThirdPartyCheckpoint | None = None, runs: str | Path = "runs", device: str = "auto",
    threads: int | None = None, loading: Loading | None = None, say: Say = lambda text: None,
) -> dict[str, Errors]:  # fmt: skip
    """Measure a checkpoint, or several as one ensemble, on the held-out sets, record the result and return
    it: errors by set ("test" or "val"), in percent.

    Args:
        target: a run folder, one of our checkpoints, or another's (then `third_party` says what it is).
            Of a list of them the scores (softmax) are averaged (Table 5).
        protocol: "center", "ten_crop" or "multi_scale" for photographs, "single" for CIFAR-10 and digits;
            by default the view of the curves.
        bn_stats: "running", or "precise": plain averages over training batches; by default the recipe's.
        dataset: by default the run's own, or cifar10.
        data: folder of CIFAR-10, or of photographs (`val/<class>/*` is enough, but for "precise").
        split: "all" or "45k5k" (CIFAR-10); by default the run's own.
        third_party: net and normalisation of a checkpoint that is not ours.
        runs: where results of foreign checkpoints and of ensembles are kept (`foreign/`, `ensembles/`).
        device: as `threads`, `loading` and `say`, see `train`.

    Raises:
        UsageError: if what was asked for does not fit a net, or nets do not fit together.
        RecordError: if the checkpoint is damaged, unsafe or does not fit the net.
        DataError: if the images are missing or damaged.
        PeerLost: if another process of a `torchrun` ended.
    """
    chosen, loading = engine.choose_device(device), loading or Loading()
    join(chosen)
    say = say if is_first() else lambda text: None
    theirs = third_party or ThirdPartyCheckpoint()
    read = partial(read_net, dataset=dataset, runs=Path(runs), data=data, split=split)
    targets = [target] if isinstance(target, str | Path) else target
    nets = [read(each, third_party=theirs) for each in targets]
    _check_together(nets)
    first, name = nets[0], dataset or nets[0].spec.dataset
    view = protocol_for(protocol or first.recipe.test_view, first.family)
    statistics = bn_stats or bn_stats_of(first.recipe)
    look = partial(_memory, first, name, data, split, chosen)
    if first.family == "imagenet":
        look = partial(_photos, first, view, name, data, chosen, loading)
    held_out, dense = look(), view.crops == "dense"
    engine.use_precision(first.precision_on(chosen), chosen)
    memory = engine.telling_memory("these views of the net: try --device cpu, or a GPU with more")
    with memory, engine.threads_used(threads):
        nets = [_better_zeros(net, theirs, read, look, dense, chosen, say) for net in nets]
        _announce(nets, view, name, held_out.notices + held_out.remarks, say)
        members = [_member(net, statistics, data, chosen, loading, say) for net in nets]
        if dense:
            engine.forget_shapes_soon()
        errors = {
            part: measure_errors(members, views(), dense, chosen) for part, views in held_out.sets.items()
        }
    if not all(math.isfinite(each.loss) for each in errors.values()):
        raise RecordError(f"what {first.name} computes is not finite: take another checkpoint.")
    about = {"bn_stats": statistics, "precision": first.precision_on(chosen)}
    _record(nets, view, about, held_out, errors, Path(runs), say)
    return errors


def _check_together(nets: Sequence[LoadedNet]) -> None:
    def kind(net: LoadedNet) -> list[Any]:
        alike = ("image_size", "precision", "bn_stats")
        return [net.family, net.classes, net.num_classes, *(getattr(net.recipe, key, None) for key in alike)]

    first = nets[0]
    if len({json.dumps(net.facts, sort_keys=True) + str(net.seed) for net in nets}) < len(nets):
        raise UsageError("an ensemble is of different nets, and one is named twice: name each once.")
    for other in nets[1:]:
        if kind(other) != kind(first):
            raise UsageError(
                f"{first.name} and {other.name} do not take the same images and classes, or differ in "
                "precision or bn_stats, so their scores cannot be averaged: leave one of them out."
            )


def _announce(nets: Sequence[LoadedNet], view: Protocol, name: str, notices: Sequence[str], say: Say) -> None:
    for notice in notices:
        say(f"Note: {notice}.")
    for net in nets:
        say(f"{net.name} is evaluated as {net.label} on {name}, {view.title}.")
        if key := net.facts.get("weights"):
            say(f"Its weights are those under {key!r}.")
        if others := net.facts.get("left_out"):
            say(f"Left out, since they are of no layer: {', '.join(others)}.")


def _better_zeros(
    net: LoadedNet, theirs: ThirdPartyCheckpoint, read: Callable[..., LoadedNet],
    look: Callable[[], "HeldOut"], dense: bool, device: torch.device, say: Say,
) -> LoadedNet:  # fmt: skip
    """Of another's net with option A it or its twin with zeros on both sides, as a trial shows."""
    if net.seed is not None or net.spec.shortcut != "A" or theirs.option_a_zeros is not None:
        return net
    twin = read(net.path, third_party=replace(theirs, option_a_zeros="symmetric"))

    def trial() -> Iterator[Views]:
        seen = 0
        for views in next(iter(look().sets.values()))():
            yield views
            seen += len(views.labels)
            if seen >= TRIAL // world_size():
                return

    errors = [measure_errors([each.member(device)], trial(), dense, device) for each in (net, twin)]
    trailing, symmetric = (each.top1_err for each in errors)
    if abs(trailing - symmetric) <= ZEROS_DIFFER:
        return net
    better, place = (net, "trailing") if trailing < symmetric else (twin, "symmetric")
    say(
        f"Option A's zeros are taken to be {place}: on {errors[0].count:,} images {net.name} has "
        f"{trailing:.2f} % top-1 error with trailing and {symmetric:.2f} % with symmetric ones "
        "(--zeros chooses)."
    )
    return better


def _member(
    net: LoadedNet, statistics: str, data: str | Path | None, device: torch.device, loading: Loading, say: Say
) -> Member:
    """The net on its device, with the BN statistics asked for."""
    member = net.member(device)
    if statistics == "running":
        return member
    if statistics != "precise":
        raise UsageError(f"no BN statistics {statistics!r}: there are running and precise.")
    if net.seed is None:
        raise UsageError(
            f"{net.path} is not a run of ours, so its training batches are not known: "
            "leave --bn-stats precise out."
        )
    bn_group_for(net.recipe, split_batch(net.recipe.batch_size, world_size()), given=True)
    feed = open_feed(net.spec, data, device, net.seed, loading, say, process_group())
    net.check_images(feed.about.checksums, "train", ", or leave --bn-stats precise out")
    say(f"BN statistics are plain averages over {feed.precise_batches} training batches.")
    return replace(member, net=with_precise_statistics(member.net, feed.first_batches(), net.recipe))


class HeldOut(NamedTuple):
    """Some sets of images under a protocol."""

    name: str  # of the dataset, with its split where it has one, for file names
    sets: Mapping[str, Callable[[], Iterator[Views]]]  # what gives this process's share of the views of each
    notices: tuple[str, ...]  # sentences that must stand beside every number
    describe: Callable[[], dict[str, Any]]  # what the record keeps; to be called when all views were read
    remarks: tuple[str, ...] = ()  # sentences for the screen alone


def _memory(
    net: LoadedNet, name: str, data: str | Path | None, split: str | None, device: torch.device
) -> HeldOut:
    """The held-out images of CIFAR-10 or the digits, which must have the size of the net's mean image."""
    own = str(getattr(net.recipe, "split", "all")) if net.seed is not None else "all"
    split = split or own
    loaded = load_dataset(name, split, data)
    if split == "45k5k" and own != "45k5k":
        were = "were" if net.seed is not None else "may have been"
        seen = f"the 5,000 validation images {were} among those trained on"
        loaded = replace(loaded, notices=(*loaded.notices, seen))
    shape = tuple(net.normalisation.mean.shape[1:])
    if shape not in ((1, 1), loaded.train.pixels.shape[2:]):
        raise UsageError(
            f"{net.path} subtracts a mean image of {shape[0]}x{shape[1]} pixels, and {name} has "
            "none of that size: evaluate it on the dataset that it was trained on."
        )
    sets = {
        key: lambda images=images: memory_views(*on_device(images, device), process_group())
        for key, images in loaded.held_out.items()
    }
    return HeldOut(f"{name}-{split}", sets, loaded.notices, loaded.info.describe)


def _photos(
    net: LoadedNet, protocol: Protocol, name: str, data: str | Path | None, device: torch.device,
    loading: Loading,
) -> HeldOut:  # fmt: skip
    """The photographs in `val/`, numbered as the net's outputs are."""
    assert isinstance(net.recipe, ImageNetRecipe)
    group = process_group()
    photos: Photos = group.on_first(lambda: scan(data_folder(data), "val"))
    classes, whose = photos.classes, "val"
    if net.classes is not None:
        classes, whose = net.classes, "ImageNet" if net.seed is None else "the run's training set"
    elif name == "imagenet":
        raise UsageError(
            f"{net.path} has {net.num_classes} outputs, and ImageNet 1,000 classes: "
            "for other photographs say --dataset folder."
        )
    elif net.num_classes != len(classes):
        raise UsageError(
            f"{net.path} has {net.num_classes} outputs, and val {len(classes)} classes: "
            "name the photographs that it was trained for."
        )
    numbered = photos.labelled_by(classes, whose)
    views = PhotoViews(numbered, protocol, net.recipe.image_size, loading, group)
    order = f"the net's outputs stand for the classes in this order: {told(numbered.classes)}"
    remarks = (order, *(warn_of_text(numbered.classes) if net.classes is None else ()))
    notices: tuple[str, ...] = ()
    text = f"{len(photos):,} validation images of {len(photos.classes):,} classes"
    if name != "imagenet":
        notices = (f"the folder {photos.root.resolve().name} has {text}",)
    elif len(photos) != IMAGENET_IMAGES["val"] or photos.classes != imagenet_classes():
        notices = (f"the images are not ImageNet's 50,000: {text}",)

    def describe() -> dict[str, Any]:
        readable, checksum = views.gather()
        found = {"val": len(readable)}, {"val": checksum}, (*notices, *left_out(views.bad))
        return DatasetInfo(name, numbered.classes, net.num_classes, *found, ("val",)).describe()

    return HeldOut(name, {"val": lambda: views.read(device)}, notices, describe, remarks)


def _record(
    nets: Sequence[LoadedNet], view: Protocol, about: Mapping[str, str], held_out: HeldOut,
    errors: Mapping[str, Errors], runs: Path, say: Say,
) -> None:  # fmt: skip
    """Write what was measured, beside the run or where foreign checkpoints and ensembles are kept."""
    data = held_out.describe()
    part = "test" if "test" in held_out.sets else "val"
    measured_on = data["sha256"][part]
    for sentence in data["notices"]:
        if sentence not in held_out.notices:
            say(f"Note: {sentence}.")
    for net in nets:
        if net.seed is not None and net.trained_on.get(part) != measured_on:
            say(
                f"Note: these are not the images of {net.name}, so no table takes these errors (but those on "
                "all 10,000 test images of CIFAR-10, where the run had the first of them)."
            )
    facts, folder, iteration = nets[0].facts, nets[0].record, nets[0].iteration
    if len(nets) > 1:
        ours = all(net.seed is not None for net in nets)
        facts = {"members": [net.as_member() if ours else net.facts for net in nets]}
        folder, iteration = runs / ("ensembles" if ours else "foreign"), None
    identity = json.dumps(facts.get("members", facts), sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:8] if iteration is None else f"at{iteration}"
    how = [view.name, *(["precise"] if about["bn_stats"] == "precise" else [])]
    path = folder / f"{'-'.join([*how, held_out.name, key, measured_on[:8]])}.json"
    content = {"format": FORMAT, "protocol": view.name, **about, **facts, "data": data}
    content["errors"] = {part: asdict(error) for part, error in errors.items()}
    if is_first():
        write_out(path, json_bytes(content))
    say(f"Recorded in {path}.")
