"""All runs below some folders: collected, filtered by settings, as a frame. Nothing here imports torch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resrepro.errors import RecordError, UsageError
from resrepro.records import Run, read_all, read_run
from resrepro.records.evaluations import Ensemble, ensemble_from
from resrepro.records.reading import ENSEMBLES, SPEC
from resrepro.spec.recipe import parse, spell

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_FOLDERS = ("runs",)  # one's own runs; published ones are named
RUN_FOLDER = re.compile(r"seed\d+")  # folders set aside are called seed0.aside1
OTHER_SETTINGS = ("dataset", "depth", "plain", "shortcut", "experiment", "mode", "seed")  # not of a recipe


@dataclass(frozen=True)
class Collection:
    """Runs and ensembles that could be read, and one sentence for each file that could not.

    `folders` are those that were named, `shadowed` says which records another one of the same run hides.
    """

    runs: tuple[Run, ...]
    broken: tuple[str, ...]
    ensembles: tuple[Ensemble, ...] = ()
    folders: tuple[Path, ...] = ()
    shadowed: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Where several folders are named, sentences on how many runs are of which and what is shadowed."""
        if len(self.folders) < 2:
            return ()
        counts = Counter(run.folder.parent.parent for run in self.runs)
        told = " and ".join(f"{counts[top]:,} of {_folder_name(top)}" for top in self.folders)
        return (f"Runs read: {told}.", *self.shadowed)

    def having(self, settings: Mapping[str, str]) -> "Collection":
        """Only the runs with some settings (spelled as one types them): of the recipe, the net, or `mode`.

        Raises:
            UsageError: for an unknown setting, or if there are no such runs.
        """
        wanted = {
            key: text if key in OTHER_SETTINGS else spell(parse(key, text)) for key, text in settings.items()
        }
        kept = tuple(run for run in self.runs if all(run.setting(key) == wanted[key] for key in wanted))
        if wanted and not kept:
            known = {key: sorted({run.setting(key) for run in self.runs}) for key in wanted}
            there = "; ".join(f"{key}: {', '.join(values)}" for key, values in known.items() if values)
            asked = ", ".join(f"{key}={text}" for key, text in wanted.items())
            raise UsageError(f"no run has {asked}; there are {there or 'no runs at all'}.")
        return replace(self, runs=kept)


def _folder_name(folder: Path) -> str:
    """A folder as tables name it, without the path of this machine."""
    return folder.name if folder.is_absolute() else folder.as_posix()


def collect(folders: Iterable[Path]) -> Collection:
    """All runs and ensembles below some runs folders, in a fixed order; folders set aside are passed over.

    A run that appears twice (in `runs/` and published to `results/`) counts once: the first one that
    is finished, else the first. The other is told as shadowed. Of an ensemble that appears twice the first
    one counts.

    Raises:
        RecordError: if something that is no folder was given.
    """
    runs: dict[tuple[object, ...], Run] = {}
    ensembles: dict[str, Ensemble] = {}
    broken: list[str] = []
    shadowed: dict[tuple[str, str], list[str]] = {}
    tops = list(folders)
    for top in tops:
        if top.exists() and not top.is_dir():
            raise RecordError(f"{top} is a file, not a folder of runs.")
        for folder in sorted(top.glob("*/seed*")):
            if not RUN_FOLDER.fullmatch(folder.name) or not (folder / SPEC).exists():
                continue
            try:
                run = read_run(folder)
            except RecordError as error:
                broken.append(str(error))
                continue
            broken += run.broken
            key = (run.name, run.seed, *run.seed_group)
            other = runs.setdefault(key, run)
            if other is not run:
                if run.finished and not other.finished:
                    runs[key], run, other = run, other, run
                tops_of = _folder_name(run.folder.parent.parent), _folder_name(other.folder.parent.parent)
                shadowed.setdefault(tops_of, []).append(f"{run.name} seed {run.seed}")
        found, damaged = read_ensembles(top)
        broken += damaged
        for ensemble in found:
            ensembles.setdefault(ensemble.key, ensemble)
    ordered = sorted(runs.values(), key=lambda run: (run.name, run.seed))
    return Collection(
        tuple(ordered),
        tuple(broken),
        tuple(ensembles[key] for key in sorted(ensembles)),
        tuple(tops),
        tuple(
            f"Left out of {top}, as the same run of {by} is shown: {', '.join(names)}."
            for (top, by), names in shadowed.items()
        ),
    )


def read_ensembles(top: Path) -> tuple[list[Ensemble], list[str]]:
    """The ensembles of a runs folder, and a sentence on each that is broken."""
    return read_all(top / ENSEMBLES, ensemble_from)


def load_runs(*folders: str | Path) -> "pd.DataFrame":
    """One row per run below the given runs folders (default `runs`), for notebooks.

    Columns: name, experiment, dataset, depth, plain, shortcut, seed, status, iterations, headline
    (the set measured on), top1_err, best_err, train_err (percent), seconds, departures, folder.
    A broken record gives a `UserWarning` and no row; a broken evaluation only the warning.
    """
    import warnings

    import pandas as pd

    collection = collect([Path(folder) for folder in folders or DEFAULT_FOLDERS])
    for sentence in collection.broken:
        warnings.warn(sentence, stacklevel=2)
    columns = (
        "name", "experiment", "dataset", "depth", "plain", "shortcut", "seed", "status", "iterations",
        "headline", "top1_err", "best_err", "train_err", "seconds", "departures", "folder",
    )  # fmt: skip
    rows = [
        (
            run.name, run.experiment, run.spec["dataset"], run.spec["depth"], run.spec["plain"],
            run.spec["shortcut"], run.seed, run.status, run.result["iteration"], run.headline_split,
            run.last(run.headline_split), run.best, run.last("train"), run.result["seconds"],
            "; ".join(run.result["departures"]), str(run.folder),
        )
        for run in collection.runs
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))
