"""Whether records and checkpoints are what was once written (`resrepro status --check`).

Nothing is moved, mended or locked here: the same `train` command does that. Nothing here imports torch; what
reads a checkpoint is handed in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resrepro.errors import RecordError, ResreproError
from resrepro.records import Run, read_measured, read_run
from resrepro.records.collection import RUN_FOLDER
from resrepro.records.evaluations import Ensemble, Evaluation, ensemble_from, evaluation_from
from resrepro.records.reading import CHECKPOINT, ENSEMBLES, EVALS, PREVIOUS, RECORD_FILES, SPEC, WEIGHTS

FOREIGN = "foreign"  # in a folder of runs: evaluations of other people's checkpoints


@dataclass(frozen=True)
class Identity:
    """Which run a checkpoint is of, and how many updates of it were made."""

    digest: str
    seed: int | None
    iteration: int | None


ReadCheckpoint = Callable[[Path], Identity]
"""Loads a checkpoint and its net; raises a ResreproError if that cannot be done."""


def verify(
    paths: Sequence[Path], read_checkpoint: ReadCheckpoint
) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Check runs, and the records of evaluations and ensembles, one after the other.

    Args:
        paths: folders of runs, of one run, or JSON files that `eval` wrote.
        read_checkpoint: what loads a checkpoint.

    Yields:
        The run's folder or the file, what it holds in a few words (empty if it is broken), and a sentence on
        each thing that is broken or missing.

    Raises:
        RecordError: if there is nothing to check at one of the places.
    """
    for place in dict.fromkeys(place for path in paths for place in _places_at(path)):
        if place.is_dir():
            summary, troubles = _check_run(place, read_checkpoint)
            if troubles:  # a run that is being trained was perhaps written meanwhile
                summary, troubles = _check_run(place, read_checkpoint)
        else:
            summary, troubles = _check_measured(place)
        yield place, summary, tuple(troubles)


def _places_at(path: Path) -> list[Path]:
    """The run folders and files of evaluations at a place.

    Raises:
        RecordError: if there are none.
    """
    if path.is_file() and path.suffix == ".json" and path.name not in RECORD_FILES:
        return [path]
    if _is_run(path):
        return [path]
    folders = sorted([*path.glob("*/seed*"), *path.glob("seed*")])
    places = [folder for folder in folders if RUN_FOLDER.fullmatch(folder.name) and _is_run(folder)]
    for folder in (ENSEMBLES, FOREIGN):
        places += sorted((path / folder).glob("**/[!.]*.json"))
    if not places:
        raise RecordError(f"there is no record at {path}: name a run's folder, or a folder of runs.")
    return places


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*RECORD_FILES, CHECKPOINT, PREVIOUS))


def _check_run(folder: Path, read_checkpoint: ReadCheckpoint) -> tuple[str, list[str]]:
    """How far a run is, and what is wrong with it."""
    # The checkpoints come first: of a run that goes on the record is then as new, or newer.
    nets = {name: _identify(folder / name, read_checkpoint) for name in (CHECKPOINT, PREVIOUS, WEIGHTS)}
    try:
        run = read_run(folder)
    except RecordError as error:
        return "", [str(error), *(trouble for trouble in nets.values() if isinstance(trouble, str))]
    troubles = list(run.broken)
    if any(evaluation.digest != run.digest for evaluation in run.evaluations):
        troubles.append(f"{folder / EVALS} holds an evaluation of another run.")
    if run.status != "diverged":  # whose net need not be finite
        troubles += _compare(run, nets)
    done = f"{run.status}, {run.result['iteration']:,} of {run.result['iterations']:,} iterations"
    return done if any(nets.values()) else f"{done}, no checkpoint", troubles


def _identify(path: Path, read_checkpoint: ReadCheckpoint) -> Identity | str | None:
    """Whose checkpoint it is, or what is wrong with it; None if there is none."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return read_checkpoint(path)
    except ResreproError as error:
        return str(error)


def _compare(run: Run, nets: dict[str, Identity | str | None]) -> Iterator[str]:
    """What of checkpoints and published weights is broken, missing, of another run, or not of its end."""
    newest = nets[CHECKPOINT]
    if newest is None and (nets[PREVIOUS] is not None or not run.finished):
        yield f"{run.folder / CHECKPOINT} is missing."
    for name, identity in nets.items():
        if isinstance(identity, str):
            yield identity
        elif identity is not None and (identity.digest, identity.seed) != (run.digest, run.seed):
            yield f"{run.folder / name} is of another run than {SPEC}: specification or seed differs."
    end = run.result["iteration"]
    if run.finished and isinstance(newest, Identity) and newest.iteration != end:
        yield f"{run.folder / CHECKPOINT} is of iteration {newest.iteration:,}, not of the last, {end:,}."


def _check_measured(path: Path) -> tuple[str, list[str]]:
    """What an evaluation or an ensemble is of, and what is wrong with it."""
    try:
        measured = read_measured(path, _measured_from)
    except RecordError as error:
        return "", [str(error)]
    kind = "ensemble" if isinstance(measured, Ensemble) else "evaluation"
    return f"{kind}, {measured.protocol} on {measured.data.name}", []


def _measured_from(content: dict[str, object]) -> Evaluation | Ensemble:
    nets = content.get("members", [content])
    if not all("digest" in net for net in nets):  # type: ignore[attr-defined]
        return evaluation_from({**content, "digest": "", "iteration": 0})  # of other people's checkpoints
    return ensemble_from(content) if "members" in content else evaluation_from(content)
