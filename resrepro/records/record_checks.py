"""What readers of a run's record rely on, checked once when it is read. Nothing here imports torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.errors import RecordError
from resrepro.records.measurements import METRICS_MEASURED, percentage
from resrepro.records.record_files import ENV, FORMAT, METRICS, RESULT, SPEC
from resrepro.spec.recipe import FAMILIES

if TYPE_CHECKING:
    from resrepro.records import Run

STATUSES = ("complete", "shortened", "partial", "diverged")


def check_run(run: "Run") -> None:
    """Check the three JSON files of a record against what readers need, and against each other.

    Raises:
        RecordError: if something is missing or of the wrong type; the file is named.
        KeyError, TypeError, AttributeError: likewise, for the caller to put into words.
    """
    _check_spec(run.folder / SPEC, run.spec)
    _check_env(run)
    _check_result(run)


def _check_spec(where: Path, spec: Mapping[str, Any]) -> None:
    if spec["dataset"] not in FAMILIES:
        raise RecordError(f"{where} is broken: no dataset {spec['dataset']!r:.40}.")
    if type(spec["depth"]) is not int or type(spec["plain"]) is not bool:
        raise RecordError(f"{where} is broken: its depth or kind is none of a net.")
    if not isinstance(spec["recipe"], dict):
        raise RecordError(f"{where} is broken: its recipe is no list of settings by name.")
    for key in ("iterations", "batch_size"):
        if not _is_count(spec["recipe"][key]):
            raise RecordError(f"{where} is broken: its {key} are no whole number from 1 on.")


def _check_env(run: "Run") -> None:
    where, images = run.folder / ENV, run.env["data"]["images"]
    if not _is_count(images.get(run.headline_split)):
        raise RecordError(f"{where} is broken: it does not say how many images were measured.")
    if not _is_count(images.get("train")):
        raise RecordError(f"{where} is broken: it does not say how many images were trained on.")
    if run.family == "imagenet" and not isinstance(run.classes, int):
        raise RecordError(f"{where} is broken: it does not say how many classes there were.")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _check_result(run: "Run") -> None:
    where = run.folder / RESULT
    told = run.result.get("digest", run.digest), run.result.get("seed", run.seed)
    if told != (run.digest, run.seed):
        raise RecordError(f"{where} is broken: it is the result of another run.")
    if run.result.get("format") == FORMAT and not isinstance(run.result.get("metrics"), dict):
        raise RecordError(f"{where} is broken: it does not vouch for {METRICS}.")
    if run.status not in STATUSES:
        raise RecordError(f"{where} is broken: no status {run.status!r}.")
    for key in ("departures", "notices"):
        if not isinstance(run.result[key], list) or not all(
            isinstance(text, str) for text in run.result[key]
        ):
            raise RecordError(f"{where} is broken: {key} is no list of sentences.")
    for key, kind in (("iteration", int), ("iterations", int), ("seconds", int | float)):
        if not isinstance(run.result[key], kind):
            raise RecordError(f"{where} is broken: {key} is no number.")
    if run.best is not None and not 0 <= run.best <= 100:
        raise RecordError(f"{where} is broken: the best error is no percentage.")
    for split, figures in run.result["last"].items():
        for metric in METRICS_MEASURED:
            try:
                percentage(figures[metric], f"{split} {metric}")
            except ValueError as error:
                raise RecordError(f"{where} is broken: {error}.") from None
    if run.finished and run.last(run.headline_split) is None:
        raise RecordError(f"{where} is broken: a finished run without a headline error.")
