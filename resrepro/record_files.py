"""The files of a run's record, read with suspicion: bounded, sealed, typed, one sentence when broken.

Nothing here imports torch.
"""

import hashlib
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.durable import SEAL, seal_of
from resrepro.errors import RecordError
from resrepro.files import read_plain

if TYPE_CHECKING:
    import pandas as pd

SPEC, ENV, METRICS, RESULT = "spec.json", "env.json", "metrics.csv", "result.json"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
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
CONTROL = ("Cc", "Cf", "Cs")  # categories of characters that could steer a terminal


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
    try:
        content = json.loads(read_bytes(path, MOST_JSON_BYTES), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is broken: it is not valid JSON.") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} is broken: it holds no JSON object.")
    _check_seal(path, content)
    if any(unicodedata.category(sign) in CONTROL for text in _texts(content) for sign in text):
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


def read_rows(path: Path, told: Mapping[str, Any] | None) -> bytes:
    """The part of metrics.csv that counts: what was there when result.json was written.

    A run that is going on, or was killed, may have written more.

    Raises:
        RecordError: if the file is missing or not the one that result.json tells of.
    """
    rows = read_bytes(path, MOST_BYTES)
    if told is None:  # of format 1
        return rows
    if not isinstance(told.get("bytes"), int) or describe_curve(rows[: told["bytes"]]) != told:
        raise RecordError(f"{path} is broken: it does not match the checksum in {RESULT}.")
    return rows[: told["bytes"]]


def read_metrics(path: Path, told: Mapping[str, Any] | None = None) -> "pd.DataFrame":
    """metrics.csv with its types checked; `told` is what result.json says of it.

    Raises:
        RecordError: if the columns differ, a value is no number or an error is no percentage.
    """
    import pandas as pd

    rows = read_rows(path, told)
    if max(map(len, rows.replace(b"\n", b",").split(b","))) > MOST_FIELD:
        raise RecordError(f"{path} is broken: a value has more than {MOST_FIELD} characters.")
    try:
        frame = pd.read_csv(io.BytesIO(rows), dtype={"split": str})
    except ValueError as error:  # pandas' parser errors and bad encodings are ValueErrors
        reason = (str(error).splitlines() or ["it is no CSV"])[0]
        raise RecordError(f"{path} is broken: {reason}") from None
    if tuple(frame.columns) != METRICS_COLUMNS:
        raise RecordError(f"{path} is broken: its columns are not {','.join(METRICS_COLUMNS)}.")
    if not rows.endswith(b"\n"):
        raise RecordError(f"{path} is broken: its last row is cut off.")
    if frame.empty:  # a run that has only begun
        return frame
    numbers = frame.drop(columns="split")
    if not all(pd.api.types.is_numeric_dtype(kind) for kind in numbers.dtypes):
        raise RecordError(f"{path} is broken: a value is not a number.")
    if not frame["split"].isin(("train", "val", "test")).all():
        raise RecordError(f"{path} is broken: a split is not train, val or test.")
    errors = frame[["top1_err", "top5_err"]]
    if not ((errors >= 0) & (errors <= 100)).all(axis=None):
        raise RecordError(f"{path} is broken: an error lies outside 0 to 100 percent.")
    return frame
