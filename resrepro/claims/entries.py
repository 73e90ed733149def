"""The paper's claims as data (`paper/claims.toml`), loaded and checked."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from resrepro.errors import UsageError
from resrepro.paper import published
from resrepro.spec import catalogue
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import Value

KINDS = ("falls", "alike", "within", "throughout", "count")
NEEDS = ("data", "length")
Source = tuple[str, str, str]  # exhibit, row and metric of published.csv
Region = tuple[float, float]


@dataclass(frozen=True)
class Net:
    """A net that a claim is about: an experiment, and the settings in which its runs differ from it."""

    experiment: str
    settings: tuple[tuple[str, Value], ...] = ()
    told: str = ""
    """The settings in words."""

    @property
    def spec(self) -> Spec:
        """What the paper trained."""
        return catalogue.derive(catalogue.find(self.experiment), None, **dict(self.settings))

    @property
    def label(self) -> str:
        """`plain-56`, or with its settings `ResNet-110 (without warm-up)`."""
        return self.spec.label + (f" ({self.told})" if self.told else "")


@dataclass(frozen=True)
class Check:
    """One of the things that must hold for a claim; see the head of claims.toml for the kinds."""

    kind: str
    measure: str
    nets: tuple[Net, ...] = ()
    region: Region = (0.0, float("inf"))
    margin: float = 0.0
    window: int = 1
    needs: tuple[str, ...] = ()
    paper: str = ""
    """The exhibit that has the paper's own values."""
    of: str = ""
    over: str | Source = ""
    ratio: tuple[Source, ...] = ()
    """Of a count: the entries of published.csv whose ratio is the paper's."""

    @property
    def comparisons(self) -> int:
        """How many means or differences it looks at; the stretches of a curve count by themselves."""
        return len(self.nets) if self.kind == "within" else max(1, len(self.nets) - 1)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and the tests that must all hold for it."""

    number: int
    section: str
    words: str
    tests: tuple[Check, ...]
    printed: tuple[tuple[str, Source], ...] = ()
    said: str = ""
    note: str = ""
    quantity: str = ""
    untestable: str = ""

    @property
    def nets(self) -> tuple[Net, ...]:
        """The nets whose runs it needs, each once."""
        return tuple(dict.fromkeys(net for test in self.tests for net in test.nets))

    @property
    def comparisons(self) -> int:
        """How many means or differences all its tests look at; what is counted is not among them."""
        return sum(test.comparisons for test in self.tests if test.kind != "count")


@cache
def claims() -> tuple[Claim, ...]:
    """All claims in the paper's order."""
    text = resources.files("resrepro").joinpath("paper", "claims.toml").read_text(encoding="utf-8")
    return tuple(_claim(entry) for entry in tomllib.loads(text)["claims"])


def find_claim(number: int) -> Claim:
    """The claim of that number.

    Raises:
        UsageError: if there is none.
    """
    for claim in claims():
        if claim.number == number:
            return claim
    raise UsageError(f"no claim {number}: they are numbered from 1 to {claims()[-1].number}.")


def value_of(source: Source) -> float:
    """A published value; parameters (`params_M`) are counted in ones, not millions."""
    return published()[source].value * (1e6 if source[2] == "params_M" else 1)


def _claim(entry: Mapping[str, Any]) -> Claim:
    changed = {
        "tests": tuple(_test(test) for test in entry.get("tests", ())),
        "printed": tuple((told, _source(source)) for told, *source in entry.get("printed", ())),
    }
    return Claim(**{**entry, **changed})


def _test(entry: Mapping[str, Any]) -> Check:
    changed: dict[str, Any] = {"nets": tuple(_net(net) for net in entry.get("nets", ()))}
    if "region" in entry:
        low, high = entry["region"]
        changed["region"] = (_bound(low), _bound(high))
    if entry["kind"] == "count" and "paper" in entry:
        changed |= {"paper": "", "ratio": tuple(_source(source) for source in entry["paper"])}
    if isinstance(entry.get("over"), list):
        changed["over"] = _source(entry["over"])
    changed["needs"] = tuple(entry.get("needs", ()))
    test = Check(**{**entry, **changed})
    if test.kind not in KINDS or not set(test.needs) <= set(NEEDS):
        raise AssertionError(f"claims.toml has no test of kind {test.kind} that needs {test.needs}")
    return test


def _net(entry: str | Mapping[str, Any]) -> Net:
    if isinstance(entry, str):
        return Net(entry)
    return Net(entry["experiment"], tuple(entry["settings"].items()), entry["told"])


def _source(entry: list[str]) -> Source:
    exhibit, row, metric = entry
    return exhibit, row, metric


def _bound(entry: float | list[str]) -> float:
    return value_of(_source(entry)) if isinstance(entry, list) else entry
