"""The files of a run's record, read with suspicion: bounded, sealed, typed, one sentence when broken.

Nothing here imports torch.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.errors import RecordError
from resrepro.records.durable import SEAL, seal_of
from resrepro.records.files import read_plain
from resrepro.spec.recipe import FAMILIES

if TYPE_CHECKING:
    from resrepro.records import Run

SPEC, ENV, METRICS, RESULT = "spec.json", "env.json", "metrics.csv", "result.json"
RESPONSES = "responses.csv"  # of a run whose layers were measured
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
WEIGHTS = "weights.safetensors"  # of a published run of full length
EVALS = "evals"  # in a run's folder
ENSEMBLES = "ensembles"  # in a folder of runs
RECORD_FILES = (SPEC, ENV, METRICS, RESULT)
FORMAT = 2  # of records and checkpoints; those of format 1 had no checksums
METRICS_COLUMNS = (
    "iteration", "epoch", "split", "loss", "top1_err", "top5_err", "lr", "images_per_s", "wall_s",
)  # fmt: skip
# A record of 600,000 iterations sampled at every tenth has 10 MB of curves; class lists are far smaller.
MOST_BYTES = 64 * 2**20
MOST_JSON_BYTES = 16 * 2**20
MOST_FIELD = 100  # characters of a value in metrics.csv
SPLITS = ("train", "val", "test")
METRICS_MEASURED = ("top1_err", "top5_err")
STATUSES = ("complete", "shortened", "partial", "diverged")
Curve = dict[str, list[Any]]  # columns of metrics.csv by name
# Control and format characters, which could steer a terminal or turn a text around.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of a record.

    Raises:
        RecordError: if it is missing, unreadable, no regular file or larger than `most` bytes.
    """
    try:
        return read_plain(path, most)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing.") from None
    except OSError as error:
        raise RecordError(f"{path} is broken: it cannot be read ({error.strerror}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON record from a file, without its checksum.

    Raises:
        RecordError: if it is missing, unreadable, no JSON object, of a later format, does not match its
            checksum, or holds characters that could steer a terminal.
    """
    return parse_json(path, read_bytes(path, MOST_JSON_BYTES))


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """The same from bytes that were read from a file already, of which the path is told.

    Raises:
        RecordError: as `read_json`.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is broken: it is not valid JSON.") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} is broken: it holds no JSON object.")
    _check_seal(path, content)
    if any(CONTROL.search(text) for text in _texts(content)):
        raise RecordError(f"{path} is broken: it holds control characters.")
    content.pop(SEAL, None)
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _check_seal(path: Path, content: Mapping[str, Any]) -> None:
    form = content.get("format", 1)
    if not isinstance(form, int) or form > FORMAT:
        raise RecordError(f"{path} is of format {form!r:.20}, which this version cannot read.")
    if SEAL in content and content[SEAL] != seal_of(content):
        raise RecordError(f"{path} is broken: its checksum does not match its content.")
    if form == FORMAT and SEAL not in content:
        raise RecordError(f"{path} is broken: its checksum is missing.")


def _texts(content: object) -> Iterator[str]:
    """All keys and texts in a JSON value."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield key
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def describe_curve(rows: bytes) -> dict[str, Any]:
    """What result.json says of metrics.csv: how much of it counts, and its checksum."""
    return {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()}


def read_rows(path: Path, vouched: Mapping[str, Any] | None) -> bytes:
    """The part of metrics.csv that counts: what was there when result.json was written.

    A run that is going on, or was killed, may have written more.

    Raises:
        RecordError: if the file is missing or not the one that result.json tells of.
    """
    rows = read_bytes(path, MOST_BYTES)
    if vouched is None:  # of format 1
        return rows
    if not isinstance(vouched.get("bytes"), int) or describe_curve(rows[: vouched["bytes"]]) != vouched:
        raise RecordError(f"{path} is broken: it does not match the checksum in {RESULT}.")
    return rows[: vouched["bytes"]]


def read_curve(path: Path, vouched: Mapping[str, Any] | None = None) -> Curve:
    """The columns of metrics.csv, checked; `vouched` is what result.json says of it.

    Raises:
        RecordError: if the columns differ, a value is no number or an error is no percentage.
    """
    rows = read_rows(path, vouched)
    header, *lines = rows.decode("ascii", "replace").split("\n")
    if header.rstrip("\r") != ",".join(METRICS_COLUMNS):
        raise RecordError(f"{path} is broken: its columns are not {','.join(METRICS_COLUMNS)}.")
    if not lines or lines.pop():
        raise RecordError(f"{path} is broken: its last row is cut off.")
    values = [line.split(",") for line in lines]
    for row in values:
        if max(map(len, row)) > MOST_FIELD:
            raise RecordError(f"{path} is broken: a value has more than {MOST_FIELD} characters.")
        if len(row) != len(METRICS_COLUMNS) or row[2] not in SPLITS:
            raise RecordError(f"{path} is broken: a row is no whole one of train, val or test.")
    texts = dict(zip(METRICS_COLUMNS, zip(*values, strict=True), strict=True)) if values else {}
    try:
        curve: Curve = {name: _numbers(name, texts.get(name, ())) for name in METRICS_COLUMNS}
    except ValueError:
        raise RecordError(f"{path} is broken: a value is not a number.") from None
    if not all(0 <= error <= 100 for name in ("top1_err", "top5_err") for error in curve[name]):
        raise RecordError(f"{path} is broken: an error lies outside 0 to 100 percent.")
    return curve


def _numbers(name: str, texts: Iterable[str]) -> list[Any]:
    if name == "split":
        return list(texts)
    if name == "iteration":
        return [int(text) for text in texts if is_plain(text)]
    return [float(text) for text in texts if is_plain(text)]


def is_plain(text: str) -> bool:
    """Whether a text is a number as we write it (ValueError if not): Python would take `1_0` and ` 5` too."""
    if "_" in text or text.strip() != text:
        raise ValueError(text)
    return True


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
    stated = run.result.get("digest", run.digest), run.result.get("seed", run.seed)
    if stated != (run.digest, run.seed):
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


def percentage(value: object, what: str) -> float:
    """A number of percent.

    Raises:
        ValueError: if it is not one between 0 and 100.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"the {what} is no percentage")
    return float(value)
