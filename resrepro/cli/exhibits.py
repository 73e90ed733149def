"""`resrepro compare` and `resrepro plot`: from run records to tables and figures, without torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from resrepro.cli import app
from resrepro.cli.options import RunFoldersOption
from resrepro.errors import UsageError
from resrepro.records.collection import DEFAULT_FOLDERS, Collection, collect

SettingsFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--settings", metavar="KEY=VALUE", show_default=False,
        help="Only runs with this setting, e.g. iterations=2000; may be repeated.",
    ),
]  # fmt: skip


class WithExhibits(TyperCommand):
    """A command whose help names the exhibits; they are looked up only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, the names in place of the word NAMES."""
        from resrepro import figures as known

        names = known.tables() if self.name == "compare" else known.figures()
        parameter: Any = next(parameter for parameter in self.params if parameter.name == "exhibits")
        parameter.help = parameter.help.replace("NAMES", ", ".join(names))
        super().format_help(ctx, formatter)


def read_records(folders: Iterable[Path] | None, settings: Iterable[str] | None = None) -> Collection:
    """The good records below some folders that have some settings; each broken one is named on stderr.

    Raises:
        UsageError: if a folder that was named does not exist, or there are no such runs.
    """
    given = list(folders or [])
    for folder in given:
        if not folder.exists():
            raise UsageError(f"there is no runs folder {folder}: name one that exists with --runs.")
    found = collect(given or map(Path, DEFAULT_FOLDERS))
    for sentence in found.broken:
        Console(stderr=True, highlight=False).print(f"left out: {sentence}", markup=False, soft_wrap=True)
    return found.having(dict(map(_pair, settings or ())))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--settings takes KEY=VALUE, such as iterations=2000, not {text!r}.")
    return key.strip(), value.strip()


@app.command(rich_help_panel="Read", cls=WithExhibits)
def compare(
    exhibits: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXHIBIT...", help="NAMES. (default: table6)", show_default=False),
    ] = None,
    runs: RunFoldersOption = None,
    tables: Annotated[
        Path, typer.Option("--tables", metavar="DIR", help="Where the tables are written.")
    ] = Path("tables"),
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="Instead: last, best run, best sample, chosen on validation."),
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Runs of all protocols, not of one.")] = False,
    settings: SettingsFilter = None,
) -> None:
    """Print and write the paper's rows with ours beside them (Markdown, CSV, LaTeX)."""
    from resrepro.comparison.statistics import build_statistics
    from resrepro.comparison.table import to_rich, write_table
    from resrepro.figures import build_table, check_table

    names = exhibits or ["table6"]
    for name in names:
        check_table(name)
    found = read_records(runs, settings)
    console = Console(highlight=False)
    for name in names:
        table = build_statistics(name, found) if statistics else build_table(name, found, every=every)
        console.print(to_rich(table))
        paths = write_table(table, tables)
        console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


@app.command(rich_help_panel="Read", cls=WithExhibits)
def plot(
    exhibits: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXHIBIT...", help="NAMES. (default: figure6)", show_default=False),
    ] = None,
    runs: RunFoldersOption = None,
    figures: Annotated[
        Path, typer.Option("--figures", metavar="DIR", help="Where the figures are written.")
    ] = Path("figures"),
    paper: Annotated[bool, typer.Option("--paper", help="The paper's own curves thin behind ours.")] = False,
    palette: Annotated[str, typer.Option(help="paper, or safe for colour-blind readers.")] = "paper",
    settings: SettingsFilter = None,
) -> None:
    """Draw the paper's figures from run records (PNG, SVG)."""
    from resrepro.figures import check_figure, draw_figure

    names = exhibits or ["figure6"]
    for name in names:
        check_figure(name, palette)
    found = read_records(runs, settings)
    console = Console(highlight=False)
    for name in names:
        drawing = draw_figure(name, found.runs, figures, paper=paper, palette=palette)
        for note in drawing.notes:
            console.print(note, markup=False)
        console.print(f"Written: {', '.join(map(str, drawing.paths))}", markup=False, soft_wrap=True)
