"""Cells of a table: runs that are identical but for the seed, what they measured, and what fills a gap.

Errors are those of the last iteration, in percent. Nothing here imports torch.
"""

import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.specs import IMAGENET_CLASSES, IMAGENET_IMAGES

ON_VALIDATION = "validation images, not on the test set"
SET_NAMES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Cell:
    """Runs that are identical but for the seed.

    A quantity is a row of layouts.toml: its `set`, and where it is not the error that training recorded
    the test `protocol` and the `metric`.
    """

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any of them, for what they share."""
        return self.runs[0]

    def measured(self, quantity: Mapping[str, Any]) -> list[tuple[Run, float]]:
        """The runs for which a quantity was measured, with its value in percent."""
        found = [(run, self._value(run, quantity)) for run in self.runs]
        return [(run, value) for run, value in found if value is not None]

    def _value(self, run: Run, quantity: Mapping[str, Any]) -> float | None:
        part, metric = self.measured_on(quantity), quantity.get("metric", "top1_err")
        if "protocol" in quantity:
            return run.evaluated(quantity["protocol"], metric, part)
        return run.last(part, metric)

    def values(self, quantity: Mapping[str, Any]) -> list[float]:
        """The last-iteration error of each run, in percent."""
        return [value for _, value in self.measured(quantity)]

    def measured_on(self, quantity: Mapping[str, Any]) -> str:
        """The set of a quantity: "train", or the set of the headline error."""
        return "train" if quantity["set"] == "train" else self.first.headline_split

    def lacking(self, quantity: Mapping[str, Any]) -> list[Run]:
        """The runs that were not evaluated under the protocol of a quantity."""
        if "protocol" not in quantity:
            return []
        return [run for run in self.runs if self._value(run, quantity) is None]

    def best_run(self, quantity: Mapping[str, Any]) -> float | None:
        """The lowest value of a run."""
        return min(self.values(quantity), default=None)

    @property
    def best_sample(self) -> float | None:
        """The lowest sampled headline error of any run."""
        return min((run.best for run in self.runs if run.best is not None), default=None)

    @property
    def exact(self) -> bool:
        """Whether it may stand in the paper's own cell."""
        return all(run.paper_exact for run in self.runs)

    @property
    def comparable(self) -> bool:
        """Whether its errors compare with the paper's: those of ImageNet's nets do on ImageNet alone."""
        run = self.first
        if run.family != "imagenet":
            return True
        whole = run.env["data"]["images"].get("val") == IMAGENET_IMAGES["val"]
        paper = catalogue.paper_recipe(run.family).settings["image_size"].value
        same_size = run.spec["recipe"]["image_size"] == paper
        return run.spec["dataset"] == "imagenet" and run.classes == IMAGENET_CLASSES and whole and same_size

    def label(self) -> str:
        """What sets this cell apart from the experiment, in a word or two."""
        mode = self.first.env["mode"]
        if not self.first.exact:
            kind = "shortened" if self.first.status == "shortened" else "other settings"
            return kind if mode == "default" else f"{kind}, {mode}"
        if mode != "default":
            return f"mode {mode}"
        other = self.first.result["notices"] or self.first.spec["dataset"] == "folder"
        return "other data" if other else "set apart"

    def told(self, quantities: Iterable[Mapping[str, Any]] = ()) -> list[str]:
        """Everything that must be said beside its numbers."""
        sentences = [*self.first.result["departures"], *self.first.result["notices"]]
        sentences += [text for run in self.runs for text in run.result["departures"] if text not in sentences]
        data = self.first.env["data"]
        if self.first.family == "imagenet":
            sentences += data_told(self.first.classes, data["images"], sentences)
        elif self.first.headline_split == "val":
            size = data["images"]["val"]
            sentences.append(f"error on the {size:,} {ON_VALIDATION}")
        if self.first.env["mode"] != "default":
            sentences.append(f"trained in mode {self.first.env['mode']}")
        for quantity in quantities:
            sentences += self._evaluations_told(quantity, sentences)
        return list(dict.fromkeys(sentences))

    def _evaluations_told(self, quantity: Mapping[str, Any], said: Sequence[str]) -> list[str]:
        """What the evaluations behind a quantity add to what was said of the runs."""
        if "protocol" not in quantity:
            return []
        part = self.measured_on(quantity)
        found = [run.evaluation(quantity["protocol"], part) for run in self.runs]
        data = [evaluation.data for evaluation in found if evaluation]
        size = {part: self.first.env["data"]["images"][part]}
        return [t for one in data for t in not_said_yet(one.notices, self.first.classes, size, said)]


def cells_of(experiment: str, runs: Iterable[Run]) -> list[Cell]:
    """The finished runs of an experiment, grouped; paper-exact first, then the longest.

    Those of its twin on a folder of other images are among them.
    """
    names = {experiment, catalogue.twin_on_folder(experiment)}
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.experiment in names and run.finished:
            groups.setdefault(run.cell, []).append(run)
    cells = [Cell(tuple(sorted(group, key=lambda run: run.seed))) for group in groups.values()]
    return sorted(
        cells,
        key=lambda cell: (
            not cell.exact,
            -cell.first.result["iterations"],
            cell.first.env["mode"] != "default",
            -len(cell.runs),
            cell.first.name,
            cell.first.cell,
        ),
    )


def data_told(classes: int | None, images: Mapping[str, int], said: Iterable[str] = ()) -> list[str]:
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
    """The command that trains what an experiment's own cell needs."""
    found = catalogue.find(experiment)
    seeds = found.seeds
    return catalogue.command_for(found.spec()) + (
        f" --seeds {seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else ""
    )


def eval_command(runs: Iterable[Run], protocol: str) -> str:
    """The command that evaluates finished runs under a test protocol."""
    return f"resrepro eval {run_folders(runs)} --protocol {protocol} --data DIR"


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
