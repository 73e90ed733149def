"""Reading run records. A record that is broken is named and left out; the others are still used.

Nothing here imports torch.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resrepro.errors import RecordError, UsageError
from resrepro.records.measurements import Ensemble, Evaluation, ensemble_from, evaluation_from
from resrepro.records.record_checks import check_run
from resrepro.records.record_files import (
    ENSEMBLES,
    ENV,
    EVALS,
    METRICS,
    RESULT,
    SPEC,
    Curve,
    read_curve,
    read_json,
)
from resrepro.records.responses import Responses, read_responses
from resrepro.spec.catalogue import find
from resrepro.spec.specs import FAMILIES, digest_of

if TYPE_CHECKING:
    import pandas as pd

FINISHED = ("complete", "shortened")
DEFAULT_FOLDERS = ("runs", "results")  # one's own runs, and those that were published
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
Measured = TypeVar("Measured", bound=Evaluation | Ensemble)
RUN_FOLDER = re.compile(r"seed\d+")  # folders set aside are called seed0.aside1
RUN_NAME = re.compile(r"\w[\w+=.,-]*", re.ASCII)  # a folder is made of it when a record is published


@dataclass(frozen=True)
class Run:
    """One run's record."""

    folder: Path
    name: str
    seed: int
    spec: Mapping[str, Any]
    env: Mapping[str, Any]
    result: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    """What `eval` measured of its checkpoints, whichever; `evaluation` picks what counts."""
    responses: Responses | None = None
    """What `responses` measured of its trained net."""
    broken: tuple[str, ...] = ()
    """A sentence on each evaluation, and on responses, that could not be read."""

    @property
    def experiment(self) -> str:
        """The catalogue experiment that the run belongs to or derives from."""
        return str(self.spec["experiment"])

    @cached_property
    def exact(self) -> bool:
        """Whether the run's specification is the catalogue experiment's, unchanged."""
        try:
            return self.digest == find(self.experiment).spec().digest
        except UsageError:  # an experiment that this version does not know
            return False

    @property
    def paper_exact(self) -> bool:
        """Whether its numbers may stand in the paper's own cell: unchanged specification, complete
        official data, default mode, and nothing that departed on the way. (The digits have cells of
        their own, though they depart from the paper.)
        """
        told = self.result["notices"] or (self.result["departures"] and self.spec["dataset"] != "digits")
        return self.exact and not told and self.env["mode"] == "default"

    @property
    def status(self) -> str:
        """complete, shortened, partial or diverged."""
        return str(self.result["status"])

    @property
    def finished(self) -> bool:
        """Whether the run reached its last iteration."""
        return self.status in FINISHED

    @property
    def cell(self) -> tuple[str, str, str]:
        """What runs must share to enter one mean: specification, data and mode; all but the seed."""
        data = json.dumps(self.env["data"]["sha256"], sort_keys=True)
        return self.digest, data, str(self.env["mode"])

    @property
    def digest(self) -> str:
        """The digest of its specification."""
        return digest_of(self.spec)

    @property
    def headline_split(self) -> str:
        """The set that the headline error was measured on: "test", or "val" under the 45k/5k split and
        for folders of images.
        """
        return str(self.result["headline"])

    @property
    def family(self) -> str:
        """`cifar` or `imagenet`: which nets and which kind of recipe."""
        return FAMILIES.get(str(self.spec["dataset"]), "cifar")

    @property
    def classes(self) -> int | None:
        """How many classes the images have; CIFAR's records do not say (None)."""
        classes: int | None = self.env["data"].get("classes")
        return classes

    def last(self, split: str, metric: str = "top1_err") -> float | None:
        """A figure of the last iteration, None if that set was not measured."""
        found = self.result["last"].get(split)
        return None if found is None else float(found[metric])

    def evaluation(self, protocol: str, part: str) -> Evaluation | None:
        """The evaluation of a set under a test protocol, None if there is none that counts.

        Only those count that are of this run's last iteration, on the data that it names, and with the
        BN statistics of its recipe. An untrained or partly trained net has none.
        """
        if not self.finished:
            return None
        end = int(self.spec["recipe"]["iterations"])
        wanted = protocol, self.spec["recipe"].get("bn_stats", "running"), self.digest, end
        for found in self.evaluations:
            if (found.protocol, found.bn_stats, found.digest, found.iteration) != wanted:
                continue
            if part in found.errors and found.data.same_set(part, self.env["data"]):
                return found
        return None

    def evaluated(self, protocol: str, metric: str, part: str) -> float | None:
        """The `top1_err` or `top5_err` (percent) of a set under a test protocol, if it was measured."""
        found = self.evaluation(protocol, part)
        return None if found is None else found.errors[part][metric]

    @property
    def best(self) -> float | None:
        """The lowest sampled top-1 error on the headline set."""
        best = self.result["best"]
        return None if best is None else float(best["top1_err"])

    @cached_property
    def curve(self) -> Curve:
        """The columns of metrics.csv by name.

        Raises:
            RecordError: if the file is broken.
        """
        return read_curve(self.folder / METRICS, self.result.get("metrics"))

    def top1_errors(self, split: str) -> dict[int, float]:
        """The sampled top-1 errors of a set by iteration, in percent."""
        columns = (self.curve[name] for name in ("iteration", "split", "top1_err"))
        return {at: error for at, part, error in zip(*columns, strict=True) if part == split}

    @property
    def metrics(self) -> "pd.DataFrame":
        """metrics.csv as a frame with columns METRICS_COLUMNS."""
        import pandas as pd

        return pd.DataFrame(self.curve)


def read_run(folder: Path) -> Run:
    """The record in one run folder, with evaluations and responses; what of these is broken is in `broken`.

    Raises:
        RecordError: if a file is missing or broken; the file is named.
    """
    head, env, result = (read_json(folder / name) for name in (SPEC, ENV, RESULT))
    try:
        spec, seed = head["spec"], head["seed"]
        wanted = {"experiment", "dataset", "depth", "plain", "shortcut", "recipe"}
        if head["digest"] != digest_of(spec) or not spec.keys() >= wanted:
            raise RecordError(f"{folder / SPEC} is broken: its digest does not match its content.")
        if not isinstance(head["name"], str) or not RUN_NAME.fullmatch(head["name"]):
            raise RecordError(f"{folder / SPEC} is broken: its name is none of a run.")
        run = Run(folder, head["name"], int(seed), spec, env, result)
        check_run(run)
        _ = run.cell
    except MALFORMED as error:
        raise RecordError(f"the record in {folder} is broken: {type(error).__name__} {error}.") from None
    _ = run.curve
    evaluations, broken = _read_all(folder / EVALS, evaluation_from)
    responses = None
    try:
        responses = read_responses(folder)
    except RecordError as error:
        broken.append(str(error))
    return replace(run, evaluations=tuple(evaluations), responses=responses, broken=tuple(broken))


def _read_all(folder: Path, parse: Callable[[dict[str, Any]], Measured]) -> tuple[list[Measured], list[str]]:
    """What the JSON files of a folder hold, and a sentence on each that is broken."""
    found: list[Measured] = []
    broken: list[str] = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            found.append(read_measured(path, parse))
        except RecordError as error:
            broken.append(str(error))
    return found, broken


def read_measured(path: Path, parse: Callable[[dict[str, Any]], Measured]) -> Measured:
    """An evaluation or ensemble from its file.

    Raises:
        RecordError: if it is missing or broken.
    """
    try:
        return parse(read_json(path))
    except MALFORMED as error:
        raise RecordError(f"{path} is broken: {type(error).__name__} {error}.") from None


@dataclass(frozen=True)
class Collection:
    """Runs and ensembles that could be read, and one sentence for each file that could not."""

    runs: tuple[Run, ...]
    broken: tuple[str, ...]
    ensembles: tuple[Ensemble, ...] = ()


def collect(folders: Iterable[Path]) -> Collection:
    """All runs and ensembles below some runs folders, in a fixed order; folders set aside are passed over.

    A run that appears twice (in `runs/` and published to `results/`) counts once: the first one that
    is finished, else the first. Of an ensemble that appears twice the first one counts.

    Raises:
        RecordError: if something that is no folder was given.
    """
    runs: dict[tuple[object, ...], Run] = {}
    ensembles: dict[str, Ensemble] = {}
    broken: list[str] = []
    for top in folders:
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
            key = (run.name, run.seed, *run.cell)
            if key not in runs or (run.finished and not runs[key].finished):
                runs[key] = run
        found, damaged = read_ensembles(top)
        broken += damaged
        for ensemble in found:
            ensembles.setdefault(ensemble.key, ensemble)
    ordered = sorted(runs.values(), key=lambda run: (run.name, run.seed))
    return Collection(tuple(ordered), tuple(broken), tuple(ensembles[key] for key in sorted(ensembles)))


def read_ensembles(top: Path) -> tuple[list[Ensemble], list[str]]:
    """The ensembles of a runs folder, and a sentence on each that is broken."""
    return _read_all(top / ENSEMBLES, ensemble_from)


def load_runs(*folders: str | Path) -> "pd.DataFrame":
    """One row per run below the given runs folders (default `runs` and `results`), for notebooks.

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
