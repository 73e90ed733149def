"""Copying finished records, without their checkpoints, to a folder that one commits."""

from collections.abc import Mapping
from pathlib import Path

from resrepro.errors import RecordError
from resrepro.records import Run, read_measured
from resrepro.records.durable import write_out
from resrepro.records.evaluations import ensemble_from
from resrepro.records.reading import ENSEMBLES, EVALS, RECORD_FILES, RESPONSES


def publish(run: Run, results: Path) -> Path:
    """Copy a finished record, without its checkpoint, to `results/<name>/seed<k>/`; returns that folder.

    Raises:
        RecordError: if the run is unfinished, or another record lies there already.
    """
    if not run.finished:
        raise RecordError(f"{run.folder} is {run.status}, not finished: only finished runs are published.")
    target = results / run.name / f"seed{run.seed}"
    names = [*RECORD_FILES, *([RESPONSES] if (run.folder / RESPONSES).exists() else [])]
    sources = [run.folder / name for name in names] + sorted((run.folder / EVALS).glob("*.json"))
    _copy({target / source.relative_to(run.folder): source.read_bytes() for source in sources})
    return target


def publish_ensemble(path: Path, results: Path) -> Path:
    """Copy the record of an ensemble to `results/ensembles/`; returns the copy.

    Raises:
        RecordError: if it is broken, or another record lies there already.
    """
    read_measured(path, ensemble_from)
    target = results / ENSEMBLES / path.name
    _copy({target: path.read_bytes()})
    return target


def _copy(copies: Mapping[Path, bytes]) -> None:
    """Write files that are not there yet.

    Raises:
        RecordError: if other content lies at one of the places; then nothing is written.
    """
    for path, content in copies.items():
        if path.exists() and path.read_bytes() != content:
            raise RecordError(
                f"{path} holds another record already: move it away first, nothing is overwritten."
            )
    for path, content in copies.items():
        write_out(path, content)
