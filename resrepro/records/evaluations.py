"""What was measured of trained nets: evaluations, ensembles, and responses of layers (Figure 7).

Errors are in percent. `responses.csv` begins with one line of JSON behind a `#`: what was measured on which
net, and a checksum; below it stands a plain table, one row per 3x3 layer.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.errors import RecordError
from resrepro.records.reading import (
    FORMAT,
    MEASURED,
    RESPONSES,
    describe_curve,
    naming,
    parse_json,
    read_bytes,
    read_table,
    require,
)
from resrepro.records.storage import SEAL, seal_of, write_whole
from resrepro.spec.architecture import parts_of

if TYPE_CHECKING:
    from resrepro.records import Run


@dataclass(frozen=True)
class Data:
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


@dataclass(frozen=True)
class Evaluation:
    """One test protocol over one checkpoint."""

    protocol: str
    bn_stats: str
    digest: str
    iteration: int
    data: Data
    errors: Mapping[str, Mapping[str, float]]  # by set, then `top1_err` and `top5_err`


@dataclass(frozen=True)
class Member:
    """One run of an ensemble, as it was when its checkpoint was measured."""

    name: str
    label: str
    seed: int
    digest: str
    iteration: int
    status: str
    told: tuple[str, ...]  # its departures and notices


@dataclass(frozen=True)
class Ensemble:
    """One test protocol over several checkpoints whose softmax outputs were averaged."""

    protocol: str
    bn_stats: str
    members: tuple[Member, ...]
    data: Data
    errors: Mapping[str, Mapping[str, float]]

    @property
    def key(self) -> str:
        """Equal for two records of the same ensemble: members in any order, data and protocol."""
        members = sorted((m.name, m.seed, m.digest, m.iteration, *m.told) for m in self.members)
        shared = [self.protocol, self.bn_stats, self.data.name, self.data.checksums, members]
        return json.dumps(shared, sort_keys=True)


def evaluation_from(content: Mapping[str, Any]) -> Evaluation:
    """An evaluation from its JSON object (or what `naming` catches); older records lack `bn_stats`."""
    how = content["protocol"], content.get("bn_stats", "running")
    return Evaluation(*how, content["digest"], content["iteration"], *_data_and_errors(content))


def ensemble_from(content: Mapping[str, Any]) -> Ensemble:
    """An ensemble from its JSON object (or what `naming` catches)."""
    members = tuple(
        Member(
            **{key: one[key] for key in ("name", "label", "seed", "digest", "iteration", "status")},
            told=tuple(dict.fromkeys(one["departures"] + one["notices"])),
        )
        for one in content["members"]
    )
    require(len(members) > 1, "it has fewer than two members")
    return Ensemble(content["protocol"], content["bn_stats"], members, *_data_and_errors(content))


def _data_and_errors(content: Mapping[str, Any]) -> tuple[Data, dict[str, dict[str, float]]]:
    """The errors by set, and the data, which has to say of each how many images were measured."""
    about = content["data"]
    told = about.get("classes"), tuple(about.get("notices", ()))
    data = Data(about["name"], about["images"], about["sha256"], *told)
    errors = {
        part: {metric: float(figures[metric]) for metric in MEASURED}
        for part, figures in content["errors"].items()
    }
    require(bool(errors), "no set was measured")
    require(errors.keys() <= data.images.keys(), "it does not say how many images there were")
    return data, errors


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


def write_responses(folder: Path, responses: Responses) -> Path:
    """Write `responses.csv` into a run's folder, in one step; returns its path (RecordError if refused)."""
    lines = [",".join(COLUMNS)]
    columns = responses.std, responses.gradient_norm_start, responses.gradient_norm_end
    for index, (layer, *figures) in enumerate(zip(responses.layers, *columns, strict=True), 1):
        lines.append(",".join([str(index), layer, *(f"{figure:.8g}" for figure in figures)]))
    rows = ("\n".join(lines) + "\n").encode()
    about = {key: getattr(responses, key) for key in ABOUT}
    head = {"format": FORMAT, **TOLD, "set": responses.part, **about, "rows": describe_curve(rows)}
    path = folder / RESPONSES
    first = json.dumps({**head, SEAL: seal_of(head)}, allow_nan=False)
    write_whole(path, LEAD + first.encode() + b"\n" + rows)
    return path


def read_responses(run: "Run") -> Responses | None:
    """What `responses.csv` of a run's folder says; None if there is no such file.

    Raises:
        RecordError: if it is broken, or was not measured on the trained net of this run.
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
        about = {key: head[key] for key in ABOUT}
        responses = Responses(layers, std, start, end, head["set"], **about)
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
    parts = parts_of(dataset, depth)
    return sum(part.times for part in parts for layer in part.layers if layer.kernel == 3 and layer.weights)


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
