"""Which exhibits can be reproduced, on which images, and what each of them is made of.

The nets of an exhibit are those of which the catalogue says so, its test protocols are those of its table's
layout, and the rest is in `paper/reproduction.toml`. Nothing here imports torch.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from resrepro.errors import UsageError
from resrepro.figures.exhibits import figures, tables
from resrepro.paper import layouts
from resrepro.records.evaluations import LAYER_RESPONSES
from resrepro.spec import catalogue
from resrepro.spec.recipe import FAMILIES

ALL = "all"


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of the paper, or its stand-in on other images, and what it is made of.

    Attributes:
        name: as `compare` and `plot` know it.
        stem: of its files; a stand-in never takes those of the paper's exhibit.
        dataset: of its runs, None if it needs none.
        experiments: the catalogue's experiments that it shows.
        measures: what is measured of each trained net: test protocols, or LAYER_RESPONSES.
        ensemble: whether it shows the nets together, as one ensemble.
        claims: the numbers of the paper's claims that it bears on.
    """

    name: str
    stem: str
    dataset: str | None
    experiments: tuple[str, ...]
    measures: tuple[str, ...]
    ensemble: bool
    claims: tuple[int, ...]

    @property
    def is_table(self) -> bool:
        """Whether `compare` knows it."""
        return self.name in tables()

    @property
    def is_figure(self) -> bool:
        """Whether `plot` knows it."""
        return self.name in figures()


@cache
def _facts() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("resrepro.paper").joinpath("reproduction.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def names() -> tuple[str, ...]:
    """The exhibits that can be reproduced, in the order of the paper's tables and figures."""
    return tuple(_facts())


def choose_exhibits(asked: Iterable[str], dataset: str | None = None) -> tuple[Exhibit, ...]:
    """The exhibits of these names, on another dataset than the paper's if one is given.

    "all" stands for every exhibit of the paper that the dataset has.

    Raises:
        UsageError: if a name or the dataset is unknown, or the dataset has no such exhibit.
    """
    if dataset is not None and dataset not in FAMILIES:
        raise UsageError(f"no dataset {dataset!r}: there are {', '.join(FAMILIES)}.")
    found: dict[str, Exhibit] = {}
    for name in asked:
        if name not in (ALL, *_facts()):
            raise UsageError(f"no exhibit {name!r} to reproduce: there are {', '.join(names())} and {ALL}.")
        for each in _of_the_paper() if name == ALL else [name]:
            exhibit = _exhibit(each, dataset)
            if exhibit is not None:
                found[exhibit.name] = exhibit
            elif name != ALL:
                raise UsageError(_no_such(each, str(dataset)))
    return tuple(found.values())


def _of_the_paper() -> list[str]:
    return [name for name, facts in _facts().items() if "extra" not in facts]


def _no_such(name: str, dataset: str) -> str:
    own = _facts()[name]["dataset"]
    others = [each for each in FAMILIES if _exhibit(name, each) is not None and each != own]
    also = f" or {', '.join(others)}" if others else ""
    return f"{name} is an exhibit of {own}{also}, not of {dataset}: give another --dataset, or leave it out."


def _exhibit(name: str, dataset: str | None) -> Exhibit | None:
    """An exhibit on a dataset; None if there is none of its kind."""
    facts = _facts()[name]
    own = facts.get("dataset")
    dataset = dataset if own and dataset else own
    if own and FAMILIES[str(dataset)] != FAMILIES[own]:
        return None
    stem = name if dataset == own else f"{name}-{dataset}"
    shown = stem if stem in (*tables(), *figures()) else name
    experiments = _experiments(name, shown, dataset) if dataset else ()
    if dataset and not experiments:
        return None
    plan = layouts().get(shown, {})
    protocols = dict.fromkeys(q["protocol"] for q in plan.get("quantities", ()) if "protocol" in q)
    measures = (*protocols, *((LAYER_RESPONSES,) if facts.get("responses") else ()))
    return Exhibit(shown, stem, dataset, experiments, measures, "members" in plan, tuple(facts["claims"]))


def _experiments(name: str, shown: str, dataset: str) -> tuple[str, ...]:
    """The experiments of an exhibit: those of which the catalogue says so, or that its data list."""
    listed, own = _facts()[name].get("experiments"), _facts()[name]["dataset"]
    source = "imagenet" if dataset == "folder" else dataset
    wanted = {each.replace(own, source, 1) for each in listed or ()}
    found = [
        each.name
        for each in catalogue.experiments().values()
        if each.dataset == source and (each.name in wanted if listed else shown in each.exhibits)
    ]
    return tuple(catalogue.twin_on_folder(each) if dataset == "folder" else each for each in found)
