"""`resrepro compare` and `resrepro plot`: from run records to tables and figures, without torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import RunFoldersOption
from resrepro.errors import UsageError
from resrepro.records import DEFAULT_FOLDERS, Run, collect


def read_runs(folders: Iterable[Path] | None) -> tuple[Run, ...]:
    """The good runs below some folders; each broken one is named on stderr.

    Raises:
        UsageError: if a folder that was named does not exist.
    """
    given = list(folders or [])
    for folder in given:
        if not folder.exists():
            raise UsageError(f"there is no runs folder {folder}: name one that exists with --runs.")
    found = collect(given or map(Path, DEFAULT_FOLDERS))
    for sentence in found.broken:
        Console(stderr=True, highlight=False).print(f"left out: {sentence}", markup=False, soft_wrap=True)
    return found.runs


@app.command(rich_help_panel="Read")
def compare(
    exhibits: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXHIBIT...",
            help="table6, figure1, figure6, demo. (default: table6)",
            show_default=False,
        ),
    ] = None,
    runs: RunFoldersOption = None,
    tables: Annotated[
        Path, typer.Option("--tables", metavar="DIR", help="Where the tables are written.")
    ] = Path("tables"),
) -> None:
    """Print and write the paper's rows with ours beside them (Markdown, CSV, LaTeX)."""
    from resrepro.comparison import build
    from resrepro.paper import layout
    from resrepro.tables import to_rich, write_table

    names = exhibits or ["table6"]
    for name in names:
        layout(name)
    found = read_runs(runs)
    console = Console(highlight=False)
    for name in names:
        table = build(name, found)
        console.print(to_rich(table))
        paths = write_table(table, tables)
        console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


@app.command(rich_help_panel="Read")
def plot(
    exhibits: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXHIBIT...", help="figure1, figure6, demo. (default: figure6)", show_default=False
        ),
    ] = None,
    runs: RunFoldersOption = None,
    figures: Annotated[
        Path, typer.Option("--figures", metavar="DIR", help="Where the figures are written.")
    ] = Path("figures"),
    paper: Annotated[bool, typer.Option("--paper", help="The paper's own curves thin behind ours.")] = False,
    palette: Annotated[str, typer.Option(help="paper, or safe for colour-blind readers.")] = "paper",
) -> None:
    """Draw the paper's figures from run records (PNG, SVG)."""
    from resrepro.plotting import check, draw

    names = exhibits or ["figure6"]
    for name in names:
        check(name, palette)
    found = read_runs(runs)
    console = Console(highlight=False)
    for name in names:
        drawing = draw(name, found, figures, paper=paper, palette=palette)
        for note in drawing.notes:
            console.print(note, markup=False)
        console.print(f"Written: {', '.join(map(str, drawing.paths))}", markup=False, soft_wrap=True)
