"""From run records to a verdict on each claim of the paper, as a table and as a list for the terminal."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resrepro.claims import Check, Claim, Net, claims, value_of
from resrepro.claims.measures import (
    MEASURES,
    counted,
    paper_curve,
    paper_row,
    paper_value,
    smoothed,
    spell_ratio,
)
from resrepro.claims.testing import FAILED, HELD, LACKING, UNDECIDED, Outcome, count, together, try_out
from resrepro.comparison.groups import FREE_SETTINGS, WARM_UP, Protocol, protocols_of
from resrepro.comparison.table import DASH, Row, Table
from resrepro.records import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

UNTESTABLE = "not testable here"
DECIDED = (HELD, FAILED)
STYLES = {HELD: "green", FAILED: "red", UNDECIDED: "yellow", UNTESTABLE: "dim"}
COLUMNS = ("claim", "quantity", "paper", "runs", "ours", "verdict", "why")
WRAPS = (0.22, 0.1, 0.14, 0.1, 0.16, 0.08, 0.14)
REMARKS = (
    "Ours: mean ± standard deviation (n runs) at the last iteration; in brackets the two-sided 95 % "
    "interval, by Welch's t test for a difference and Student's for a mean. A claim held if all its "
    "intervals lie where it says, failed if one lies elsewhere, and is undecided otherwise: a gap "
    "within the spread over seeds is never called held, nor is one seed each, nor what a seed that "
    "diverged or was not measured could turn.",
    "Several comparisons: a claim that held needs each of them at 95 %; one that failed has one beyond "
    "the interval of 1 − 0.05/k, k being the number of its comparisons (Bonferroni). Over claims "
    "nothing is corrected: a claim with nothing behind it would be called held in one case of forty.",
    "Runs: a verdict is on one protocol, whichever way it speaks: on the paper's data the longest schedule "
    "under which all nets stand that the claim compares (else most of them), then the paper's split, then "
    "the most seeds. Those on other protocols stand below (↳). A shortened schedule or other images give a "
    "verdict on just these.",
    "The paper's values of curves are read off its figures: ±0.03 on CIFAR-10, ±0.06 on ImageNet, "
    "training errors as the mean of the last five samples.",
)


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


@dataclass(frozen=True, kw_only=True)
class Verdict(Ruling):
    """A claim of the paper, its numbers and ours, and whether it held.

    The ruling is that of the longest protocol under which all nets stand that it compares, `others` are those
    of all others; whether a protocol speaks for the claim plays no part in the choice. `remark` says how a
    word of the claim is understood here.
    """

    number: int
    section: str
    words: str
    quantity: str
    paper: str
    others: tuple[Ruling, ...] = ()
    remark: str = ""

    @property
    def rulings(self) -> tuple[Ruling, ...]:
        """The first and the others."""
        return self, *self.others


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """A verdict on each claim of the paper, in its order."""
    return tuple(verdict_on(claim, runs) for claim in claims())


def verdict_on(claim: Claim, runs: Iterable[Run]) -> Verdict:
    """The verdict on one claim."""
    first, *others = _rulings(claim, runs)
    measures = [MEASURES[test.measure] for test in claim.tests]
    quantities = [each.title + (f" ({each.unit})" if each.unit else "") for each in measures]
    return Verdict(
        **vars(first),
        number=claim.number,
        section=claim.section,
        words=claim.words,
        quantity=claim.quantity or "; ".join(dict.fromkeys(quantities)),
        paper=paper_words(claim),
        others=tuple(others),
        remark=claim.note,
    )


def _rulings(claim: Claim, runs: Iterable[Run]) -> list[Ruling]:
    """That of each protocol under which there are runs of its nets, the one that is judged first first.

    It is the longest under which all nets that it compares stand, else that of most nets. Runs of one
    protocol may differ in how often they are sampled, unless a test depends on it.
    """
    if claim.untestable:
        return [Ruling("", "", UNTESTABLE, claim.untestable)]
    runs = list(runs)
    sampled = any(MEASURES[test.measure].sampled for test in claim.tests)
    members = {net: [run for run in runs if net.has(run)] for net in claim.nets}
    protocols = protocols_of(members, len(claim.nets), WARM_UP if sampled else FREE_SETTINGS)
    return [_ruling(claim, protocol) for protocol in protocols] or [_ruling(claim, None)]


def _ruling(claim: Claim, protocol: Protocol[Net] | None) -> Ruling:
    """What the runs of a protocol, or no runs at all, say of all tests of a claim together."""
    outcomes = [
        count(test) if test.kind == "count" else try_out(test, protocol, claim.comparisons)
        for test in claim.tests
    ]
    state = together([outcome.state for outcome in outcomes])
    commands = dict.fromkeys(command for outcome in outcomes for command in outcome.commands)
    part = protocol.held_out if protocol else "test"
    without_runs = "none" if claim.nets else "counted on the nets"
    return Ruling(
        protocol=protocol.name if protocol else without_runs,
        ours=_joined(claim.tests, [outcome.ours for outcome in outcomes], part),
        verdict=state,
        why=_why(claim, outcomes, part),
        notes=_notes(protocol) if protocol else (),
        commands=tuple(commands) if state == UNDECIDED else (),
        exact=protocol is None or _is_exact(protocol),
    )


def _is_exact(protocol: Protocol[Net]) -> bool:
    """Whether it is the paper's own: its specification of each net, in default mode, on official data."""
    return all(
        run.digest == net.spec.digest and run.env["mode"] == "default" and not run.result["notices"]
        for net, group in protocol.groups.items()
        for run in group.runs
    )


def _notes(protocol: Protocol[Net]) -> tuple[str, ...]:
    """What must be said beside a ruling: every departure, and which seeds have no part in it."""
    notes = []
    groups = protocol.groups.values()
    caveats = dict.fromkeys(text for group in groups for text in group.caveats([{"set": protocol.held_out}]))
    if caveats:
        which = "the shortened" if protocol.first.status == "shortened" else "this"
        notes.append(f"About {which} protocol ({protocol.name}): {'; '.join(caveats)}.")
    left_out = [
        f"{net.label} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
        for net, runs in protocol.left_out.items()
        for run in runs
    ]
    if left_out:
        notes.append(f"Left out: {', '.join(left_out)}.")
    return tuple(notes)


def _why(claim: Claim, outcomes: Sequence[Outcome], part: str) -> str:
    """The comparisons of all tests, then which nets lack runs or seeds."""
    told = [_joined(claim.tests, [outcome.told for outcome in outcomes], part)]
    for words in LACKING:
        names = [name for outcome in outcomes for reason, name in outcome.lacking if reason == words]
        if names:
            told.append(f"{words} {', '.join(dict.fromkeys(names))}")
    return "; ".join(text for text in told if text)


def _joined(tests: Sequence[Check], told: Sequence[Sequence[str]], part: str = "test") -> str:
    """What is told of each test, each thing once, led by its quantity where that is not clear.

    It is not where they are of several, or where the paper's is a test error and these are none.
    """
    parts: dict[str, list[str]] = {}
    for test, words in zip(tests, told, strict=True):
        parts.setdefault(MEASURES[test.measure].title_on(part), []).extend(words)
    named = len(parts) > 1 or any(MEASURES[test.measure].title not in parts for test in tests)
    return "; ".join(
        (f"{title}: " if named else "") + ", ".join(dict.fromkeys(words))
        for title, words in parts.items()
        if words
    )


def paper_words(claim: Claim) -> str:
    """The paper's own values of a claim: of its tests, printed beside them, or said in words."""
    printed = ", ".join(f"{told} {value_of(source):g}" for told, source in claim.printed)
    parts = [_joined(claim.tests, [_paper_of(test) for test in claim.tests]), printed, claim.said]
    return "; ".join(part for part in parts if part)


def _paper_of(test: Check) -> list[str]:
    """The paper's own values for a test, one by one."""
    if test.kind == "count":
        return [spell_ratio(*(counted(test.measure, source) for source in test.ratio))] if test.ratio else []
    if not test.paper:
        return []
    measure = MEASURES[test.measure]
    rows = {net.label: paper_row(test.paper, net.experiment, net.label) for net in test.nets}
    if test.kind == "throughout":
        return [_paper_curves(test, *rows.values())]
    told = []
    for label, row in rows.items():
        if number := paper_value(measure, test.paper, row):
            spread = f"±{number.std:.{measure.digits}f}" if number.std else ""
            told.append(f"{label} {measure.number(number.value)}{spread}")
    return told


def _paper_curves(test: Check, first: str, second: str) -> str:
    """At how many of the samples that the paper drew of both nets its first one lies above the second."""
    curves = [paper_curve(test.paper, row) for row in (first, second)]
    common = curves[0].keys() & curves[1].keys()
    told = []
    for window, name in ((1, "samples"), (test.window, f"stretches of {test.window}")):
        upper, lower = (smoothed({at: curve[at] for at in common}, window) for curve in curves)
        above = sum(upper[at] > lower[at] for at in upper)
        told.append(f"{above} of {len(upper)} {name}")
    return f"{first} above {second} at {', '.join(dict.fromkeys(told))}"


def table(verdicts: Sequence[Verdict], sources: Sequence[str] = ()) -> Table:
    """All verdicts as a table, one row per claim and protocol; `sources` say whose the runs are."""
    notes: dict[str, int] = {}
    rows, records = [], []
    for verdict in verdicts:
        claim = f"{verdict.number}. {verdict.words} (Section {verdict.section})"
        for ruling in verdict.rulings:
            first = ruling is verdict
            told = [verdict.remark] if first and verdict.remark else []
            marks = tuple(notes.setdefault(note, len(notes) + 1) for note in (*told, *ruling.notes))
            head = (claim, verdict.quantity, verdict.paper) if first else ("↳", "", "")
            ours = (ruling.protocol or DASH, ruling.ours or DASH, ruling.verdict, ruling.why)
            rows.append(Row((*head, *ours), marks))
            records.append(
                {
                    "claim": verdict.number,
                    "section": verdict.section,
                    "words": verdict.words,
                    "quantity": verdict.quantity,
                    "paper": verdict.paper,
                    "runs": ruling.protocol,
                    "ours": ruling.ours,
                    "verdict": ruling.verdict,
                    "why": ruling.why,
                    "notes": " ".join(ruling.notes),
                }
            )
    return Table(
        name="claims",
        title=f"The paper's claims: {summary(verdicts)}",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        missing=_deciding(verdicts),
        remarks=tuple(text for text in (*sources, decided_elsewhere(verdicts), *REMARKS) if text),
        records=tuple(records),
        wraps=WRAPS,
        lead="What would decide the rest:",
    )


def _deciding(verdicts: Iterable[Verdict]) -> tuple[tuple[str, str], ...]:
    """Each command that would decide something, once, with the claims that wait for it."""
    waiting: dict[str, list[str]] = {}
    for verdict in verdicts:
        for command in verdict.commands:
            waiting.setdefault(command, []).append(str(verdict.number))
    return tuple(
        (f"claim{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}", command)
        for command, numbers in waiting.items()
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """`5 held (2 on shortened or other runs), 1 failed, 20 undecided, 1 not testable here`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    elsewhere = Counter(verdict.verdict for verdict in verdicts if not verdict.exact)
    return ", ".join(
        f"{counts[name]} {name}"
        + (f" ({elsewhere[name]} on shortened or other runs)" if name in DECIDED and elsewhere[name] else "")
        for name in STYLES
    )


def decided_elsewhere(verdicts: Sequence[Verdict]) -> str:
    """`On other runs, shown with each claim, claims 1 and 20 held.`; empty if those decide nothing more."""
    told = []
    for word in DECIDED:
        others = [v for v in verdicts if v.verdict != word and word in {o.verdict for o in v.others}]
        if others:
            *most, last = (str(verdict.number) for verdict in others)
            told.append(f"claims {', '.join(most)} and {last} {word}" if most else f"claim {last} {word}")
    return f"On other runs, shown with each claim, {'; '.join(told)}." if told else ""


def to_rich(verdicts: Sequence[Verdict], *, detailed: bool) -> "RenderableType":
    """The verdicts for a terminal of 80 columns; in detail with notes and commands."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right")
    grid.add_column()
    for verdict in verdicts:
        grid.add_row(f"{verdict.number}.", Text(verdict.words, style="bold"))
        below = RichTable.grid(padding=(0, 1, 0, 0))
        below.add_column(no_wrap=True, min_width=len(UNDECIDED))
        below.add_column()
        for label, words, style in _lines(verdict, detailed=detailed):
            below.add_row(Text(label, style=style), Text(words))
        grid.add_row("", Group(below, Text("")))
    return grid


def _lines(verdict: Verdict, *, detailed: bool) -> list[tuple[str, str, str]]:
    """Label, words and the label's style of each line below a claim."""
    lines = [("section", verdict.section, "dim"), ("paper", verdict.paper, "dim")]
    for ruling in verdict.rulings:
        lines += [("runs", ruling.protocol, "dim"), ("ours", ruling.ours, "dim")]
        label = "no test" if ruling.verdict == UNTESTABLE else ruling.verdict
        lines.append((label, ruling.why, STYLES[ruling.verdict]))
        if detailed:
            lines += [("note", note, "dim") for note in ruling.notes]
            lines += [("do", command, "cyan") for command in ruling.commands]
    if detailed:
        lines.append(("note", verdict.remark, "dim"))
    return [line for line in lines if line[1]]
