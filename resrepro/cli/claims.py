"""`resrepro claims`: a verdict on each claim of the paper, from run records, without torch."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.exhibits import SettingsFilter, read_records
from resrepro.cli.options import RunFoldersOption


@app.command(rich_help_panel="Read")
def claims(
    numbers: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="NUMBER...", help="Claims to show in detail. (default: all)", show_default=False
        ),
    ] = None,
    runs: RunFoldersOption = None,
    settings: SettingsFilter = None,
    tables: Annotated[
        Path, typer.Option("--tables", metavar="DIR", help="Where the table of all claims is written.")
    ] = Path("tables"),
) -> None:
    """Say claim by claim whether the paper's statement held in your runs (also Markdown, CSV, LaTeX)."""
    from resrepro.claims.entries import find_claim
    from resrepro.claims.judging import judge
    from resrepro.claims.listing import decided_elsewhere, summary, table, to_rich
    from resrepro.comparison.table import write_table

    wanted = {find_claim(number).number for number in numbers or ()}
    found = read_records(runs, settings)
    verdicts = judge(found.runs)
    shown = [verdict for verdict in verdicts if not wanted or verdict.number in wanted]
    console = Console(highlight=False)
    console.print(to_rich(shown, detailed=bool(wanted)))
    console.print(f"All {len(verdicts)} claims: {summary(verdicts)}.", markup=False)
    for sentence in (*found.sources, decided_elsewhere(verdicts)):
        console.print(sentence, markup=False, end="\n" if sentence else "")
    paths = write_table(table(verdicts, found.sources), tables)
    console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
