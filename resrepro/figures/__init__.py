"""The paper's figures, and every exhibit by its name: Table 1 and Figure 3 come from the nets, all others
from run records.

`compare` and `plot` are the public calls; `build_table` and `draw_figure` take records already read.
"""

import base64
import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resrepro.comparison import tables as record_tables
from resrepro.comparison.table import Table, write_table
from resrepro.errors import UsageError
from resrepro.figures import architecture, curves, responses
from resrepro.figures.drawing import draw_sheet, own_settings
from resrepro.paper import layouts
from resrepro.records import Run
from resrepro.records.collection import DEFAULT_FOLDERS, Collection, collect
from resrepro.records.storage import write_out
from resrepro.spec.recipe import Value, spell

TABLE_1, FIGURE_3 = "table1", "figure3"  # drawn from the nets themselves, without runs
FIGURE_7 = responses.EXHIBIT

WIDTHS = {"column": 3.25, "text": 6.875}  # of the paper's own page, inches
NARROW, WIDE = 3.0, 40.0  # inches
SHOWN, PRINTED = 150, 300  # pixels per inch of a PNG: of the figure's own width, of one that was asked for
FORMATS: Mapping[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}  # and what is not said in them


@dataclass(frozen=True)
class Style:
    """How a figure is drawn: colours, caption, width, and the kinds of its files. `width` is in inches, or
    one of `WIDTHS`; by default it is the figure's own.
    """

    palette: str = "paper"
    caption: bool = True
    width: float | str | None = None
    formats: tuple[str, ...] = ("png", "svg")

    def inches(self) -> float | None:
        """The width; UsageError if it is none, or no figure fits into it."""
        if self.width is None:
            return None
        with contextlib.suppress(ValueError):
            width = float(WIDTHS.get(str(self.width), self.width))
            if NARROW <= width <= WIDE:
                return width
        raise UsageError(
            f"no width {self.width!r}: give {NARROW:g} to {WIDE:g} inches, or {' or '.join(WIDTHS)}."
        )


class Paths(list[Path]):
    """The files of a figure; a notebook shows the picture."""

    def _repr_html_(self) -> str:
        pictures = [path for path in self if path.suffix == ".png" and path.exists()]
        texts = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        shown = [f'<img style="max-width:100%" src="data:image/png;base64,{text}">' for text in texts]
        return "".join(shown) or html.escape(", ".join(map(str, self)))


def tables() -> tuple[str, ...]:
    """What `compare` knows, in the paper's order."""
    return in_order([TABLE_1, FIGURE_7, *layouts()])


def figures() -> tuple[str, ...]:
    """What `plot` knows, in the paper's order."""
    return in_order([FIGURE_3, FIGURE_7, *curves.exhibits()])


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Tables by their number, then figures, each before its stand-ins, then what the paper does not have."""

    def place(name: str) -> tuple[int, int, str]:
        found = re.fullmatch(r"(table|figure)(\d+)(-\w+)?", name)
        return (("table", "figure").index(found[1]), int(found[2]), found[3] or "") if found else (2, 0, "")

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
    paper: bool = False, style: Style = Style(), stem: str | None = None,
) -> tuple[list[Path], tuple[str, ...]]:  # fmt: skip
    """Draw one of `figures()` into a folder, as files of its own name or another `stem`; returns these and
    sentences on what is not in it. RecordError if there is nothing to draw, or they cannot be written.
    """
    notes: tuple[str, ...] = ()
    caption, width = style.caption, style.inches()
    if exhibit == FIGURE_3:
        title = curves.read_layout(FIGURE_3)["title"]
        figure = architecture.make_figure(style.palette, caption=caption, inches=width)
        notes = (f"The paper has no curves for {exhibit}.",) if paper else ()
    elif exhibit == FIGURE_7:
        title = curves.read_layout(FIGURE_7)["title"]
        figure, notes = responses.make_figure(
            runs, paper=paper, palette=style.palette, caption=caption, width=width
        )
    else:
        sheet = curves.make_sheet(exhibit, runs, paper=paper, palette=style.palette)
        title, notes = sheet.layout["title"], sheet.notes
        figure = draw_sheet(sheet, caption=caption, width=width)
    paths = []
    for kind in style.formats:
        content = io.BytesIO()
        with own_settings():
            about = {**FORMATS[kind], "Title": title}
            figure.savefig(content, format=kind, dpi=PRINTED if width else SHOWN, metadata=about)
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
