"""All runs below some folders: collected, filtered by settings, as a frame, published and verified."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resrepro.errors import RecordError, ResreproError, UsageError
from resrepro.records import Run, read_evaluations, read_run, reading
from resrepro.records.reading import CHECKPOINT, EVALS, OF_SEVERAL, PREVIOUS, SPEC, naming, read_json
from resrepro.records.storage import write_out
from resrepro.spec.recipe import parse, spell

if TYPE_CHECKING:
    import pandas as pd

FOREIGN = "foreign"  # in a folder of runs: evaluations of other people's checkpoints
DEFAULT_FOLDERS = ("runs",)  # one's own runs; published ones are named
RUN_FOLDER = re.compile(r"seed\d+")  # folders set aside are called seed0.aside1
OTHER_SETTINGS = ("dataset", "depth", "plain", "shortcut", "experiment", "mode", "seed")  # not of a recipe
COLUMNS = (
    "name", "experiment", "dataset", "depth", "plain", "shortcut", "seed", "status", "iterations",
    "headline", "top1_err", "best_err", "train_err", "seconds", "departures", "folder",
)  # of `load_runs`  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """Runs and ensembles that could be read, and one sentence for each file that could not."""

    runs: tuple[Run, ...]
    broken: tuple[str, ...]
    ensembles: tuple[reading.Ensemble, ...] = ()
    folders: tuple[Path, ...] = ()  # those that were named

    @property
    def sources(self) -> tuple[str, ...]:
        """Where several folders are named, a sentence on how many runs are of which."""
        if len(self.folders) < 2:
            return ()
        counts = Counter(run.folder.parents[1] for run in self.runs)
        named = {top: top.name if top.is_absolute() else top.as_posix() for top in self.folders}
        told = " and ".join(f"{counts[top]:,} of {name}" for top, name in named.items())
        return (f"Runs read: {told}.",)

    def having(self, settings: Mapping[str, str]) -> "Collection":
        """Only the runs with some settings, spelled as one types them (UsageError if there are none)."""
        wanted = {
            key: text if key in OTHER_SETTINGS else spell(parse(key, text)) for key, text in settings.items()
        }
        kept = tuple(run for run in self.runs if all(run.setting(k) == wanted[k] for k in wanted))
        if wanted and not kept:
            known = {key: sorted({run.setting(key) for run in self.runs}) for key in wanted}
            there = "; ".join(f"{key}: {', '.join(values)}" for key, values in known.items() if values)
            asked = ", ".join(f"{key}={text}" for key, text in wanted.items())
            raise UsageError(f"no run has {asked}; there are {there or 'no runs at all'}.")
        return replace(self, runs=kept)


def collect(folders: Sequence[Path]) -> Collection:
    """All runs and ensembles below some runs folders (RecordError if one is a file), in a fixed order,
    without those set aside. Of a run that appears twice (in `runs/` and published to `results/`) the first
    one that is finished counts, else the first.
    """
    copies: dict[tuple[object, ...], list[Run]] = {}
    ensembles: dict[str, reading.Ensemble] = {}
    broken: list[str] = []
    for top in folders:
        if top.is_file():
            raise RecordError(f"{top} is a file, not a folder of runs.")
        for folder in _run_folders(top, "*/seed*"):
            if not (folder / SPEC).exists():
                continue
            try:
                run = read_run(folder)
            except RecordError as error:
                broken.append(str(error))
            else:
                broken += run.broken
                copies.setdefault((run.name, run.seed, *run.seed_group), []).append(run)
        found, damaged = read_ensembles(top)
        broken += damaged
        for ensemble in found:
            ensembles.setdefault(ensemble.key, ensemble)
    chosen = [next((run for run in same if run.finished), same[0]) for same in copies.values()]
    runs = tuple(sorted(chosen, key=lambda run: (run.name, run.seed)))
    return Collection(runs, tuple(broken), tuple(ensembles[key] for key in sorted(ensembles)), tuple(folders))


def _run_folders(top: Path, pattern: str) -> list[Path]:
    """The folders of runs at a place, without those set aside."""
    return sorted(folder for folder in top.glob(pattern) if RUN_FOLDER.fullmatch(folder.name))


def read_ensembles(top: Path) -> tuple[list[reading.Ensemble], list[str]]:
    """The ensembles of a runs folder, and a sentence on each that is broken."""
    return read_evaluations(top / reading.ENSEMBLES, OF_SEVERAL)


def load_runs(*folders: str | Path) -> "pd.DataFrame":
    """One row per run below the given runs folders (default `runs`), for notebooks.

    Columns: name, experiment, dataset, depth, plain, shortcut, seed, status, iterations, headline
    (the set measured on), top1_err, best_err, train_err (percent), seconds, departures, folder.
    A broken record gives a `UserWarning` and no row; a broken evaluation only the warning.
    """
    import pandas as pd

    collection = collect([Path(folder) for folder in folders or DEFAULT_FOLDERS])
    for sentence in collection.broken:
        warnings.warn(sentence, stacklevel=2)
    rows = []
    for run in collection.runs:
        figures = {
            "name": run.name, "seed": run.seed, "iterations": run.result["iteration"],
            "top1_err": run.last(run.headline_split), "best_err": run.best, "train_err": run.last("train"),
            "departures": "; ".join(run.result["departures"]), "folder": str(run.folder),
        }  # fmt: skip
        rows.append({**run.spec, **run.result, **figures})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def publish(run: Run, results: Path) -> Path:
    """Copy a finished record, without its checkpoint, to `results/<name>/seed<k>/`; returns that folder
    (RecordError if the run is unfinished, or another record lies there already).
    """
    if not run.finished:
        raise RecordError(f"{run.folder} is {run.status}, not finished: only finished runs are published.")
    target = results / run.name / f"seed{run.seed}"
    measured = [*run.folder.glob(reading.RESPONSES), *sorted((run.folder / EVALS).glob("*.json"))]
    sources = [*(run.folder / name for name in reading.RECORD_FILES), *measured]
    _copy({target / source.relative_to(run.folder): reading.read_bytes(source) for source in sources})
    return target


def publish_ensemble(path: Path, results: Path) -> Path:
    """Copy the record of an ensemble to `results/ensembles/`; returns the copy (errors as of `publish`)."""
    with naming(path):
        reading.evaluation_from(read_json(path), *OF_SEVERAL)
    target = results / reading.ENSEMBLES / path.name
    _copy({target: reading.read_bytes(path)})
    return target


def _copy(copies: Mapping[Path, bytes]) -> None:
    """Write files that are not there yet; where one of them has other content (RecordError), none."""
    for path, content in copies.items():
        if path.exists() and reading.read_bytes(path) != content:
            raise RecordError(
                f"{path} holds another record already: move it away first, nothing is overwritten."
            )
    for path, content in copies.items():
        write_out(path, content)


Identity = tuple[str, int | None, int | None]  # of a trained net: digest, seed, and updates that were made
ReadCheckpoint = Callable[[Path], Identity]  # loads the net, else a ResreproError


def verify(paths: Sequence[Path], read_checkpoint: ReadCheckpoint) -> Iterator[tuple[Path, str, list[str]]]:
    """Check runs (folders of runs, or of one), and JSON files that `eval` wrote: the run's folder or the
    file, what it holds in a few words (empty if it is broken), and a sentence on each thing that is broken or
    missing. RecordError if there is nothing to check at one of the places.
    """
    for place in dict.fromkeys(place for path in paths for place in _places_at(path)):
        try:
            found = _check_run(place, read_checkpoint) if place.is_dir() else (_check_measured(place), [])
        except RecordError as error:
            found = "", [str(error)]
        yield place, *found


def _places_at(path: Path) -> list[Path]:
    """The run folders and files of evaluations at a place (RecordError if there are none)."""
    if path.is_file() and path.suffix == ".json" and path.name not in reading.RECORD_FILES:
        return [path]
    folders = [path, *_run_folders(path, "*/seed*"), *_run_folders(path, "seed*")]
    kept = (*reading.RECORD_FILES, CHECKPOINT, PREVIOUS)
    places = [folder for folder in folders if any((folder / name).exists() for name in kept)]
    for folder in (reading.ENSEMBLES, FOREIGN):
        places += sorted((path / folder).glob("**/[!.]*.json"))
    if not places:
        raise RecordError(f"there is no record at {path}: name a run's folder, or a folder of runs.")
    return places


def _check_run(folder: Path, read_checkpoint: ReadCheckpoint) -> tuple[str, list[str]]:
    """How far a run is, and what of its nets and evaluations is wrong (RecordError if its record is)."""
    troubles: list[str] = []
    nets: dict[str, Identity] = {}
    # The checkpoints come first: of a run that goes on the record is then as new, or newer.
    there = [name for name in (CHECKPOINT, PREVIOUS, reading.WEIGHTS) if (folder / name).exists()]
    for name in there:
        try:
            nets[name] = read_checkpoint(folder / name)
        except ResreproError as error:
            troubles.append(str(error))
    run = read_run(folder)
    end, whole = run.result["iteration"], run.result["iterations"]
    if run.status == "diverged":
        troubles = []  # its net need not be finite
    troubles += run.broken
    if CHECKPOINT not in there and (PREVIOUS in there or not run.finished):
        troubles.append(f"{folder / CHECKPOINT} is missing.")
    for name, (digest, seed, iteration) in nets.items():
        if (digest, seed) != (run.digest, run.seed):
            troubles.append(f"{folder / name} is of another run than {SPEC}: specification or seed differs.")
        elif name == CHECKPOINT and run.finished and iteration != end:
            troubles.append(f"{folder / name} is of iteration {iteration:,}, not of the last, {end:,}.")
    done = f"{run.status}, {end:,} of {whole:,} iterations"
    return done if there else f"{done}, no checkpoint", troubles


def _check_measured(path: Path) -> str:
    """What an evaluation or an ensemble is of (RecordError if it is broken)."""
    with naming(path):
        content = read_json(path)
        needs = OF_SEVERAL if all("digest" in net for net in content.get("members", [{}])) else ()
        found = reading.evaluation_from(content, *needs)
        return f"{'ensemble' if needs else 'evaluation'}, {found.protocol} on {found.data.name}"
