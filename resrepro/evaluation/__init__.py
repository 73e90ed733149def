"""Measuring finished nets, ours and other people's: errors under a test protocol, responses of layers."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from resrepro.data.augment import memory_format
from resrepro.data.feeds import open_feed
from resrepro.data.loader import Loading
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.held_out import HeldOut, open_held_out
from resrepro.evaluation.sources import LoadedNet, ThirdPartyCheckpoint, read_net
from resrepro.processes import is_first, world_size
from resrepro.records import CIFAR10_TEST
from resrepro.records.durable import json_bytes, write_out
from resrepro.records.evaluations import LAYER_RESPONSES
from resrepro.records.reading import FORMAT
from resrepro.spec.catalogue import Protocol, protocol_for
from resrepro.training.engine import (
    choose_device,
    forget_shapes_soon,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.measure import Errors, Member, measure_errors, with_precise_statistics
from resrepro.training.parallel import bn_group_for, join, process_group, split_batch, told_as_lost

__all__ = ["ThirdPartyCheckpoint", "evaluate", "measure_nets"]


@told_as_lost()
def evaluate(
    target: str | Path | Sequence[str | Path],
    *,
    protocol: str | None = None,
    bn_stats: str | None = None,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    third_party: ThirdPartyCheckpoint | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    loading: Loading | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Errors]:
    """Measure a checkpoint, or several as one ensemble, on the held-out sets and record the result.

    Args:
        target: a run folder, one of our checkpoints, or another's (then `third_party` says what it is).
            Of a list of them the scores (softmax) are averaged (Table 5).
        protocol: "center", "ten_crop" or "multi_scale" for photographs, "single" for CIFAR-10 and digits;
            by default the view of the curves ("center", "single").
        bn_stats: "running", or "precise": plain averages over training batches, which needs the training
            images too; by default as the run's recipe says.
        dataset: by default the run's own, or cifar10.
        data: folder of CIFAR-10, or of photographs (`val/<class>/*` is enough).
        split: "all" or "45k5k" (CIFAR-10); by default the run's own.
        third_party: net and normalisation of a checkpoint that is not ours.
        runs: where results of foreign checkpoints and of ensembles are kept (`<runs>/foreign/`,
            `<runs>/ensembles/`).
        device: see `train`.
        threads: CPU threads.
        loading: how image files are read.
        say: receives sentences worth printing.

    Returns:
        Errors by set ("test" or "val"), in percent.

    Raises:
        UsageError: if a foreign checkpoint comes without net or normalisation, the protocol is not one
            of its family, or nets of an ensemble do not take the same images and classes.
        RecordError: if the checkpoint is damaged, unsafe or does not fit the net.
        DataError: if the images are missing or damaged.
        PeerLost: if another process of a `torchrun` ended.
    """
    chosen, loading = choose_device(device), loading or Loading()
    join(chosen)
    say = say if is_first() else lambda text: None
    targets = [target] if isinstance(target, str | Path) else target
    if not targets:
        raise UsageError("no checkpoint to measure: name one.")
    nets = [read_net(each, dataset, third_party, Path(runs)) for each in targets]
    _check_together(nets)
    first = nets[0]
    view = protocol_for(protocol or first.recipe.test_view, first.family)
    statistics = bn_stats or str(getattr(first.recipe, "bn_stats", "running"))
    held_out = open_held_out(first, view, dataset, data, split, chosen, loading)
    _announce(nets, view, held_out, say)
    if view.crops == "dense":
        forget_shapes_soon()
    use_precision(first.precision_on(chosen), chosen)
    telling = telling_memory("these views of the net: try --device cpu, or a GPU with more")
    with telling, threads_used(threads):
        members = [net.member(chosen, memory_format(chosen)) for net in nets]
        members = [
            _with_statistics(statistics, net, member, data, chosen, loading, say)
            for net, member in zip(nets, members, strict=True)
        ]
        errors = {
            name: measure_errors(members, open_views(), view.crops == "dense", chosen)
            for name, open_views in held_out.sets.items()
        }
    _record(nets, view, statistics, first.precision_on(chosen), held_out, errors, Path(runs), say)
    return errors


def measure_nets(what: str, folders: Sequence[Path], runs: Path, **options: Any) -> None:
    """Measure something of the net of a run, or of several together, and record it.

    Args:
        what: a test protocol, or LAYER_RESPONSES, which are those of one run.
        folders: the run's folder; several are the members of an ensemble.
        runs: the runs folder, in which ensembles are recorded.
        **options: `data`, `device`, `threads`, `loading` and `say`, as for `evaluate`.

    Raises:
        UsageError: if a run is not finished, or the protocol is none of its kind of images.
        RecordError: if a checkpoint is missing or broken, or the images are others.
        DataError: if the images are missing or damaged.
    """
    if what == LAYER_RESPONSES:
        from resrepro.evaluation.responses import measure_responses

        (folder,) = folders
        measure_responses(folder, **options)
        return
    evaluate(folders if len(folders) > 1 else folders[0], protocol=what, runs=runs, **options)


def _announce(
    nets: Sequence[LoadedNet], view: Protocol, held_out: HeldOut, say: Callable[[str], None]
) -> None:
    """Say what is about to be measured, on what."""
    for notice in held_out.notices:
        say(f"Note: {notice}.")
    for net in nets:
        say(f"{net.name} is evaluated as {net.label} on {held_out.dataset}, {view.title}.")
        if matched := net.facts.get("matched_by"):
            say(f"Its tensors were matched by {matched if matched == 'name' else 'order and shape'}.")


def _check_together(nets: Sequence[LoadedNet]) -> None:
    first = nets[0]
    keys = [json.dumps(net.facts, sort_keys=True) + str(net.seed) for net in nets]
    if len(set(keys)) < len(keys):
        raise UsageError("an ensemble is of different nets, and one is named twice: name each once.")
    for other in nets[1:]:
        for setting in ("precision", "bn_stats"):
            if getattr(first.recipe, setting, None) != getattr(other.recipe, setting, None):
                raise UsageError(
                    f"{first.name} and {other.name} differ in {setting}, so they are not measured alike: "
                    "leave one of them out."
                )
        sizes = [getattr(each.recipe, "image_size", None) for each in (first, other)]
        if other.family != first.family or other.classes != first.classes or sizes[0] != sizes[1]:
            raise UsageError(
                f"{first.name} and {other.name} do not take the same images and classes, "
                "so their scores cannot be averaged: leave one of them out."
            )
        if other.num_classes != first.num_classes:
            raise UsageError(f"{first.name} and {other.name} have different numbers of classes.")


def _with_statistics(
    statistics: str,
    net: LoadedNet,
    member: Member,
    data: str | Path | None,
    device: torch.device,
    loading: Loading,
    say: Callable[[str], None],
) -> Member:
    """The net with these BN statistics.

    Raises:
        UsageError: if they cannot be had.
    """
    if statistics == "running":
        return member
    if statistics != "precise":
        raise UsageError(f"no BN statistics {statistics!r}: there are running and precise.")
    if net.seed is None:
        raise UsageError(
            f"{net.path} is not a run of ours, so its training batches are not known: "
            "leave --bn-stats precise out."
        )
    spread = split_batch(net.recipe.batch_size, world_size())
    bn_group_for(net.recipe, spread, given=True)
    feed = open_feed(net.spec, data, device, net.seed, loading, say, process_group())
    if feed.about.checksums["train"] != net.trained_on.get("train"):
        raise RecordError(
            f"{net.name} was trained on other images than those at hand (checksum differs): "
            "name the data that it was trained on, or leave --bn-stats precise out."
        )
    say(f"BN statistics are plain averages over {feed.precise_batches} training batches.")
    return replace(member, net=with_precise_statistics(member.net, feed.first_batches(), net.recipe))


def _record(
    nets: Sequence[LoadedNet],
    view: Protocol,
    statistics: str,
    precision: str,
    held_out: HeldOut,
    errors: dict[str, Errors],
    runs: Path,
    say: Callable[[str], None],
) -> None:
    """Write what was measured, beside the run or where foreign checkpoints and ensembles are kept."""
    data = held_out.describe()
    for sentence in data["notices"]:
        if sentence not in held_out.notices:
            say(f"Note: {sentence}.")
    for net in nets:
        own = net.trained_on.get(held_out.key_set)
        if net.seed is not None and own != data["sha256"][held_out.key_set]:
            say(f"Note: these are not the images of {net.name}{_use_of(net, data)}.")
    figures = {name: _finite(error) for name, error in errors.items()}
    content = {"format": FORMAT, "protocol": view.name, "bn_stats": statistics, "precision": precision}
    first = nets[0]
    key = data["sha256"][held_out.key_set][:8]
    parts = [view.name, *(["precise"] if statistics == "precise" else []), held_out.name]
    if len(nets) == 1:
        digest = hashlib.sha256(json.dumps(first.facts, sort_keys=True).encode()).hexdigest()
        parts += [digest[:8]] if first.iteration is None else [f"at{first.iteration}"]
        path = first.record / ("-".join([*parts, key]) + ".json")
        content |= first.facts
    else:
        ours = all(net.seed is not None for net in nets)
        members = [net.as_member() if ours else net.facts for net in nets]
        digest = hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()
        path = runs / ("ensembles" if ours else "foreign") / ("-".join([*parts, digest[:8], key]) + ".json")
        content |= {"members": members}
    if is_first():
        write_out(path, json_bytes(content | {"data": data, "errors": figures}))
    say(f"Recorded in {path}.")


def _use_of(net: LoadedNet, data: Mapping[str, Any]) -> str:
    """What becomes of errors on other images than those of a run: only a whole test set counts."""
    whole = data["name"] == "cifar10" and data["images"].get("test") == CIFAR10_TEST
    if whole and net.trained_on.get("train") == data["sha256"].get("train"):
        return "'s own test set; tables take the error if that was the first part of it"
    return ", so no table takes these errors"


def _finite(errors: Errors) -> dict[str, float | int | None]:
    """The figures for a JSON file, which knows no infinity."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(errors).items()}
