"""The files of a run's record, read with suspicion: bounded, sealed, typed, one sentence when broken.

Nothing here imports torch.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.errors import RecordError
from resrepro.records.storage import SEAL, read_plain, seal_of
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
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
STATUSES = ("complete", "shortened", "partial", "diverged")
Curve = dict[str, list[Any]]  # columns of metrics.csv by name
# Control and format characters, which could steer a terminal or turn a text around.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a reader trips over into one sentence on the file.

    Raises:
        RecordError: in place of an error that is MALFORMED.
    """
    try:
        yield
    except ValueError as error:
        raise RecordError(f"{path} is broken: {error}.") from None
    except MALFORMED as error:
        raise RecordError(f"{path} is broken: {type(error).__name__} {error}.") from None


def require(holds: bool, complaint: str) -> None:
    """Refuse a file of which something does not hold, with a ValueError."""
    if not holds:
        raise ValueError(complaint)


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
    with naming(path):
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ValueError("it is not valid JSON") from None
        require(isinstance(content, dict), "it holds no JSON object")
        form = content.get("format", 1)
        if not isinstance(form, int) or form > FORMAT:
            raise RecordError(f"{path} is of format {form!r:.20}, which this version cannot read.")
        seal = content.pop(SEAL, None)
        require(seal is not None or form != FORMAT, "its checksum is missing")
        require(seal is None or seal == seal_of(content), "its checksum does not match its content")
        require(not any(CONTROL.search(text) for text in _texts(content)), "it holds control characters")
    return content  # type: ignore[no-any-return]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


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


def read_curve(path: Path, vouched: Mapping[str, Any] | None = None) -> Curve:
    """The columns of metrics.csv, checked; `vouched` is what result.json says of it.

    Only what was there when result.json was written counts: a run that is going on, or was killed, may
    have written more.

    Raises:
        RecordError: if the file is not the one that result.json tells of, the columns differ, a value is no
            number or an error is no percentage.
    """
    rows = read_bytes(path, MOST_BYTES)
    with naming(path):
        if vouched is not None:  # as by every result but those of format 1
            rows = rows[: vouched["bytes"]]
            require(describe_curve(rows) == vouched, f"it does not match the checksum in {RESULT}")
        texts = dict(zip(METRICS_COLUMNS, read_table(rows, METRICS_COLUMNS), strict=True))
        require(set(texts["split"]) <= {*SPLITS}, "a row is none of train, val or test")
        kinds: dict[str, Callable[[str], Any]] = {"iteration": int, "split": str}
        curve = {name: [kinds.get(name, float)(plain(t)) for t in texts[name]] for name in METRICS_COLUMNS}
        errors = (error for name in METRICS_MEASURED for error in curve[name])
        require(all(0 <= error <= 100 for error in errors), "an error lies outside 0 to 100 percent")
    return curve


def read_table(rows: bytes, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns of a CSV file of ours, as texts (ValueError if it is none)."""
    header, *lines = rows.decode("ascii", "replace").split("\n")
    require(header == ",".join(columns), f"its columns are not {','.join(columns)}")
    require(bool(lines) and not lines.pop(), "its last row is cut off")
    table = [line.split(",") for line in lines]
    for row in table:
        require(max(map(len, row)) <= MOST_FIELD, f"a value has more than {MOST_FIELD} characters")
        require(len(row) == len(columns), f"a row has {len(row)} values instead of {len(columns)}")
    return list(zip(*table, strict=True)) if table else [()] * len(columns)


def plain(text: str) -> str:
    """A number as we write it (ValueError if it is none): Python would take `1_0` and ` 5` too."""
    require("_" not in text and text.strip() == text, f"{text!r} is no number")
    return text


def check_run(run: "Run") -> None:
    """Check the three JSON files of a record against what readers need, and against each other.

    Raises:
        RecordError: if something is missing or of the wrong type; the file is named.
    """
    with naming(run.folder / SPEC):
        _check_spec(run.spec)
    with naming(run.folder / RESULT):
        _check_result(run, run.result)
    with naming(run.folder / ENV):
        images = run.env["data"]["images"]
        require(_is_count(images.get(run.headline_split)), "it does not say how many images were measured")
        require(_is_count(images.get("train")), "it does not say how many images were trained on")
        known = run.family != "imagenet" or isinstance(run.classes, int)
        require(known, "it does not say how many classes there were")


def _check_spec(spec: Mapping[str, Any]) -> None:
    recipe = spec["recipe"]
    require(spec["dataset"] in FAMILIES, f"no dataset {spec['dataset']!r:.40}")
    is_net = type(spec["depth"]) is int and type(spec["plain"]) is bool
    require(is_net, "its depth or kind is none of a net")
    require(isinstance(recipe, dict), "its recipe is no list of settings by name")
    for key in ("iterations", "batch_size"):
        require(_is_count(recipe[key]), f"its {key} are no whole number from 1 on")


def _check_result(run: "Run", result: Mapping[str, Any]) -> None:
    stated = result.get("digest", run.digest), result.get("seed", run.seed)
    require(stated == (run.digest, run.seed), "it is the result of another run")
    vouches = result.get("format") != FORMAT or isinstance(result.get("metrics"), dict)
    require(vouches, f"it does not vouch for {METRICS}")
    require(run.status in STATUSES, f"no status {run.status!r}")
    for key in ("departures", "notices"):
        texts = result[key]
        sentences = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        require(sentences, f"{key} is no list of sentences")
    for key, kind in (("iteration", int), ("iterations", int), ("seconds", int | float)):
        require(isinstance(result[key], kind), f"{key} is no number")
    if run.best is not None:
        percentage(run.best, "best error")
    for split, figures in result["last"].items():
        for metric in METRICS_MEASURED:
            percentage(figures[metric], f"{split} {metric}")
    headline = run.last(run.headline_split)
    require(not run.finished or headline is not None, "a finished run without a headline error")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def percentage(value: object, what: str) -> float:
    """A number of percent (ValueError if it is not one between 0 and 100)."""
    if not (isinstance(value, int | float) and 0 <= value <= 100):
        raise ValueError(f"the {what} is no percentage")
    return float(value)
