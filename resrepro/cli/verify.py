"""`resrepro verify`: what is broken, and what can still be used."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrepro.cli import app

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from resrepro.evaluation.verification import Report


@app.command(rich_help_panel="Read")
def verify(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", show_default=False,
            help="Runs, folders of runs, or files that eval wrote. (default: runs, results)",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", show_default=False,
            help="Compare the checksums of these data too. (default: $RESREPRO_DATA; digits always)",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Check records, checkpoints and checksums: what is broken, and what can still be used."""
    from rich.console import Console
    from rich.text import Text

    from resrepro.evaluation.verification import verify as look

    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    reports = []
    for report in look(*(runs or []), data=data, say=lambda text: _print(Text(text), errors, 0)):
        _show(report, console)
        reports.append(report)
    console.print(_count(reports))
    if any(report.broken for report in reports):
        raise typer.Exit(1)


def _show(report: "Report", console: "Console") -> None:
    """One line, and one more for each trouble and note; of what is broken, also what can be used."""
    from rich.text import Text

    from resrepro.evaluation.verification.reports import shown_path

    verdict = ("broken", "red") if report.broken else ("whole", "green")
    head = Text.assemble(f"{shown_path(report.path)}: ", verdict)
    summary = Text(f" ({report.summary})" if report.summary else "")
    if console.is_terminal and head.cell_len + summary.cell_len > console.width:
        _print(head, console, 0)
        _print(summary, console, 1)
    else:
        _print(head + summary, console, 0)
    for sentence in report.troubles:
        _print(Text.assemble(("broken: ", "red"), sentence), console, 2)
    for sentence in report.notes:
        _print(Text(f"note: {sentence}"), console, 2)
    if report.broken and report.uses:
        _print(Text(f"still of use: {'; '.join(report.uses)}."), console, 2)


def _print(text: "Text", console: "Console", indent: int) -> None:
    """Print a line, wrapped under its own beginning in a terminal and left whole in a pipe."""
    from rich.padding import Padding

    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent), expand=False))
    else:
        console.print(" " * indent, text, sep="", soft_wrap=True)


def _count(reports: Iterable["Report"]) -> str:
    """`14 runs and 1 ensemble whole, 1 broken.`"""
    whole = Counter(report.kind for report in reports if not report.broken)
    broken = sum(report.broken for report in reports)
    listed = [f"{whole[kind]} {kind}{'s' * (whole[kind] != 1)}" for kind in sorted(whole, reverse=True)]
    return f"{' and '.join(listed) or 'None'} whole, {broken} broken."
