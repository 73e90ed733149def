"""The files of a record as they lie on the disk, seals verified, one sentence on what is broken; and what was
measured of trained nets: evaluations, ensembles, and responses of layers (Figure 7), errors in percent.

`responses.csv` is a table, a row per 3x3 layer, behind one line of JSON: what was measured, and a checksum.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resrepro.errors import RecordError
from resrepro.spec import digest_of
from resrepro.spec.architecture import parts_of

if TYPE_CHECKING:
    from resrepro.records import Run

SPEC, ENV, METRICS, RESULT = "spec.json", "env.json", "metrics.csv", "result.json"
RESPONSES = "responses.csv"  # of a run whose layers were measured
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
WEIGHTS = "weights.safetensors"  # of a published run of full length
EVALS = "evals"  # in a run's folder
SEAL = "checksum"  # key of a JSON record: SHA-256 (hex) of all its other entries
ENSEMBLES = "ensembles"  # in a folder of runs
RECORD_FILES = (SPEC, ENV, METRICS, RESULT)
FORMAT = 2  # of records and checkpoints
METRICS_COLUMNS = (
    "iteration", "epoch", "split", "loss", "top1_err", "top5_err", "lr", "images_per_s", "wall_s",
)  # fmt: skip
MEASURED = ("top1_err", "top5_err")
OF_ONE, OF_SEVERAL = ("digest", "iteration"), ("members",)  # what an evaluation of a run, or of runs, needs
OF_MEMBER = ("name", "label", "seed", "digest", "iteration", "status")
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


def read_bytes(path: Path) -> bytes:
    """The content of a file of a record (RecordError if it is missing or unreadable)."""
    try:
        return path.read_bytes()
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
    form = content.get("format", FORMAT)
    require(form == FORMAT, f"it is of format {form}, which this version cannot read")
    seal = content.pop(SEAL, None)
    require(seal is not None, "its checksum is missing")
    require(seal == digest_of(content), "its checksum does not match its content")
    return content  # type: ignore[no-any-return]


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON record as it lies on the disk, sealed with its checksum; NaN and infinity are ValueErrors."""
    return (json.dumps({**content, SEAL: digest_of(content)}, indent=2, allow_nan=False) + "\n").encode()


def describe_curve(rows: bytes) -> dict[str, Any]:
    """What result.json says of metrics.csv: how much of it counts, and its checksum."""
    return {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()}


def read_curve(path: Path, vouched: Mapping[str, Any]) -> Curve:
    """The columns of metrics.csv, of the rows that result.json `vouched` for (RecordError if broken)."""
    rows = read_bytes(path)
    with naming(path):
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


class Data(NamedTuple):
    """The images that were measured: name of the dataset, and by set how many and their checksum."""

    name: str
    images: Mapping[str, int]
    checksums: Mapping[str, str]
    classes: int | None  # None where the record does not say (those of CIFAR-10)
    notices: tuple[str, ...]

    def same_set(self, part: str, other: Mapping[str, Any]) -> bool:
        """Whether a set has the same images as in a run's env data: by checksum, else by name."""
        here, there = self.checksums.get(part), other["sha256"].get(part)
        return bool(self.name == other["name"] if here is None or there is None else here == there)


class Member(NamedTuple):
    """One run of an ensemble, as it was when its checkpoint was measured."""

    name: str
    label: str
    seed: int
    digest: str
    iteration: int
    status: str
    told: tuple[str, ...]  # its departures and notices


class Evaluation(NamedTuple):
    """One test protocol over one checkpoint, or over several `members` whose softmax was averaged."""

    protocol: str
    bn_stats: str
    data: Data
    errors: Mapping[str, Mapping[str, float]]  # by set, then `top1_err` and `top5_err`
    digest: str = ""
    iteration: int = 0
    members: tuple[Member, ...] = ()

    @property
    def key(self) -> str:
        """Equal for two records of the same ensemble: members in any order, data and protocol."""
        members = sorted((m.name, m.seed, m.digest, m.iteration, *m.told) for m in self.members)
        shared = [self.protocol, self.bn_stats, self.data.name, self.data.checksums, members]
        return json.dumps(shared, sort_keys=True)


Ensemble = Evaluation  # with members


def evaluation_from(content: Mapping[str, Any], *needs: str) -> Evaluation:
    """An evaluation from its JSON object, with what one of ours `needs` (or what `naming` catches)."""
    own = {key: content[key] for key in needs}
    about, notices = content["data"], tuple(content["data"].get("notices", ()))
    data = Data(about["name"], about["images"], about["sha256"], about.get("classes"), notices)
    errors = {
        part: {metric: float(figures[metric]) for metric in MEASURED}
        for part, figures in content["errors"].items()
    }
    if "members" in own:
        own["members"] = tuple(
            Member(**{key: one[key] for key in OF_MEMBER}, told=(*one["departures"], *one["notices"]))
            for one in own["members"]
        )
    return Evaluation(content["protocol"], content["bn_stats"], data, errors, **own)


COLUMNS = ("index", "layer", "std", "gradient_norm_start", "gradient_norm_end")
ABOUT = ("images", "batch", "bn_stats", "digest", "seed", "iteration")  # in the first line, as attributes
LEAD = b"# "
TOLD = {
    "std": "of what BN gives, before ReLU or addition, over all images, channels and positions together; BN "
    "in evaluation mode, the trained net (assumed: the paper names neither images nor mode)",
    "gradient_norm": "L2 norm of the gradient of the mean loss with respect to the same response, over all "
    "images of the first training batch, BN with the statistics of the batch; at initialisation and of the "
    "trained net",
}


@dataclass(frozen=True)
class Responses:
    """What was measured of the 3x3 layers of a trained net, in the paper's order, projections aside."""

    layers: tuple[str, ...]  # the names of the convolutions in the net
    std: tuple[float, ...]  # standard deviations: after BN, before ReLU or addition, evaluation mode
    gradient_norm_start: tuple[float, ...]  # L2 norms of the loss gradient at the same place, untrained
    gradient_norm_end: tuple[float, ...]  # the same of the trained net
    part: str  # the set that `std` was measured on: the run's headline set
    images: int
    batch: int  # images of the training batch that the gradients are of
    bn_stats: str  # "running" or "precise": what BN used for `std`
    digest: str
    seed: int
    iteration: int

    def to_bytes(self) -> bytes:
        """The content of `responses.csv`."""
        lines, columns = [",".join(COLUMNS)], (self.std, self.gradient_norm_start, self.gradient_norm_end)
        for index, (layer, *figures) in enumerate(zip(self.layers, *columns, strict=True), 1):
            lines.append(",".join([str(index), layer, *(f"{figure:.8g}" for figure in figures)]))
        rows = ("\n".join(lines) + "\n").encode()
        about = {"set": self.part, **{key: getattr(self, key) for key in ABOUT}}
        head = {"format": FORMAT, **TOLD, **about, "rows": describe_curve(rows)}
        sealed = json.dumps({**head, SEAL: digest_of(head)}, allow_nan=False)
        return LEAD + sealed.encode() + b"\n" + rows


def read_responses(run: "Run") -> Responses | None:
    """What `responses.csv` of a run's folder says, None if there is no such file (RecordError if it is
    broken, or was not measured on the trained net of this run).
    """
    path = run.folder / RESPONSES
    if not path.exists():
        return None
    first, _, rows = read_bytes(path).partition(b"\n")
    with naming(path):
        require(first.startswith(LEAD), "its first line does not say what was measured")
        head = parse_json(first.removeprefix(LEAD))
        require(head["rows"] == describe_curve(rows), "its rows do not match their checksum")
        _, layers, *figures = read_table(rows, COLUMNS)
        std, start, end = (tuple(map(float, texts)) for texts in figures)
        responses = Responses(layers, std, start, end, head["set"], *(head[key] for key in ABOUT))
    found = responses.digest, responses.seed, responses.iteration, len(responses.layers)
    layers_of_net = count_layers(run.spec["dataset"], run.spec["depth"])
    if found != (run.digest, run.seed, run.spec["recipe"]["iterations"], layers_of_net):
        raise RecordError(
            f"{path} was not measured on the trained net of this run: "
            f"`resrepro eval {shlex.quote(str(run.folder))} --responses` measures it anew."
        )
    return responses


def count_layers(dataset: str, depth: int) -> int:
    """The 3x3 convolutions of a net, projections aside: 6n+1 of 6n+2 layers (Section 4.2)."""
    layers = [(part.times, layer) for part in parts_of(dataset, depth) for layer in part.layers]
    return sum(times for times, layer in layers if layer.kernel == 3 and layer.weights)


LAYER_RESPONSES = "responses"  # of every layer (Figure 7); whatever else is measured is a test protocol
OTHER_IMAGES = (
    "it was measured, but on other images than those of the run, so no table takes it: name those with "
    "--data."
)


def is_measured(what: str, run: "Run | None") -> bool:
    """Whether a test protocol, or LAYER_RESPONSES, of a finished run's trained net is recorded."""
    if run is None or not run.finished:
        return False
    if what == LAYER_RESPONSES:
        return run.responses is not None
    return run.evaluation(what, run.headline_split) is not None
