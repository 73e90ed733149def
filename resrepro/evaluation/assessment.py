"""Evaluating checkpoints, ours or another's, under a test protocol, and recording what came out."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from resrepro.data.augment import memory_format
from resrepro.data.feeds import open_feed
from resrepro.data.loader import Loading
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.held_out import HeldOut, open_held_out
from resrepro.evaluation.subjects import Foreign, Subject, read_subject
from resrepro.processes import is_first, world_size
from resrepro.records.durable import json_bytes, write_out
from resrepro.records.record_files import FORMAT
from resrepro.spec.catalogue import Protocol, protocol_for
from resrepro.training.device import (
    choose_device,
    forget_shapes_soon,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.distributed import join, process_group, told_as_lost
from resrepro.training.evaluation import Member, measure, precise_statistics
from resrepro.training.metrics import Errors
from resrepro.training.spread import bn_group_for, spread_batch

__all__ = ["Foreign", "evaluate"]


@told_as_lost()
def evaluate(
    target: str | Path | Sequence[str | Path],
    *,
    protocol: str | None = None,
    bn_stats: str | None = None,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    foreign: Foreign | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    loading: Loading | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Errors]:
    """Measure a checkpoint, or several as one ensemble, on the held-out sets and record the result.

    Args:
        target: a run folder, one of our checkpoints, or another's (then `foreign` says what it is).
            Of a list of them the scores (softmax) are averaged (Table 5).
        protocol: "center", "ten_crop" or "multi_scale" for photographs, "single" for CIFAR-10 and digits;
            by default the view of the curves ("center", "single").
        bn_stats: "running", or "precise": plain averages over training batches, which needs the training
            images too; by default as the run's recipe says.
        dataset: by default the run's own, or cifar10.
        data: folder of CIFAR-10, or of photographs (`val/<class>/*` is enough).
        split: "all" or "45k5k" (CIFAR-10); by default the run's own.
        foreign: net and normalisation of a checkpoint that is not ours.
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
    subjects = [read_subject(each, dataset, foreign or Foreign(), Path(runs)) for each in targets]
    _check_together(subjects)
    first = subjects[0]
    view = protocol_for(protocol or first.recipe.test_view, first.family)
    statistics = bn_stats or str(getattr(first.recipe, "bn_stats", "running"))
    held_out = open_held_out(first, view, dataset, data, split, chosen, loading)
    _announce(subjects, view, held_out, say)
    if view.crops == "dense":
        forget_shapes_soon()
    use_precision(first.precision_on(chosen), chosen)
    with telling_memory("these views of the net: try --device cpu, or a GPU with more"), ExitStack() as stack:
        stack.enter_context(threads_used(threads))
        members = [subject.member(chosen, memory_format(chosen)) for subject in subjects]
        for subject, member in zip(subjects, members, strict=True):
            stack.enter_context(_bn_statistics(statistics, subject, member, data, chosen, loading, say))
        errors = {
            name: measure(members, open_views(), view.crops == "dense", chosen)
            for name, open_views in held_out.sets.items()
        }
    _record(subjects, view, statistics, first.precision_on(chosen), held_out, errors, Path(runs), say)
    return errors


def _announce(
    subjects: Sequence[Subject], view: Protocol, held_out: HeldOut, say: Callable[[str], None]
) -> None:
    """Say what is about to be measured, on what."""
    for notice in held_out.notices:
        say(f"Note: {notice}.")
    for subject in subjects:
        say(f"{subject.name} is evaluated as {subject.label} on {held_out.dataset}, {view.title}.")
        if matched := subject.facts.get("matched_by"):
            say(f"Its tensors were matched by {matched if matched == 'name' else 'order and shape'}.")


def _check_together(subjects: Sequence[Subject]) -> None:
    first = subjects[0]
    nets = [json.dumps(subject.facts, sort_keys=True) + str(subject.seed) for subject in subjects]
    if len(set(nets)) < len(nets):
        raise UsageError("an ensemble is of different nets, and one is named twice: name each once.")
    for other in subjects[1:]:
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


def _bn_statistics(
    statistics: str,
    subject: Subject,
    member: Member,
    data: str | Path | None,
    device: torch.device,
    loading: Loading,
    say: Callable[[str], None],
) -> AbstractContextManager[None]:
    """The context in which a net is measured with these BN statistics.

    Raises:
        UsageError: if they cannot be had.
    """
    if statistics == "running":
        return nullcontext()
    if statistics != "precise":
        raise UsageError(f"no BN statistics {statistics!r}: there are running and precise.")
    if subject.seed is None:
        raise UsageError(
            f"{subject.path} is not a run of ours, so its training batches are not known: "
            "leave --bn-stats precise out."
        )
    spread = spread_batch(subject.recipe.batch_size, world_size())
    bn_group_for(subject.recipe, spread, given=True, sync_bn=False)
    feed = open_feed(subject.spec, data, device, subject.seed, loading, say, process_group())
    if feed.about.checksums["train"] != subject.trained_on.get("train"):
        raise RecordError(
            f"{subject.name} was trained on other images than those at hand (checksum differs): "
            "name the data that it was trained on, or leave --bn-stats precise out."
        )
    say(f"BN statistics are plain averages over {feed.precise_batches} training batches.")
    return precise_statistics(member.net, feed.first_batches(), subject.recipe)


def _record(
    subjects: Sequence[Subject],
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
    for subject in subjects:
        own = subject.trained_on.get(held_out.key_set)
        if subject.seed is not None and own != data["sha256"][held_out.key_set]:
            say(f"Note: these are not the images of {subject.name}, so no table takes these errors.")
    figures = {name: _finite(error) for name, error in errors.items()}
    content = {"format": FORMAT, "protocol": view.name, "bn_stats": statistics, "precision": precision}
    first = subjects[0]
    key = data["sha256"][held_out.key_set][:8]
    parts = [view.name, *(["precise"] if statistics == "precise" else []), held_out.name]
    if len(subjects) == 1:
        told = hashlib.sha256(json.dumps(first.facts, sort_keys=True).encode()).hexdigest()
        parts += [told[:8]] if first.iteration is None else [f"at{first.iteration}"]
        path = first.record / ("-".join([*parts, key]) + ".json")
        content |= first.facts
    else:
        ours = all(subject.seed is not None for subject in subjects)
        members = [subject.as_member() if ours else subject.facts for subject in subjects]
        told = hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()
        path = runs / ("ensembles" if ours else "foreign") / ("-".join([*parts, told[:8], key]) + ".json")
        content |= {"members": members}
    if is_first():
        write_out(path, json_bytes(content | {"data": data, "errors": figures}))
    say(f"Recorded in {path}.")


def _finite(errors: Errors) -> dict[str, float | int | None]:
    """The figures for a JSON file, which knows no infinity."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(errors).items()}
