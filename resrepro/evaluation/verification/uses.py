"""What a record can still be used for, in the words that its owner needs: tables, `eval`, `train`."""

from collections.abc import Mapping, Sequence

from resrepro.evaluation.verification.checkpoints import Checkpoint
from resrepro.evaluation.verification.record import Record
from resrepro.evaluation.verification.reports import BROKEN, MISSING
from resrepro.records.record_files import RECORD_FILES, RESULT, SPEC
from resrepro.spec.specs import digest_of


def uses_of(
    record: Record, newest: Checkpoint, before: Checkpoint, parts: Mapping[str, str]
) -> tuple[str, ...]:
    """One clause each on tables, evaluation and training."""
    tables = "tables can take it" if record.run else "no table can take it"
    return tables, _measuring(newest, before), _training(record, newest, before, parts)


def _measuring(newest: Checkpoint, before: Checkpoint) -> str:
    if newest.measures:
        return f"eval can measure the net of iteration {newest.iteration:,}"
    if before.measures:
        return f"eval can measure the net of iteration {before.iteration:,}, as {before.name}"
    return "eval has no net to measure"


def _training(record: Record, newest: Checkpoint, before: Checkpoint, parts: Mapping[str, str]) -> str:
    run = record.run
    if run is not None and run.status == "diverged":
        return "training is over, for it diverged"
    if run is not None and run.finished:
        kept = newest.measures and newest.iteration == run.result["iteration"]
        return "training is over" + ("" if kept or not before.trains else _anew(newest, before))
    start = newest if newest.trains else before
    if start.told is None or not start.trains:
        return "training can only start anew, with --fresh"
    in_the_way = [newest.name] if start is before and _stops_train(newest) else []
    spec = record.files.get(SPEC)
    if spec is not None and digest_of(spec.get("spec", {})) != start.told["digest"]:
        in_the_way.append(SPEC)
    lost = [name for name in RECORD_FILES if parts.get(name) in (MISSING, BROKEN)]
    restored = ", ".join(lost) or ("the record" if run is None else "")
    restores = f"restores {restored} and " if restored else ""
    left = start.told["spec"]["recipe"]["iterations"] - start.iteration
    course = f"goes on from iteration {start.iteration:,}" if left else "finds all iterations made"
    return f"{_once_moved(in_the_way)}the same train command {restores}{course}"


def _anew(newest: Checkpoint, before: Checkpoint) -> str:
    """How to get back the net at the end of a finished run, of which only the checkpoint before is left."""
    in_the_way = [RESULT, *([newest.name] if _stops_train(newest) else [])]
    course = f"the same train command makes the net anew from iteration {before.iteration:,}"
    return f"; {_once_moved(in_the_way)}{course}"


def _stops_train(newest: Checkpoint) -> bool:
    """Whether `train` would not pass over it, as it does over one that it sees is damaged."""
    return newest.there and not newest.damaged


def _once_moved(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"once {' and '.join(names)} {'is' if len(names) == 1 else 'are'} moved away, "
