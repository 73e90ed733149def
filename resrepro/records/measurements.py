"""What `resrepro eval` recorded, checked: one evaluation of a checkpoint, or of several as an ensemble.

Errors are in percent. Which file an object came from is the business of `resrepro.records`. Nothing here
imports torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METRICS_MEASURED = ("top1_err", "top5_err")


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
    if len(members) < 2:
        raise ValueError("fewer than two members")
    return Ensemble(
        _text(content, "protocol"),
        _text(content, "bn_stats"),
        members,
        *_data_and_errors(content),
    )


def _member(content: Mapping[str, Any]) -> Member:
    name, label, digest, status = (_text(content, key) for key in ("name", "label", "digest", "status"))
    told = (*_sentences(content["departures"]), *_sentences(content["notices"]))
    return Member(
        name, label, _count(content, "seed"), digest, _count(content, "iteration"), status,
        tuple(dict.fromkeys(told)),
    )  # fmt: skip


def _data_and_errors(content: Mapping[str, Any]) -> tuple[Data, dict[str, dict[str, float]]]:
    data, errors = _data(content["data"]), _errors(content["errors"])
    if not errors.keys() <= data.images.keys():
        raise ValueError("it does not say how many images were measured")
    return data, errors


def _data(content: Mapping[str, Any]) -> Data:
    images = {str(part): _count(content["images"], part) for part in content["images"]}
    checksums = {str(part): _text(content["sha256"], part) for part in content["sha256"]}
    classes = _count(content, "classes") if "classes" in content else None
    return Data(_text(content, "name"), images, checksums, classes, _sentences(content.get("notices", [])))


def _errors(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    if not content:
        raise ValueError("no set was measured")
    return {
        str(part): {metric: percentage(figures[metric], metric) for metric in METRICS_MEASURED}
        for part, figures in content.items()
    }


def percentage(value: object, what: str) -> float:
    """A number of percent.

    Raises:
        ValueError: if it is not one between 0 and 100.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"the {what} is no percentage")
    return float(value)


def _text(content: Mapping[str, Any], key: str) -> str:
    if not isinstance(content[key], str):
        raise TypeError(f"{key} is no text")
    return str(content[key])


def _count(content: Mapping[str, Any], key: str) -> int:
    if not isinstance(content[key], int) or content[key] < 0:
        raise TypeError(f"{key} is no count")
    return int(content[key])


def _sentences(content: object) -> tuple[str, ...]:
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise TypeError("no list of sentences")
    if not all(isinstance(text, str) for text in content):
        raise TypeError("no list of sentences")
    return tuple(content)
