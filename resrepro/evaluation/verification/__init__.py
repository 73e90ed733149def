"""Whether records, checkpoints and data are what was once written, and what is left of those that are not.

Nothing is moved, mended or locked here: the same `train` command does that.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from resrepro.data.loader import Loading
from resrepro.errors import RecordError
from resrepro.evaluation.verification.checkpoints import (
    Checkpoint,
    is_of,
    look_at_checkpoint,
    same_data,
    strays,
)
from resrepro.evaluation.verification.images import DataAtHand
from resrepro.evaluation.verification.record import (
    Record,
    leftovers,
    look_at_record,
    read_measurement,
    told_of_lock,
)
from resrepro.evaluation.verification.reports import (
    UNSEALED,
    WHOLE,
    Findings,
    Report,
    in_brief,
    shown,
    shown_path,
)
from resrepro.evaluation.verification.uses import uses_of
from resrepro.records.collection import DEFAULT_FOLDERS, RUN_FOLDER
from resrepro.records.measurements import Ensemble
from resrepro.records.record_files import (
    CHECKPOINT,
    ENSEMBLES,
    ENV,
    FORMAT,
    METRICS,
    PREVIOUS,
    RECORD_FILES,
    RESPONSES,
    SPEC,
)

__all__ = ["Report", "verify"]

FILES = (*RECORD_FILES, RESPONSES, CHECKPOINT, PREVIOUS)


def verify(
    *paths: str | Path,
    data: str | Path | None = None,
    loading: Loading | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Report]:
    """Look at runs, and at the records of evaluations and ensembles, one after the other.

    Args:
        paths: folders of runs, of one run, or JSON files that `eval` wrote; by default `runs` and
            `results`, those that exist.
        data: folder of CIFAR-10 or of photographs, by default that named by RESREPRO_DATA; its checksums
            and those of the digits are compared with those in the records. Nothing is downloaded, and of
            photographs an earlier pass over the very same files (names, sizes, times) counts.
        loading: how image files are read.
        say: told when all images have to be read.

    Raises:
        RecordError: if there is nothing to look at at one of the places.
        DataError: if `data` is no folder.
    """
    at_hand = DataAtHand(None if data is None else Path(data), loading or Loading(), say)
    return (
        _look_at_run(place, at_hand) if place.is_dir() else _look_at_measurement(place)
        for place in _places([Path(path) for path in paths])
    )


def _places(paths: list[Path]) -> list[Path]:
    """The run folders and files to look at, each once."""
    if not paths:
        places = [place for name in DEFAULT_FOLDERS for place in _places_below(Path(name))]
        if not places:
            raise RecordError("there are no runs in runs or results here: name a run or a folder of runs.")
        return places
    found: dict[Path, None] = {}
    for path in paths:
        found |= dict.fromkeys(_places_at(path))
    return list(found)


def _places_at(path: Path) -> list[Path]:
    name = shown_path(path)
    if path.is_dir():
        places = [path] if _is_run(path) else _places_below(path)
        if not places:
            raise RecordError(f"{name} holds no run: name a run's folder, or a folder of runs.")
        return places
    if not path.exists():
        raise RecordError(f"there is no {name}: name a run's folder, or a folder of runs.")
    if path.name in FILES:
        raise RecordError(f"{name} is one of the files of a run: name its folder, {shown_path(path.parent)}.")
    if path.suffix != ".json":
        raise RecordError(f"{name} is no record: name a run's folder, or a JSON file that eval wrote.")
    return [path]


def _places_below(top: Path) -> list[Path]:
    """The runs in a folder of runs, or in the folder of one name, and what `eval` recorded beside them."""
    folders = [*sorted(top.glob("*/seed*")), *sorted(top.glob("seed*"))]
    runs = [folder for folder in folders if RUN_FOLDER.fullmatch(folder.name) and _is_run(folder)]
    kept = (f"{ENSEMBLES}/[!.]*.json", "foreign/[!.]*.json", "foreign/*/[!.]*.json")
    return runs + [file for pattern in kept for file in sorted(top.glob(pattern))]


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def _look_at_measurement(path: Path) -> Report:
    kind = "ensemble" if path.parent.name == ENSEMBLES else "evaluation"
    try:
        found, form = read_measurement(path)
    except RecordError as error:
        return Report(path, kind, troubles=(in_brief(path.parent, str(error)),))
    kind = "ensemble" if isinstance(found, Ensemble) else "evaluation"
    sealed = "" if form == FORMAT else ", without a checksum"
    return Report(path, kind, shown(f"{kind}, {found.protocol} on {found.data.name}{sealed}"))


def _look_at_run(folder: Path, at_hand: DataAtHand) -> Report:
    """What is found in a run's folder; what is written while it is read is looked at once more."""
    report, trained = _look_once(folder, at_hand)
    return _look_once(folder, at_hand)[0] if trained and report.broken else report


def _look_once(folder: Path, at_hand: DataAtHand) -> tuple[Report, bool]:
    """The report, and whether the run may be being trained."""
    trained, lock = told_of_lock(folder)
    found = Findings(folder)
    # The checkpoints come first: of a run that goes on the record is then as new, or newer.
    newest, before = (look_at_checkpoint(folder / name) for name in (CHECKPOINT, PREVIOUS))
    record = look_at_record(folder, found)
    newest, before = (_file_under(found, each, record) for each in (newest, before))
    _look_for_the_end(found, newest, before, record)
    trouble, note = at_hand.compare(record.files.get(SPEC, {}), record.files.get(ENV, {}))
    found.troubles += [shown(trouble)] if trouble else []
    found.notes += [shown(text) for text in (note, lock, *leftovers(folder, trained=trained)) if text]
    report = Report(
        folder, "run", _summary(record, newest, before, found),
        found.parts, tuple(found.troubles), tuple(found.notes),
        uses_of(record, newest, before, found.parts),
    )  # fmt: skip
    return report, trained


def _file_under(found: Findings, checkpoint: Checkpoint, record: Record) -> Checkpoint:
    """The checkpoint as it fits this record, with its trouble filed, if it has one."""
    name = checkpoint.name
    if not checkpoint.there:
        return checkpoint
    if not is_of(checkpoint, record.files.get(SPEC)):
        sentence = f"{name} is of another run than {SPEC}: specification or seed differs."
        checkpoint = checkpoint.unfit(checkpoint.trouble or sentence)
    elif not checkpoint.trouble:
        if not same_data(checkpoint, record.files.get(ENV)):
            found.blame(ENV, f"{ENV} tells of other data than the checkpoints were trained on.")
        if strays(checkpoint, record.rows):
            found.blame(METRICS, f"{METRICS} holds another curve than {name} tells of.")
    diverged = record.run is not None and record.run.status == "diverged"
    found.parts[name] = WHOLE if checkpoint.sealed else UNSEALED
    if checkpoint.trouble and diverged and not checkpoint.finite:
        found.notes.append(in_brief(found.folder, checkpoint.trouble))
    elif checkpoint.trouble:
        found.blame(name, checkpoint.trouble)
    return checkpoint


def _look_for_the_end(found: Findings, newest: Checkpoint, before: Checkpoint, record: Record) -> None:
    """Miss the checkpoint where there has to be one, and one of the end where the run came to its end."""
    run = record.run
    if not newest.there and (before.there or (run is not None and run.status == "partial")):
        found.blame(CHECKPOINT, f"{CHECKPOINT} is missing.")
    if run is not None and run.finished and newest.measures and newest.iteration != run.result["iteration"]:
        last = run.result["iteration"]
        found.blame(
            CHECKPOINT, f"{CHECKPOINT} is of iteration {newest.iteration:,}, not of the last, {last:,}."
        )


def _summary(record: Record, newest: Checkpoint, before: Checkpoint, found: Findings) -> str:
    if record.run is None:
        return ""
    told = record.run.result
    text = f"{record.run.status}, {told['iteration']:,} of {told['iterations']:,} iterations"
    if UNSEALED in found.parts.values():
        text += ", without checksums"
    if newest.there or before.there:
        since = f" of iteration {newest.iteration:,}" if newest.trains and not record.run.finished else ""
        named = ((f"checkpoint{since}", newest), ("the one before", before))
        return f"{text}, {' and '.join(word for word, each in named if each.there)}"
    return f"{text}; no checkpoint: published records have none" if record.run.finished else text
