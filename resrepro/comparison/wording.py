"""How runs, images and commands are worded in tables, figures and verdicts. Nothing here imports torch."""

import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.experiment import IMAGENET_CLASSES, IMAGENET_IMAGES, command_for

SET_NAMES = {"train": "training", "val": "validation", "test": "test"}


def about_images(classes: int | None, images: Mapping[str, int], said: Iterable[str] = ()) -> list[str]:
    """What images of ImageNet's kind there were, in a sentence.

    None if they are as many as ImageNet's, or if one of the sentences `said` gives the same numbers.
    """
    if classes == IMAGENET_CLASSES and all(
        IMAGENET_IMAGES.get(part) == size for part, size in images.items()
    ):
        return []
    kinds, sizes = _numbers(classes, images)
    if any(_tells(sentence, classes, images) for sentence in said):
        return []
    return [f"{', '.join([*kinds, ' and '.join(sizes)])} images"]


def not_said_yet(
    notices: Iterable[str], classes: int | None, images: Mapping[str, int], said: Iterable[str]
) -> list[str]:
    """The notices without those that only give numbers of images that one of the sentences `said` gives."""
    known = any(_tells(sentence, classes, images) for sentence in said)
    return [notice for notice in notices if not (known and _tells(notice, classes, images))]


def _tells(sentence: str, classes: int | None, images: Mapping[str, int]) -> bool:
    told = [number for numbers in _numbers(classes, images) for number in numbers]
    return all(re.search(rf"(?<![\d,]){re.escape(number)}", sentence) for number in told)


def _numbers(classes: int | None, images: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """How the number of classes (if known) and those of images by set are spelled."""
    sizes = [f"{size:,} {SET_NAMES.get(part, part)}" for part, size in images.items()]
    return [] if classes is None else [f"{classes:,} classes"], sizes


def spell_mean(values: Sequence[float]) -> str:
    """`6.61±0.16 (5)`, or `6.61 (1)` for a single run."""
    spread = f"±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def train_command(experiment: str) -> str:
    """The command that trains what the paper trained of an experiment."""
    found = catalogue.find(experiment)
    seeds = found.seeds
    return command_for(found.spec()) + (f" --seeds {seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else "")


def eval_command(runs: Iterable[Run], protocol: str | None = None) -> str:
    """The command that evaluates finished runs under a test protocol, or as their recipe says."""
    told = f" --protocol {protocol}" if protocol else ""
    return f"resrepro eval {run_folders(runs)}{told} --data DIR"


def run_folders(runs: Iterable[Run]) -> str:
    """The folders of some runs, as words of a command that needs their checkpoints.

    Published records have no checkpoint, so they are named by the run that they were published from; and
    a command that is written to a table holds no path of this machine.
    """
    folders = []
    for run in runs:
        top = run.folder.parent.parent
        top = Path("runs") if top.is_absolute() or top.name == "results" else top
        folders.append(shlex.quote((top / run.name / run.folder.name).as_posix()))
    return " ".join(folders)


def measured_otherwise(
    experiments: Iterable[str], runs: Iterable[Run], quantities: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What finished runs have under a quantity's protocol with other BN statistics than their recipe's."""
    names = {name for own in experiments for name in (own, catalogue.twin_on_folder(own))}
    protocols = {quantity["protocol"] for quantity in quantities if "protocol" in quantity}
    told = []
    for run in runs:
        own = run.spec["recipe"].get("bn_stats", "running")
        for found in run.evaluations if run.experiment in names and run.finished else ():
            whole = (found.digest, found.iteration) == (run.digest, run.spec["recipe"]["iterations"])
            if whole and found.protocol in protocols and found.bn_stats != own:
                errors = found.errors[run.headline_split]
                told.append(
                    f"{run.name} seed {run.seed} with {found.bn_stats} BN statistics: {found.protocol} "
                    f"{errors['top1_err']:.2f} top-1, {errors['top5_err']:.2f} top-5"
                )
    return told


def unused(experiments: Iterable[str], runs: Iterable[Run]) -> list[str]:
    """What to call the runs of some experiments (and their twins) that are unfinished or diverged."""
    names = {name for own in experiments for name in (own, catalogue.twin_on_folder(own))}
    return [
        f"{run.name} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
        for run in runs
        if run.experiment in names and not run.finished
    ]
