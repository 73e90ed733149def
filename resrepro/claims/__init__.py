"""The paper's claims in words, tested on run records: the claims as data (`paper/claims.toml`), loaded.

`judging.judge` gives a verdict on each, by the tests of `testing` on the quantities of `measures`. Nothing
here imports torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from resrepro.comparison.groups import STAND_INS, WARM_UP, Protocol, with_seeds
from resrepro.errors import UsageError
from resrepro.paper import published
from resrepro.records import Run
from resrepro.spec import Spec, catalogue, command_for
from resrepro.spec.recipe import FAMILIES, Value

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

    def has(self, run: Run) -> bool:
        """Whether a run is one of this net, on whichever images and however long.

        The shortcuts and the whole warm-up belong to the net, and so do the settings that it names.
        """
        dataset, _, rest = self.experiment.partition("-")
        if run.experiment not in (self.experiment, f"{STAND_INS.get(dataset, dataset)}-{rest}"):
            return False
        own = catalogue.find(run.experiment).spec()
        wanted = {key: getattr(own.recipe, key) for key in WARM_UP} | dict(self.settings)
        recipe = run.spec["recipe"]
        same = all(recipe.get(key) == value for key, value in wanted.items())
        return same and run.spec["shortcut"] == own.shortcut and FAMILIES[dataset] == run.family

    def command(self, seeds: int, protocol: "Protocol[Net] | None" = None) -> str:
        """The command that trains so many seeds of it, under a protocol or else as the paper did."""
        if protocol is None:
            return with_seeds(command_for(self.spec), seeds)
        return protocol.command(self.experiment, dict(self.settings), seeds)


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
        if self.kind == "count":
            return 0
        return len(self.nets) if self.kind == "within" else len(self.nets) - 1


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
        return sum(test.comparisons for test in self.tests)


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
    if not 1 <= number <= len(claims()):
        raise UsageError(f"no claim {number}: they are numbered from 1 to {len(claims())}.")
    return claims()[number - 1]


def value_of(source: Source) -> float:
    """A published value; parameters (`params_M`) are counted in ones, not millions."""
    return published()[source].value * (1e6 if source[2] == "params_M" else 1)


def _claim(entry: Mapping[str, Any]) -> Claim:
    tests = tuple(_test(test) for test in entry.get("tests", ()))
    printed = tuple((told, _source(source)) for told, *source in entry.get("printed", ()))
    return Claim(**{**entry, "tests": tests, "printed": printed})


def _test(entry: Mapping[str, Any]) -> Check:
    fields = dict(entry)
    fields["nets"] = tuple(_net(net) for net in entry.get("nets", ()))
    fields["needs"] = tuple(entry.get("needs", ()))
    if "region" in entry:
        fields["region"] = tuple(
            value_of(_source(end)) if isinstance(end, list) else end for end in entry["region"]
        )
    if entry["kind"] == "count":
        fields["ratio"] = tuple(_source(source) for source in fields.pop("paper", ()))
    if isinstance(entry.get("over"), list):
        fields["over"] = _source(entry["over"])
    return Check(**fields)


def _net(entry: str | Mapping[str, Any]) -> Net:
    if isinstance(entry, str):
        return Net(entry)
    return Net(entry["experiment"], tuple(entry["settings"].items()), entry["told"])


def _source(entry: list[str]) -> Source:
    exhibit, row, metric = entry
    return exhibit, row, metric
