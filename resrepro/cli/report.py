"""`resrepro report`: one HTML file with everything that the records say, without torch."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.exhibits import SettingsFilter, read_records
from resrepro.cli.options import RunFoldersOption
from resrepro.errors import UsageError

HEAD = 4096  # bytes of a page in which it says what made it


@app.command(rich_help_panel="Read")
def report(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file that is written.")] = Path(
        "report.html"
    ),
    runs: RunFoldersOption = None,
    settings: SettingsFilter = None,
) -> None:
    """Write one HTML file: verdicts, the paper's numbers beside ours, curves, protocol, departures."""
    from resrepro.claims.judging import judge
    from resrepro.records.storage import write_out
    from resrepro.report import build_report

    check_place(out)
    found = read_records(runs, settings)
    page = build_report(found, judge(found.runs)).encode()
    write_out(out, page)
    console = Console(highlight=False)
    console.print(f"Written: {out} ({len(page) / 1e6:.1f} MB)", markup=False, soft_wrap=True)


def check_place(out: Path) -> None:
    """Check that a report may be written to a file: a new one, or an earlier report.

    Raises:
        UsageError: if not.
    """
    from resrepro.report import GENERATOR

    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise UsageError(f"--out takes the name of an HTML file, such as report.html, not {out}.")
    if out.exists():
        with out.open("rb") as file:
            head = file.read(HEAD).decode(errors="replace")
        if f'name="generator" content="{GENERATOR}"' not in head:
            raise UsageError(f"{out} is no report of ours: give --out another name, nothing is overwritten.")
