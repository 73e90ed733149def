"""The record in a run's folder, file by file: as much of it as can be read, and what else lies there."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrepro.errors import RecordError
from resrepro.evaluation.verification.reports import UNSEALED, Findings, in_brief
from resrepro.records import MALFORMED, Run, read_run
from resrepro.records.durable import PART
from resrepro.records.files import read_plain
from resrepro.records.holders import LIMIT, holder_from, is_alive, this_process
from resrepro.records.measurements import Ensemble, Evaluation, ensemble_from, evaluation_from
from resrepro.records.record_files import (
    ENV,
    EVALS,
    FORMAT,
    METRICS,
    MOST_BYTES,
    RESPONSES,
    RESULT,
    SPEC,
    read_bytes,
    read_curve,
    read_json,
)
from resrepro.records.responses import read_responses
from resrepro.spec.specs import digest_of
from resrepro.training.checkpoint import DAMAGED


@dataclass(frozen=True)
class Record:
    """What could be read of a record: its JSON files by name, all rows of metrics.csv, and the run itself.

    Each is None or left out if it is broken.
    """

    files: Mapping[str, Mapping[str, Any]]
    rows: bytes | None
    run: Run | None


def look_at_record(folder: Path, found: Findings) -> Record:
    """Read every file of a record by itself, then all of them together as tables do."""
    files: dict[str, Mapping[str, Any]] = {}
    for name in (SPEC, ENV, RESULT):
        path = folder / name
        content = found.read(name, lambda path=path: read_json(path))  # type: ignore[misc]
        if content is not None:
            files[name] = content
            if content.get("format", 1) < FORMAT:
                found.parts[name] = UNSEALED
    told = files.get(RESULT, {}).get("metrics")
    vouched = told if isinstance(told, Mapping) else None
    whole = found.read(METRICS, lambda: read_curve(folder / METRICS, vouched)) is not None
    if whole and vouched is None:
        found.parts[METRICS] = UNSEALED
    rows = read_bytes(folder / METRICS, MOST_BYTES) if whole else None
    _look_at_evaluations(folder, files.get(SPEC, {}), found)
    if (folder / RESPONSES).exists() and SPEC in files:  # without it nobody knows whose they are
        found.read(RESPONSES, lambda: read_responses(folder))
    run = None
    try:
        run = read_run(folder)
    except RecordError as error:
        if not found.troubles:  # each file is whole, but they are not of one run
            found.troubles.append(in_brief(folder, str(error)))
    return Record(files, rows, run)


def _look_at_evaluations(folder: Path, spec: Mapping[str, Any], found: Findings) -> None:
    for path in sorted((folder / EVALS).glob("[!.]*.json")):
        name = f"{EVALS}/{path.name}"
        measured = found.read(name, lambda path=path: read_measurement(path))  # type: ignore[misc]
        if measured is None:
            continue
        evaluation, form = measured
        if form < FORMAT:
            found.parts[name] = UNSEALED
        digest = None if isinstance(evaluation, Ensemble) else evaluation.digest
        if "spec" in spec and digest != digest_of(spec["spec"]):
            found.blame(name, f"{name} is broken: it is not an evaluation of this run.")


def read_measurement(path: Path) -> tuple[Evaluation | Ensemble, int]:
    """What `eval` recorded in a file, of checkpoints of ours or of other people's, and the file's format.

    Raises:
        RecordError: if it is broken.
    """
    content = read_json(path)
    try:
        return _measured_from(content), content.get("format", 1)
    except MALFORMED as error:
        raise RecordError(f"{path} is broken: {type(error).__name__} {error}.") from None


def _measured_from(content: dict[str, Any]) -> Evaluation | Ensemble:
    nets = content.get("members", [content])
    if not all("digest" in net for net in nets):  # of other people's checkpoints no run is known
        return evaluation_from({**content, "digest": "", "iteration": 0})
    return ensemble_from(content) if "members" in content else evaluation_from(content)


def leftovers(folder: Path, *, trained: bool) -> list[str]:
    """A sentence on what crashes and earlier damage have left in a run's folder.

    While it is `trained`, a file that is not yet finished is just being written.
    """
    told = []
    torn = [path for place in (folder, folder / EVALS) for path in sorted(place.glob(f".*{PART}"))]
    if torn and not trained:
        names = ", ".join(str(path.relative_to(folder)) for path in torn)
        told.append(f"{names} was left behind by a crash; it is of no use.")
    if (folder / DAMAGED).exists():
        told.append(f"{DAMAGED} was found damaged earlier and kept aside; the run does not need it.")
    return told


def told_of_lock(folder: Path) -> tuple[bool, str]:
    """Whether a run may be being trained right now, and a sentence on its lock; the lock is not taken."""
    place = Path(os.path.normpath(Path.cwd() / folder))  # of "." the name is wanted, of a link its own
    try:
        holder = holder_from(read_plain(place.with_name(f".{place.name}.lock"), LIMIT))
    except FileNotFoundError:
        return False, ""
    except OSError:
        holder = None
    if holder is None:
        return True, "A lock file is there: while the run is being trained its files change."
    if not holder.shares_kernel_with(this_process()):
        return True, f"Locked by {holder}: if that is training still, the files change."
    if is_alive(holder):
        return True, f"Being trained right now by {holder}: the files change while they are read."
    return False, f"The lock of {holder} is left over: that process has ended."
