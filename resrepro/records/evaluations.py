"""What was measured of trained nets, checked: evaluations, ensembles, and responses of layers (Figure 7).

Errors are in percent. `responses.csv` begins with one line of JSON behind a `#`: what was measured on which
net, and a checksum; below it stands a plain table, one row per 3x3 layer. Nothing here imports torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.errors import RecordError
from resrepro.records.reading import (
    FORMAT,
    METRICS_MEASURED,
    RESPONSES,
    SPEC,
    SPLITS,
    describe_curve,
    naming,
    parse_json,
    percentage,
    plain,
    read_bytes,
    read_json,
    read_table,
    require,
)
from resrepro.records.storage import sealed, write_whole
from resrepro.spec import digest_of
from resrepro.spec.architecture import parts_of

if TYPE_CHECKING:
    from resrepro.records import Run


@dataclass(frozen=True)
class Data:
    """The images that were measured: name of the dataset, and by set how many and their checksum."""

    name: str
    images: Mapping[str, int]
    checksums: Mapping[str, str]
    classes: int | None
    """None where the record does not say (those of CIFAR-10)."""
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
    errors: Mapping[str, Mapping[str, float]]
    """By set, then `top1_err` and `top5_err`."""


@dataclass(frozen=True)
class Member:
    """One run of an ensemble, as it was when its checkpoint was measured."""

    name: str
    label: str
    seed: int
    digest: str
    iteration: int
    status: str
    told: tuple[str, ...]
    """Its departures and notices."""


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
    """An evaluation from its JSON object; older records lack `bn_stats` (running) and the classes.

    Raises:
        KeyError, TypeError, ValueError: if something is missing or is not what it should be.
    """
    return Evaluation(
        _text(content, "protocol"),
        _text({"bn_stats": "running", **content}, "bn_stats"),
        _text(content, "digest"),
        _count(content, "iteration"),
        *_data_and_errors(content),
    )


def ensemble_from(content: Mapping[str, Any]) -> Ensemble:
    """An ensemble from its JSON object.

    Raises:
        KeyError, TypeError, ValueError: if something is missing or is not what it should be.
    """
    members = tuple(_member(member) for member in content["members"])
    require(len(members) > 1, "fewer than two members")
    protocol, bn_stats = _text(content, "protocol"), _text(content, "bn_stats")
    return Ensemble(protocol, bn_stats, members, *_data_and_errors(content))


def _member(content: Mapping[str, Any]) -> Member:
    name, label, digest, status = (_text(content, key) for key in ("name", "label", "digest", "status"))
    sentences = dict.fromkeys(_sentences(content["departures"]) + _sentences(content["notices"]))
    seed, iteration = _count(content, "seed"), _count(content, "iteration")
    return Member(name, label, seed, digest, iteration, status, tuple(sentences))


def _data_and_errors(content: Mapping[str, Any]) -> tuple[Data, dict[str, dict[str, float]]]:
    about = content["data"]
    data = Data(
        _text(about, "name"),
        {part: _count(about["images"], part) for part in about["images"]},
        {part: _text(about["sha256"], part) for part in about["sha256"]},
        _count(about, "classes") if "classes" in about else None,
        _sentences(about.get("notices", [])),
    )
    errors = {
        part: {metric: percentage(figures[metric], metric) for metric in METRICS_MEASURED}
        for part, figures in content["errors"].items()
    }
    require(bool(errors), "no set was measured")
    require(errors.keys() <= data.images.keys(), "it does not say how many images were measured")
    return data, errors


def _text(content: Mapping[str, Any], key: str) -> str:
    require(isinstance(content[key], str), f"{key} is no text")
    return str(content[key])


def _count(content: Mapping[str, Any], key: str) -> int:
    require(type(content[key]) is int and content[key] >= 0, f"{key} is no count")
    return int(content[key])


def _sentences(content: list[str]) -> tuple[str, ...]:
    is_list = isinstance(content, list) and all(isinstance(text, str) for text in content)
    require(is_list, "no list of sentences")
    return tuple(content)


COLUMNS = ("index", "layer", "std", "gradient_norm_start", "gradient_norm_end")
MOST_RESPONSES = 2**20  # the 1,201 rows of the deepest net of the paper have 80 KB
ABOUT = ("images", "batch", "bn_stats", "digest", "seed", "iteration")  # in the first line, as attributes
LEAD = b"# "
LAYER = re.compile(r"[a-z][a-z0-9.]*")  # a module's name, such as stages.0.1.conv2
TOLD = {
    "std": "of what BN gives, before ReLU or addition, over all images, channels and positions together; BN "
    "in evaluation mode, the trained net (assumed: the paper names neither images nor mode)",
    "gradient_norm": "L2 norm of the gradient of the mean loss with respect to the same response, over all "
    "images of the first training batch, BN with the statistics of the batch; at initialisation and of the "
    "trained net",
}


@dataclass(frozen=True)
class Responses:
    """What was measured of the 3x3 layers of a trained net, in the paper's order: index 1 comes first.

    The first layer counts as it does in Figure 7, if it is a 3x3 one; projections and the classifier do not.

    Attributes:
        layers: the names of the convolutions in the net.
        std: standard deviation of each response: after BN, before ReLU or addition, evaluation mode.
        gradient_norm_start: L2 norm of the loss gradient with respect to each response, at initialisation.
        gradient_norm_end: the same of the trained net.
        part: the set that `std` was measured on, "test" or "val": the run's headline set.
        images: how many images that was.
        batch: images of the training batch that the gradients are of.
        bn_stats: "running" or "precise", the statistics that BN used for `std`.
        digest: of the run's specification.
        seed: of the run.
        iteration: updates made.
    """

    layers: tuple[str, ...]
    std: tuple[float, ...]
    gradient_norm_start: tuple[float, ...]
    gradient_norm_end: tuple[float, ...]
    part: str
    images: int
    batch: int
    bn_stats: str
    digest: str
    seed: int
    iteration: int


def write_responses(folder: Path, responses: Responses) -> Path:
    """Write `responses.csv` into a run's folder, in one step; returns its path.

    Raises:
        RecordError: if the disk refuses.
    """
    lines = [",".join(COLUMNS)]
    columns = responses.std, responses.gradient_norm_start, responses.gradient_norm_end
    for index, (layer, *figures) in enumerate(zip(responses.layers, *columns, strict=True), 1):
        lines.append(",".join([str(index), layer, *(f"{figure:.8g}" for figure in figures)]))
    rows = ("\n".join(lines) + "\n").encode()
    about = {key: getattr(responses, key) for key in ABOUT}
    head = {"format": FORMAT, **TOLD, "set": responses.part, **about, "rows": describe_curve(rows)}
    path = folder / RESPONSES
    write_whole(path, LEAD + json.dumps(sealed(head), allow_nan=False).encode() + b"\n" + rows)
    return path


def read_responses(folder: Path) -> Responses | None:
    """What `responses.csv` of a run's folder says; None if there is no such file.

    Raises:
        RecordError: if it is broken, or was not measured on the trained net of this run; or if the run's
            spec.json is missing or broken.
    """
    path = folder / RESPONSES
    if not path.exists() and not path.is_symlink():
        return None
    first, _, rows = read_bytes(path, MOST_RESPONSES).partition(b"\n")
    with naming(path):
        require(first.startswith(LEAD), "its first line does not say what was measured")
        head = parse_json(path, first.removeprefix(LEAD))
        require(head.get("rows") == describe_curve(rows), "its rows do not match their checksum")
        responses = _responses_from(head, rows)
    found = responses.digest, responses.seed, responses.iteration, len(responses.layers)
    content = read_json(folder / SPEC)
    with naming(folder / SPEC):
        spec = content["spec"]
        layers = count_layers(spec["dataset"], spec["depth"])
        expected = digest_of(spec), content["seed"], spec["recipe"]["iterations"], layers
    if found != expected:
        raise RecordError(
            f"{path} was not measured on the trained net of this run: "
            f"`resrepro eval {folder} --responses` measures it anew."
        )
    return responses


def _responses_from(head: Mapping[str, Any], rows: bytes) -> Responses:
    indices, layers, *figures = read_table(rows, COLUMNS)
    numbered = indices == tuple(str(index) for index in range(1, len(indices) + 1))
    require(numbered, "its layers are not numbered from 1")
    require(all(LAYER.fullmatch(layer) for layer in layers), "a layer has no name of one")
    require(head["set"] in SPLITS, "the set is none of train, val or test")
    std, start, end = (tuple(float(plain(text)) for text in texts) for texts in figures)
    finite = all(0 <= figure < float("inf") for figure in (*std, *start, *end))
    require(finite, "a value is no number from 0 on")
    images, batch, seed, iteration = (_count(head, key) for key in ("images", "batch", "seed", "iteration"))
    bn_stats, digest = _text(head, "bn_stats"), _text(head, "digest")
    return Responses(layers, std, start, end, head["set"], images, batch, bn_stats, digest, seed, iteration)


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
