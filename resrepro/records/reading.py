"""The files of a run's record as they lie on the disk: seals verified, one sentence on what is broken."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resrepro.errors import RecordError
from resrepro.records.storage import SEAL, seal_of

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
MEASURED = ("top1_err", "top5_err")
Curve = dict[str, list[Any]]  # columns of metrics.csv by name


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a reader trips over into one sentence on the file, a RecordError."""
    try:
        yield
    except KeyError as error:
        raise RecordError(f"{path} is broken: it lacks {error.args[0]}.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} is broken: {error}.") from None


def require(holds: bool, complaint: str) -> None:
    """Refuse a file of which something does not hold, with a ValueError."""
    if not holds:
        raise ValueError(complaint)


def need(content: Mapping[str, Any], *keys: str) -> None:
    """Refuse a record that lacks one of the keys, with a KeyError."""
    for key in keys:
        content[key]


def read_bytes(path: Path) -> bytes:
    """The content of a text file of a record (RecordError if it is missing or unreadable), its lines ended by
    LF alone: git and editors may turn them into Windows' CRLF, and checksums are of what was written.
    """
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:
        raise RecordError(f"{path} is missing.") from None
    except OSError as error:
        raise RecordError(f"{path} is broken: it cannot be read ({error.strerror}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON record from a file, without its checksum (RecordError if it is missing or broken)."""
    text = read_bytes(path)
    with naming(path):
        return parse_json(text)


def parse_json(text: bytes) -> dict[str, Any]:
    """The same from bytes that were read from a file already (ValueError in place of RecordError)."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not valid JSON") from None
    require(isinstance(content, dict), "it holds no JSON object")
    form = content.get("format", 1)
    require(form in (1, FORMAT), f"it is of format {form}, which this version cannot read")
    seal = content.pop(SEAL, None)
    require(seal is not None or form == 1, "its checksum is missing")
    require(seal in (None, seal_of(content)), "its checksum does not match its content")
    return content  # type: ignore[no-any-return]


def describe_curve(rows: bytes) -> dict[str, Any]:
    """What result.json says of metrics.csv: how much of it counts, and its checksum."""
    return {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()}


def read_curve(path: Path, vouched: Mapping[str, Any] | None = None) -> Curve:
    """The columns of metrics.csv (RecordError if it is broken); `vouched` is what result.json says of it.

    Only what was there when result.json was written counts: a run that is going on, or was killed, may
    have written more.
    """
    rows = read_bytes(path)
    with naming(path):
        if vouched is not None:  # as by every result but those of format 1
            rows = rows[: vouched["bytes"]]
            require(describe_curve(rows) == vouched, f"it does not match the checksum in {RESULT}")
        texts = zip(METRICS_COLUMNS, read_table(rows, METRICS_COLUMNS), strict=True)
        kinds: dict[str, Callable[[str], Any]] = {"iteration": int, "split": str}
        return {name: [kinds.get(name, float)(text) for text in column] for name, column in texts}


def read_table(rows: bytes, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns of a CSV file of ours, as texts (ValueError if it is none)."""
    header, *lines = rows.decode().split("\n")
    require(header == ",".join(columns), f"its columns are not {','.join(columns)}")
    require(bool(lines) and not lines.pop(), "its last row is cut off")
    table = [line.split(",") for line in lines]
    for row in table:
        require(len(row) == len(columns), f"a row has {len(row)} values instead of {len(columns)}")
    return list(zip(*table, strict=True)) if table else [()] * len(columns)
