"""The paper's claims in words as data (`paper/claims.toml`), and the verdicts on them as a table and a list.

`judging.judge` gives the verdicts, from run records, by what `measures` measures.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from resrepro.comparison.groups import WARM_UP, Protocol, on_stand_in, with_seeds
from resrepro.comparison.table import DASH, Notes, Row, Table
from resrepro.errors import UsageError
from resrepro.paper import published
from resrepro.records import Run
from resrepro.spec import Spec, catalogue, command_for
from resrepro.spec.recipe import Value, read_toml

if TYPE_CHECKING:
    from rich.console import RenderableType

Source = Sequence[str]  # exhibit, row and metric of published.csv
FILE = "claims.toml", "resrepro.paper"
HELD, FAILED, UNDECIDED, UNTESTABLE = "held", "failed", "undecided", "not testable here"
STYLES = {HELD: "green", FAILED: "red", UNDECIDED: "yellow", UNTESTABLE: "dim"}
SHORT = {UNTESTABLE: "no test"}
COLUMNS = ("claim", "quantity", "paper", "runs", "ours", "verdict", "why")
WRAPS = (0.22, 0.1, 0.14, 0.1, 0.16, 0.08, 0.14)


@dataclass(frozen=True)
class Net:
    """A net that a claim is about: an experiment, and the settings (`told` in words) that set it apart."""

    experiment: str
    settings: dict[str, Value] = field(default_factory=dict, hash=False)
    told: str = ""

    @property
    def spec(self) -> Spec:
        """What the paper trained."""
        return catalogue.derive(catalogue.find(self.experiment), None, **self.settings)

    @property
    def label(self) -> str:
        """`plain-56`, or with its settings `ResNet-110 (without warm-up)`."""
        return self.spec.label + (f" ({self.told})" if self.told else "")

    def has(self, run: Run) -> bool:
        """Whether a run has the net's shortcuts, warm-up and settings, on whichever images, however long."""
        if run.experiment not in (self.experiment, on_stand_in(self.experiment)):
            return False
        own, recipe = catalogue.find(run.experiment).spec(), run.spec["recipe"]
        wanted = {key: getattr(own.recipe, key) for key in WARM_UP} | self.settings
        same = all(recipe.get(key) == value for key, value in wanted.items())
        return same and bool(run.spec["shortcut"] == own.shortcut)

    def command(self, seeds: int, protocol: "Protocol[Net] | None" = None) -> str:
        """The command that trains so many seeds of it, under a protocol or else as the paper did."""
        if protocol is None:
            return with_seeds(command_for(self.spec), seeds)
        return protocol.command(self.experiment, self.settings, seeds)


@dataclass(frozen=True)
class Check:
    """One of the things that must hold for a claim; see the head of claims.toml for the kinds and fields."""

    kind: str
    measure: str
    nets: tuple[Net, ...] = ()
    region: tuple[float, float] = (0.0, math.inf)
    margin: float = 0.0
    window: int = 1
    needs: Sequence[str] = ()
    paper: str = ""
    of: str = ""
    over: str | Source = ""
    ratio: Sequence[Source] = ()


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and the tests that must all hold for it."""

    number: int
    section: str
    words: str
    tests: tuple[Check, ...]
    printed: Sequence[Source] = ()  # beside the values of its tests, each led by what to call it
    said: str = ""
    note: str = ""
    quantity: str = ""
    untestable: str = ""
    short: str = ""  # the words in at most 66 characters

    @property
    def nets(self) -> tuple[Net, ...]:
        """The nets whose runs it needs, each once."""
        return tuple(dict.fromkeys(net for test in self.tests for net in test.nets))

    @property
    def beside(self) -> str:
        """What the paper prints beside the values of its tests: `VGG-16 15.3, ResNet-152 11.3`."""
        return ", ".join(f"{told} {value_of(source):g}" for told, *source in self.printed)

    @property
    def comparisons(self) -> int:
        """How many means or differences its tests look at; what is counted is not among them."""
        return sum(len(test.nets) - (test.kind != "within") for test in self.tests if test.kind != "count")


@cache
def claims() -> tuple[Claim, ...]:
    """All claims in the paper's order."""
    entries = read_toml(*FILE)["claims"]
    return tuple(Claim(**each | {"tests": tuple(map(_check, each.get("tests", ())))}) for each in entries)


def _check(entry: Mapping[str, Any]) -> Check:
    nets = [{"experiment": net} if isinstance(net, str) else net for net in entry.get("nets", ())]
    ends = (value_of(end) if isinstance(end, list) else end for end in entry.get("region", Check.region))
    return Check(**{**entry, "nets": tuple(Net(**net) for net in nets), "region": tuple(ends)})


def find_claim(number: int) -> Claim:
    """The claim of that number (UsageError if there is none)."""
    if not 1 <= number <= len(claims()):
        raise UsageError(f"no claim {number}: they are numbered from 1 to {len(claims())}.")
    return claims()[number - 1]


def value_of(source: Source) -> float:
    """A published value; parameters (`params_M`) are counted in ones, not millions."""
    exhibit, row, metric = source
    return published()[exhibit, row, metric].value * (1e6 if metric == "params_M" else 1)


@dataclass(frozen=True)
class Ruling:
    """What the runs of one protocol say of a claim."""

    protocol: str  # its name; "counted on the nets" where no runs are needed, "none" without any
    ours: str  # our values in words
    verdict: str  # "held", "failed", "undecided" or "not testable here"
    why: str  # the tests with their intervals, or what is missing
    notes: tuple[str, ...] = ()  # a shortened schedule, other data, every departure, seeds left out
    commands: tuple[str, ...] = ()  # what would decide it, if it is undecided
    exact: bool = True  # whether it is about the paper's own protocol, or needs none


@dataclass(frozen=True, kw_only=True)
class Verdict(Ruling):
    """A claim, its quantity and the paper's values in words, and the ruling of the protocol that counts."""

    claim: Claim
    quantity: str
    paper: str
    others: tuple[Ruling, ...] = ()  # of all other protocols

    @property
    def all_notes(self) -> tuple[str, ...]:
        """How a word of the claim is understood here, then the notes of its ruling."""
        return (self.claim.note, *self.notes) if self.claim.note else self.notes


def table(verdicts: Sequence[Verdict], sources: Sequence[str] = ()) -> Table:
    """All verdicts as a table, one row per claim and protocol; `sources` say whose the runs are."""
    notes, rows, records = Notes(), [], []
    waiting: dict[str, list[str]] = {}  # the claims that wait for a command
    for verdict in verdicts:
        claim, paper = verdict.claim, (verdict.quantity, verdict.paper)
        known = {"claim": claim.number, "section": claim.section, "words": claim.words}
        for ruling in (verdict, *verdict.others):
            head, told = ("↳", "", ""), ruling.notes
            if ruling is verdict:
                head = f"{claim.number}. {claim.words} (Section {claim.section})", *paper
                told = verdict.all_notes
            said = ruling.protocol, ruling.ours, ruling.verdict, ruling.why
            cells = (*head, *(text or DASH for text in said))
            rows.append(Row(cells, tuple(notes.number([note])[0] for note in told)))
            columns = dict(zip(COLUMNS[1:], (*paper, *said), strict=True))
            records.append({**known, **columns, "notes": " ".join(ruling.notes)})
        for command in verdict.commands:
            waiting.setdefault(command, []).append(str(claim.number))
    missing = [
        (f"claim{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}", command)
        for command, numbers in waiting.items()
    ]
    remarks = filter(None, (*sources, decided_elsewhere(verdicts), *read_toml(*FILE)["remarks"]))
    return Table(
        "claims", f"The paper's claims: {summary(verdicts)}", COLUMNS, tuple(rows), tuple(notes),
        tuple(missing), tuple(remarks), tuple(records), wraps=WRAPS, lead="What would decide the rest:",
    )  # fmt: skip


def summary(verdicts: Sequence[Verdict]) -> str:
    """`5 held (2 on shortened or other runs), 1 failed, 20 undecided, 1 not testable here`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    elsewhere = Counter(verdict.verdict for verdict in verdicts if not verdict.exact)
    told = []
    for name in STYLES:
        others = elsewhere[name] if name in (HELD, FAILED) else 0
        told.append(f"{counts[name]} {name}" + (f" ({others} on shortened or other runs)" if others else ""))
    return ", ".join(told)


def decided_elsewhere(verdicts: Sequence[Verdict]) -> str:
    """`On other runs, shown with each claim, claims 1 and 20 held.`; empty if those decide nothing more."""
    told = []
    for word in (HELD, FAILED):
        others = [v for v in verdicts if v.verdict != word and word in {other.verdict for other in v.others}]
        if others:
            *most, last = (str(verdict.claim.number) for verdict in others)
            told.append(f"claims {', '.join(most)} and {last} {word}" if most else f"claim {last} {word}")
    return f"On other runs, shown with each claim, {'; '.join(told)}." if told else ""


def one_line(verdict: Verdict) -> "RenderableType":
    """A verdict in a line of at most 80 columns."""
    from rich.text import Text

    word = SHORT.get(verdict.verdict, verdict.verdict)
    told = (f"{word:<{len(UNDECIDED)}} ", STYLES[verdict.verdict])
    return Text.assemble(f"{verdict.claim.number:>2} ", told, verdict.claim.short or verdict.claim.words)


def to_rich(verdicts: Iterable[Verdict]) -> "RenderableType":
    """The verdicts for a terminal of 80 columns, with notes and commands."""
    from rich.console import Group
    from rich.table import Column
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(Column(justify="right"), Column(overflow="fold"), padding=(0, 1, 0, 0))
    for verdict in verdicts:
        grid.add_row(f"{verdict.claim.number}.", Text(verdict.claim.words, style="bold"))
        lines = [("section", verdict.claim.section, "dim"), ("paper", verdict.paper, "dim")]
        for ruling in (verdict, *verdict.others):
            lines += [("runs", ruling.protocol, "dim"), ("ours", ruling.ours, "dim")]
            lines.append((SHORT.get(ruling.verdict, ruling.verdict), ruling.why, STYLES[ruling.verdict]))
            told = verdict.all_notes if ruling is verdict else ruling.notes
            lines += [("note", note, "dim") for note in told]
            lines += [("do", command, "cyan") for command in ruling.commands]
        name = Column(no_wrap=True, min_width=len(UNDECIDED))
        below = RichTable.grid(name, Column(overflow="fold"), padding=(0, 1, 0, 0))
        for label, words, style in lines:
            if words:
                below.add_row(Text(label, style=style), Text(words))
        grid.add_row("", Group(below, Text("")))
    return grid
