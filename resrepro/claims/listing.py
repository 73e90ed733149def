"""Verdicts as a table (Markdown, CSV, LaTeX) and as a list for the terminal."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from resrepro.claims.comparing import FAILED, HELD, UNDECIDED
from resrepro.claims.judging import UNTESTABLE, Ruling, Verdict
from resrepro.comparison.table import DASH, Row, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from resrepro.report.verdicts import Judged

DECIDED = (HELD, FAILED)
VERDICTS = (*DECIDED, UNDECIDED, UNTESTABLE)
STYLES = {HELD: "green", FAILED: "red", UNDECIDED: "yellow", UNTESTABLE: "dim"}
TITLE = "The paper's claims"
COLUMNS = ("claim", "quantity", "paper", "runs", "ours", "verdict", "why")
WRAPS = (0.22, 0.1, 0.14, 0.1, 0.16, 0.08, 0.14)
LEAD = "What would decide the rest:"
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


def table(verdicts: Sequence[Verdict], sources: Sequence[str] = ()) -> Table:
    """All verdicts as a table, one row per claim and protocol; `sources` say whose the runs are."""
    notes: dict[str, int] = {}
    rows = []
    for verdict in verdicts:
        for number, ruling in enumerate((verdict.ruling, *verdict.others)):
            told = [verdict.remark] if number == 0 and verdict.remark else []
            marks = tuple(notes.setdefault(note, len(notes) + 1) for note in (*told, *ruling.notes))
            head = (_head(verdict), verdict.quantity, verdict.paper) if number == 0 else ("↳", "", "")
            rows.append(Row((*head, *_cells(ruling)), marks))
    return Table(
        name="claims",
        title=f"{TITLE}: {summary(verdicts)}",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        missing=_deciding(verdicts),
        remarks=tuple(text for text in (*sources, decided_elsewhere(verdicts), *REMARKS) if text),
        records=tuple(_record(verdict, ruling) for verdict in verdicts for ruling in _rulings(verdict)),
        wraps=WRAPS,
        lead=LEAD,
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """`5 held (2 on shortened or other runs), 1 failed, 20 undecided, 1 not testable here`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    elsewhere = Counter(verdict.verdict for verdict in verdicts if not verdict.ruling.exact)
    return ", ".join(
        f"{counts[name]} {name}"
        + (f" ({elsewhere[name]} on shortened or other runs)" if name in DECIDED and elsewhere[name] else "")
        for name in VERDICTS
    )


def decided_elsewhere(verdicts: "Sequence[Judged]") -> str:
    """`On other runs, shown with each claim, claims 1 and 20 held.`; empty if those decide nothing more."""
    told = []
    for word in DECIDED:
        found = [v.number for v in verdicts if v.verdict != word and word in {o.verdict for o in v.others}]
        if found:
            told.append(f"{_numbered(found)} {word}")
    return f"On other runs, shown with each claim, {'; '.join(told)}." if told else ""


def _numbered(numbers: Sequence[int]) -> str:
    """`claim 3`, or `claims 1, 4 and 20`."""
    *most, last = map(str, numbers)
    return f"claims {', '.join(most)} and {last}" if most else f"claim {last}"


def _rulings(verdict: Verdict) -> tuple[Ruling, ...]:
    return verdict.ruling, *verdict.others


def _head(verdict: Verdict) -> str:
    return f"{verdict.number}. {verdict.words} (Section {verdict.section})"


def _cells(ruling: Ruling) -> tuple[str, ...]:
    return ruling.protocol or DASH, ruling.ours or DASH, ruling.verdict, ruling.why


def _deciding(verdicts: Iterable[Verdict]) -> tuple[tuple[str, str], ...]:
    """Each command that would decide something, once, with the claims that wait for it."""
    waiting: dict[str, list[int]] = {}
    for verdict in verdicts:
        for command in verdict.commands:
            waiting.setdefault(command, []).append(verdict.number)
    return tuple(
        (f"claim{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}", command)
        for command, numbers in waiting.items()
    )


def _record(verdict: Verdict, ruling: Ruling) -> dict[str, object]:
    return {
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
    for ruling in _rulings(verdict):
        lines += [("runs", ruling.protocol, "dim"), ("ours", ruling.ours, "dim")]
        lines.append((_short(ruling.verdict), ruling.why, STYLES[ruling.verdict]))
        if detailed:
            lines += [("note", note, "dim") for note in ruling.notes]
            lines += [("do", command, "cyan") for command in ruling.commands]
    if detailed:
        lines.append(("note", verdict.remark, "dim"))
    return [line for line in lines if line[1]]


def _short(verdict: str) -> str:
    return "no test" if verdict == UNTESTABLE else verdict
