"""Evaluating a checkpoint, ours or another's, and recording what came out (single view, Section 4.2)."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resrepro import catalogue
from resrepro.checkpoint import load_checkpoint
from resrepro.data import Dataset, load_dataset
from resrepro.data.batches import Preparation
from resrepro.device import choose_device, memory_format, use_precision, use_threads
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation import measure, on_device
from resrepro.foreign import find_state_dict, fit
from resrepro.metrics import Errors
from resrepro.nets import net_of
from resrepro.recording import write_json
from resrepro.records import CHECKPOINT, EVALS
from resrepro.specs import Recipe, net_label

PROTOCOL = "single"
IMAGE_SHAPES = {"cifar10": (32, 32), "digits": (16, 16)}
SEEN = "the 5,000 validation images were among those trained on"


@dataclass(frozen=True)
class Foreign:
    """How to understand a checkpoint that is not ours: the net, and the normalisation it expects.

    `mean` and `std` are per channel, on pixels scaled to 0..1.
    """

    depth: int | None = None
    plain: bool = False
    shortcut: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    option_a_zeros: str | None = None


@dataclass(frozen=True)
class _Subject:
    """A net ready to be measured."""

    net: nn.Module
    label: str
    dataset: Dataset
    preparation: Preparation
    precision: str
    facts: dict[str, Any]
    record: Path


def evaluate(
    target: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    foreign: Foreign | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Errors]:
    """Measure a checkpoint on the held-out sets, single view, and record the result.

    Args:
        target: a run folder, one of our checkpoints, or another's (then `foreign` says what it is).
        dataset: "cifar10" or "digits"; by default the run's own, or cifar10.
        data: folder of CIFAR-10.
        split: "all" or "45k5k"; by default the run's own.
        foreign: net and normalisation of a checkpoint that is not ours.
        runs: where results of foreign checkpoints are kept (`<runs>/foreign/`).
        device: see `train`.
        threads: CPU threads.
        say: receives sentences worth printing.

    Returns:
        Errors by set ("test", and "val" under the 45k/5k split), in percent.

    Raises:
        UsageError: if a foreign checkpoint comes without net or normalisation.
        RecordError: if the checkpoint is damaged, unsafe or does not fit the net.
    """
    path = Path(target)
    path = path / CHECKPOINT if path.is_dir() else path
    chosen = choose_device(device)
    use_threads(threads)
    content = load_checkpoint(path)
    ours = {"digest", "spec", "net", "iteration"} <= content.keys()
    read = _our_subject if ours else _foreign_subject
    subject = read(path, content, dataset, data, split, foreign or Foreign(), Path(runs))
    for notice in subject.dataset.notices:
        say(f"Note: {notice}.")
    say(f"{path.name} is evaluated as {subject.label} on {subject.dataset.name}, single view.")
    if matched := subject.facts.get("matched_by"):
        say(f"Its tensors were matched by {matched if matched == 'name' else 'order and shape'}.")
    if (shape := subject.preparation.mean.shape[1:]) not in ((1, 1), IMAGE_SHAPES[subject.dataset.name]):
        raise UsageError(
            f"{path} subtracts a mean image of {shape[0]}x{shape[1]} pixels, and {subject.dataset.name} has "
            "none of that size: evaluate it on the dataset that it was trained on."
        )
    use_precision(subject.precision, chosen)
    net = subject.net.to(chosen).to(memory_format=memory_format(chosen))
    subject.preparation.to(chosen)
    errors = {
        name: measure(net, *on_device(images, chosen), subject.preparation, subject.precision)
        for name, images in subject.dataset.held_out.items()
    }
    figures = {name: _finite(error) for name, error in errors.items()}
    write_json(subject.record, subject.facts | {"data": subject.dataset.describe(), "errors": figures})
    say(f"Recorded in {subject.record}.")
    return errors


def _our_subject(
    path: Path, content: dict[str, Any], dataset: str | None, data: str | Path | None, split: str | None,
    foreign: Foreign, runs: Path,
) -> _Subject:  # fmt: skip
    if foreign != Foreign():
        raise UsageError(
            f"{path} is a run of ours and says itself what net it is: leave the net's options out."
        )
    try:
        spec = content["spec"]
        recipe = Recipe.from_json(spec["recipe"])
        shape = (spec["dataset"], spec["depth"], spec["plain"], spec["shortcut"], content["num_classes"])
        net = net_of(recipe, *shape)
        net.load_state_dict(content["net"])
        mean, iteration = content["mean"], int(content["iteration"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecordError(f"{path} is not a whole checkpoint of ours ({type(error).__name__}).") from None
    label = net_label(spec["depth"], spec["plain"], spec["shortcut"])
    name, part = dataset or spec["dataset"], split or recipe.split
    loaded = load_dataset(name, part, data)
    if part == "45k5k" and recipe.split != "45k5k":
        loaded = replace(loaded, notices=(*loaded.notices, SEEN))
    return _Subject(
        net,
        f"{label} after {iteration:,} of {recipe.iterations:,} iterations",
        loaded,
        Preparation(recipe, mean),
        recipe.precision,
        {"protocol": PROTOCOL, "digest": content["digest"], "iteration": iteration},
        path.parent / EVALS / _record_name(loaded, part, iteration),
    )


def _foreign_subject(
    path: Path, content: dict[str, Any], dataset: str | None, data: str | Path | None, split: str | None,
    foreign: Foreign, runs: Path,
) -> _Subject:  # fmt: skip
    if foreign.depth is None:
        raise UsageError(f"{path} is not a run of ours: name its net with --depth and --plain or --shortcut.")
    if foreign.mean is None or foreign.std is None:
        raise UsageError(
            f"{path} is not a run of ours: give the channel mean and std that its net was trained with, "
            "e.g. --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616."
        )
    mean, std = (_per_channel(values) * 255 for values in (foreign.mean, foreign.std))
    if not bool((std > 0).all()):
        raise UsageError("every --std must be above 0.")
    name, part = dataset or "cifar10", split or "all"
    experiment = catalogue.experiment_for(name, foreign.depth, foreign.plain)
    spec = catalogue.derive(experiment, foreign.shortcut, option_a_zeros=foreign.option_a_zeros)
    tensors = find_state_dict(content, str(path))
    option = {"A": f" (option A, {spec.recipe.option_a_zeros} zeros)", None: ""}.get(
        spec.shortcut, f" (option {spec.shortcut})"
    )
    label = net_label(spec.depth, spec.plain) + option
    loaded = load_dataset(name, part, data)
    if part == "45k5k":
        loaded = replace(loaded, notices=(*loaded.notices, SEEN.replace("were", "may have been")))
    net = net_of(spec.recipe, name, spec.depth, spec.plain, spec.shortcut, loaded.num_classes)
    matched = fit(net, tensors, str(path), label)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {
        "protocol": PROTOCOL,
        "checkpoint": path.name,
        "sha256": sha256,
        "net": label,
        "option_a_zeros": spec.recipe.option_a_zeros if spec.shortcut == "A" else None,
        "mean": list(foreign.mean),
        "std": list(foreign.std),
        "matched_by": matched,
    }
    record = runs / "foreign" / f"{path.stem}-{sha256[:8]}" / _record_name(loaded, part)
    return _Subject(net, label, loaded, Preparation(spec.recipe, mean, std), "float32", facts, record)


def _record_name(dataset: Dataset, split: str, iteration: int | None = None) -> str:
    """A file name that says protocol, data and iteration, so that no result replaces another."""
    parts = [PROTOCOL, dataset.name, split, *([] if iteration is None else [f"at{iteration}"])]
    return "-".join([*parts, dataset.checksums["test"][:8]]) + ".json"


def _finite(errors: Errors) -> dict[str, float | int | None]:
    """The figures for a JSON file, which knows no infinity."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(errors).items()}


def _per_channel(values: Sequence[float]) -> torch.Tensor:
    if len(values) != 3:
        raise UsageError(f"--mean and --std take three numbers, one per channel, not {len(values)}.")
    return torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)
