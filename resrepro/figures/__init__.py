"""The paper's figures, and every exhibit by its name: Table 1 and Figure 3 come from the nets, all others
from run records.

`compare` and `plot` are the public calls; `build_table` and `draw_figure` take records already read.
"""

import base64
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from resrepro.comparison import tables as record_tables
from resrepro.comparison.table import Table, write_table
from resrepro.errors import UsageError
from resrepro.figures import architecture, curves, responses
from resrepro.figures.drawing import FORMATS, USUAL, draw_sheet, own_settings
from resrepro.figures.drawing import Style as Style
from resrepro.paper import layouts
from resrepro.records import Run
from resrepro.records.collection import DEFAULT_FOLDERS, Collection, collect
from resrepro.records.storage import write_out
from resrepro.spec.recipe import Value, spell

TABLE_1, FIGURE_3 = "table1", "figure3"  # drawn from the nets themselves, without runs
FIGURE_7 = responses.EXHIBIT

SHOWN, PRINTED = 150, 300  # pixels per inch of a PNG: of the figure's own width, of one that was asked for


class Paths(list[Path]):
    """The files of a figure; a notebook shows the picture."""

    def _repr_html_(self) -> str | None:
        texts = [base64.b64encode(path.read_bytes()).decode() for path in self if path.suffix == ".png"]
        return f'<img style="max-width:100%" src="data:image/png;base64,{texts[0]}">' if texts else None


def tables() -> tuple[str, ...]:
    """What `compare` knows, in the paper's order."""
    return in_order([TABLE_1, FIGURE_7, *layouts()])


def figures() -> tuple[str, ...]:
    """What `plot` knows, in the paper's order."""
    return in_order([FIGURE_3, FIGURE_7, *curves.exhibits()])


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Tables by their number, then figures, each before its stand-ins, then what the paper does not have."""

    def place(name: str) -> tuple[bool, bool, int, str]:
        number = int("0" + re.sub(r"\D", "", name))
        return not name.startswith("table"), not name.startswith("figure"), number, name

    return tuple(sorted(names, key=place))


def check_table(exhibit: str) -> None:
    """Check that `compare` knows an exhibit (UsageError if not)."""
    if exhibit not in tables():
        raise UsageError(f"no exhibit {exhibit!r} to compare: there are {', '.join(tables())}.")


def check_figure(exhibit: str, style: Style) -> None:
    """Check that `plot` knows an exhibit and a style (UsageError if not)."""
    if exhibit not in figures():
        raise UsageError(f"no exhibit {exhibit!r} to plot: there are {', '.join(figures())}.")
    curves.palette_named(style.palette, FIGURE_3 if exhibit == FIGURE_3 else "figures")
    if unknown := [kind for kind in style.formats if kind not in FORMATS]:
        raise UsageError(f"no format {unknown[0]!r}: there are {', '.join(FORMATS)}.")
    style.inches()


def build_table(exhibit: str, found: Collection, *, every: bool = False) -> Table:
    """The table of one of `tables()`, from the records that it shows; with `every` of all protocols."""
    if exhibit == TABLE_1:
        return architecture.table_1()
    if exhibit == FIGURE_7:
        table = responses.build(found.runs)
    else:
        table = record_tables.build(exhibit, found.runs, found.ensembles, every=every)
    return replace(table, remarks=(*found.sources, *table.remarks))


def draw_figure(
    exhibit: str, runs: Sequence[Run], folder: Path, *,
    paper: bool = False, style: Style = USUAL, stem: str | None = None,
) -> tuple[list[Path], tuple[str, ...]]:  # fmt: skip
    """Draw one of `figures()` into a folder, as files of its own name or another `stem`; returns these and
    sentences on what is not in it. RecordError if there is nothing to draw, or they cannot be written.
    """
    if exhibit in curves.exhibits():
        sheet = curves.make_sheet(exhibit, runs, paper=paper, palette=style.palette)
        figure, notes, layout = draw_sheet(sheet, style), sheet.notes, sheet.layout
    elif exhibit == FIGURE_7:
        figure, notes = responses.make_figure(runs, paper=paper, style=style)
        layout = responses.PLAN
    else:
        figure, layout = architecture.make_figure(style), architecture.PLAN
        notes = (f"The paper has no curves for {exhibit}.",) if paper else ()
    paths = []
    for kind in style.formats:
        content, about = io.BytesIO(), {**FORMATS[kind], "Title": layout["title"]}
        with own_settings():
            figure.savefig(content, format=kind, dpi=PRINTED if style.width else SHOWN, metadata=about)
        paths.append(folder / f"{stem or exhibit}.{kind}")
        write_out(paths[-1], content.getvalue())
    return paths, notes


def compare(
    exhibit: str = "table6", runs: str | Path | Sequence[str | Path] = DEFAULT_FOLDERS,
    tables: str | Path | None = "tables", *, settings: Mapping[str, Value] | None = None, every: bool = False,
) -> Table:  # fmt: skip
    """Set our runs, or for Table 1 our nets, beside the paper's numbers; `.frame` holds the raw numbers.

    Args:
        exhibit: a table or figure, such as "table1", "table6" or "figure6", or "demo".
        runs: one or several folders of runs; a broken record gives a `UserWarning`.
        tables: folder to which `<exhibit>.md`, `.csv` and `.tex` are written; None writes nothing.
        settings: only runs with these settings, such as {"iterations": 2000}.
        every: rows for the runs of all protocols, not of the chosen one alone.

    Raises:
        UsageError: for an unknown exhibit.
        RecordError: if the tables cannot be written.
    """
    check_table(exhibit)
    table = build_table(exhibit, _warned(runs, settings), every=every)
    if tables is not None:
        write_table(table, Path(tables))
    return table


def plot(
    exhibit: str = "figure6", runs: str | Path | Sequence[str | Path] = DEFAULT_FOLDERS,
    figures: str | Path = "figures", *, paper: bool = False, palette: str = "paper", caption: bool = True,
    width: float | str | None = None, formats: Iterable[str] = ("png", "svg"),
    settings: Mapping[str, Value] | None = None,
) -> list[Path]:  # fmt: skip
    """Draw a figure from our runs, or Figure 3 from our nets; equal records give equal bytes.

    Args:
        exhibit: a figure, such as "figure1", "figure3" or "figure6", or "demo".
        runs: one or several folders of runs; a broken record gives a `UserWarning`.
        figures: folder to which `<exhibit>.png` and `<exhibit>.svg` are written; their paths are returned.
        paper: draw the paper's own curves thin behind ours, or alone where there are no runs.
        palette: "paper", or "safe" for colour-blind readers.
        caption: write below what a reader must know.
        width: in inches, or "column" or "text" for those of the paper's page; the figure's own by default.
        formats: some of "png", "svg" and "pdf".
        settings: only runs with these settings, such as {"iterations": 2000}.

    Raises:
        UsageError: for an unknown exhibit, palette, width or format.
        RecordError: if there is nothing to draw, or the files cannot be written.
    """
    style = Style(palette, caption, width, tuple(formats))
    check_figure(exhibit, style)
    found = _warned(runs, settings).runs
    return Paths(draw_figure(exhibit, found, Path(figures), paper=paper, style=style)[0])


def _warned(runs: str | Path | Sequence[str | Path], settings: Mapping[str, Value] | None) -> Collection:
    """The good records below some folders that have some settings; each broken one gives a warning."""
    found = collect([Path(folder) for folder in ([runs] if isinstance(runs, str | Path) else runs)])
    for sentence in found.broken:
        warnings.warn(sentence, stacklevel=3)
    return found.having({key: spell(value) for key, value in (settings or {}).items()})
