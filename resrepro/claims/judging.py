"""From run records to a verdict on each claim of the paper."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resrepro.claims.comparing import UNDECIDED, together
from resrepro.claims.counting import TITLES, count, paper_ratio, spell_count
from resrepro.claims.entries import Check, Claim, Net, Source, claims, value_of
from resrepro.claims.measures import MEASURES, Measure, paper_curve, paper_row, paper_value
from resrepro.claims.protocols import caveats, is_exact, left_out_told, protocols_for
from resrepro.claims.testing import Outcome, smoothed, try_out
from resrepro.comparison.groups import Protocol
from resrepro.paper import published
from resrepro.records import Run

UNTESTABLE = "not testable here"
BY_COUNTING = "counted on the nets"
NO_RUNS = "none"


@dataclass(frozen=True)
class Ruling:
    """What the runs of one protocol say of a claim.

    Attributes:
        protocol: its name in short; "counted on the nets" where no runs are needed, "none" without any.
        ours: our values in words.
        verdict: "held", "failed", "undecided" or "not testable here".
        why: the tests with their intervals, or what is missing.
        notes: what must be said beside it: a shortened schedule, other data, every departure, seeds left out.
        commands: what would decide it, if it is undecided.
        exact: whether it is about the paper's own protocol, or needs none.
    """

    protocol: str
    ours: str
    verdict: str
    why: str
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Verdict:
    """A claim of the paper, its numbers and ours, and whether it held.

    `ruling` is that of the longest protocol under which all nets stand that it compares, `others` are those
    of all others; whether a protocol speaks for the claim plays no part in the choice.
    """

    number: int
    section: str
    words: str
    quantity: str
    paper: str
    ruling: Ruling
    others: tuple[Ruling, ...] = ()
    remark: str = ""
    """How a word of the claim is understood here."""

    @property
    def verdict(self) -> str:
        """One of "held", "failed", "undecided", "not testable here"."""
        return self.ruling.verdict

    @property
    def ours(self) -> str:
        """Our values in words."""
        return self.ruling.ours

    @property
    def why(self) -> str:
        """The tests with their intervals, or what is missing."""
        return self.ruling.why

    @property
    def protocol(self) -> str:
        """The protocol of the runs in short."""
        return self.ruling.protocol

    @property
    def commands(self) -> tuple[str, ...]:
        """What would decide the claim, if it is undecided."""
        return self.ruling.commands

    @property
    def notes(self) -> tuple[str, ...]:
        """How the claim is understood, and every departure of the runs from the paper."""
        return tuple(note for note in (self.remark, *self.ruling.notes) if note)


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """A verdict on each claim of the paper, in its order."""
    return tuple(verdict_on(claim, runs) for claim in claims())


def verdict_on(claim: Claim, runs: Iterable[Run]) -> Verdict:
    """The verdict on one claim."""
    first, *others = _rulings(claim, runs)
    return Verdict(
        number=claim.number,
        section=claim.section,
        words=claim.words,
        quantity=claim.quantity or "; ".join(dict.fromkeys(map(_quantity, claim.tests))),
        paper=paper_words(claim),
        ruling=first,
        others=tuple(others),
        remark=claim.note,
    )


def _rulings(claim: Claim, runs: Iterable[Run]) -> list[Ruling]:
    if claim.untestable:
        return [Ruling("", "", UNTESTABLE, claim.untestable)]
    if not claim.nets:
        return [_ruling(claim, None)]
    measures = [MEASURES[test.measure] for test in claim.tests if test.kind != "count"]
    found = protocols_for(claim, runs, any(measure.sampled for measure in measures))
    return [_ruling(claim, protocol) for protocol in found] or [_ruling(claim, None)]


def _ruling(claim: Claim, protocol: Protocol[Net] | None) -> Ruling:
    """What the runs of a protocol, or no runs at all, say of all tests of a claim together."""
    outcomes = [
        count(test) if test.kind == "count" else try_out(test, protocol, claim.comparisons)
        for test in claim.tests
    ]
    state = together([outcome.state for outcome in outcomes])
    commands = (command for outcome in outcomes for command in outcome.commands)
    part = protocol.held_out if protocol else "test"
    return Ruling(
        protocol=(NO_RUNS if claim.nets else BY_COUNTING) if protocol is None else protocol.name,
        ours=_joined(claim.tests, [outcome.ours for outcome in outcomes], part),
        verdict=state,
        why=_why(claim, outcomes, part),
        notes=tuple(filter(None, (caveats(protocol), left_out_told(protocol)))) if protocol else (),
        commands=tuple(dict.fromkeys(commands)) if state == UNDECIDED else (),
        exact=protocol is None or is_exact(protocol),
    )


def _why(claim: Claim, outcomes: Sequence[Outcome], part: str) -> str:
    """The comparisons of all tests, then which nets lack runs or seeds."""
    told = [_joined(claim.tests, [outcome.told for outcome in outcomes], part)]
    for words, nets in (
        ("no runs of", [net.label for outcome in outcomes for net in outcome.missing]),
        ("not measured yet of", [name for outcome in outcomes for name in outcome.unmeasured]),
        ("needs more than one seed of", [net.label for outcome in outcomes for net in outcome.single]),
    ):
        if nets:
            told.append(f"{words} {', '.join(dict.fromkeys(nets))}")
    return "; ".join(text for text in told if text)


def _title(test: Check, part: str = "test") -> str:
    """What a test is about, of runs whose headline set is `part`."""
    return TITLES[test.measure] if test.kind == "count" else MEASURES[test.measure].title_on(part)


def _quantity(test: Check) -> str:
    unit = "" if test.kind == "count" else MEASURES[test.measure].unit
    return _title(test) + (f" ({unit})" if unit else "")


def _joined(tests: Sequence[Check], told: Sequence[Sequence[str]], part: str = "test") -> str:
    """What is told of each test, each thing once, led by its quantity where that is not clear.

    It is not where they are of several, or where the paper's is a test error and these are none.
    """
    parts: dict[str, list[str]] = {}
    for test, words in zip(tests, told, strict=True):
        parts.setdefault(_title(test, part), []).extend(words)
    several = len(parts) > 1 or list(parts) != list(dict.fromkeys(map(_title, tests)))
    return "; ".join(
        (f"{title}: " if several else "") + ", ".join(dict.fromkeys(words))
        for title, words in parts.items()
        if words
    )


def paper_words(claim: Claim) -> str:
    """The paper's own values of a claim: of its tests, printed beside them, or said in words."""
    parts = [_joined(claim.tests, [_paper_of(test) for test in claim.tests])]
    parts += [", ".join(f"{told} {_spell(source)}" for told, source in claim.printed), claim.said]
    return "; ".join(part for part in parts if part)


def _spell(source: Source) -> str:
    value = value_of(source)
    return spell_count(value) if value >= 1e6 else f"{published()[source].value:g}"


def _paper_of(test: Check) -> list[str]:
    """The paper's own values for a test, one by one."""
    if test.kind == "count":
        return [paper_ratio(test)] if test.ratio else []
    if not test.paper:
        return []
    measure = MEASURES[test.measure]
    rows = {net.label: paper_row(test.paper, net.experiment, net.label) for net in test.nets}
    if test.kind == "throughout":
        return [_paper_curves(test, list(rows.values()))]
    numbers = {label: _paper_net(measure, test.paper, row) for label, row in rows.items()}
    return [f"{label} {number}" for label, number in numbers.items() if number]


def _paper_net(measure: Measure, exhibit: str, row: str) -> str:
    number = paper_value(measure, exhibit, row)
    if number is None:
        return ""
    return measure.number(number.value) + (f"±{number.std:.{measure.digits}f}" if number.std else "")


def _paper_curves(test: Check, rows: Sequence[str]) -> str:
    """At how many of the samples that the paper drew of both nets its first one lies above the second."""
    curves = [{round(at): error for at, error in paper_curve(test.paper, row).items()} for row in rows]
    told = []
    for window, name in ((1, "samples"), (test.window, f"stretches of {test.window}")):
        upper, lower = (smoothed(curve, window) for curve in _at_common(*curves))
        above = sum(upper[at] > lower[at] for at in upper)
        told.append(f"{above} of {len(upper)} {name}")
    return f"{rows[0]} above {rows[1]} at {', '.join(dict.fromkeys(told))}"


def _at_common(
    first: dict[int, float], second: dict[int, float]
) -> tuple[dict[int, float], dict[int, float]]:
    common = first.keys() & second.keys()
    return {at: first[at] for at in common}, {at: second[at] for at in common}
