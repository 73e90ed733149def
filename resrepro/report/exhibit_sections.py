"""One section of the page for each exhibit: the paper's numbers and ours, and the pictures."""

import base64
import itertools
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from resrepro import figures as exhibits
from resrepro.comparison.table import DASH, Row, Table
from resrepro.errors import RecordError, UsageError
from resrepro.figures import curves
from resrepro.records.collection import Collection
from resrepro.report.charts import Chart, chart_of

REPEATED = ("demo",)  # its nets stand in Figure 6 on digits
PATH_DATA = re.compile(rb' d="[^"]*"')
LONG_NUMBER = re.compile(rb"\d+\.\d{3,}")
CONTINUED = "↳"  # begins the name of a row that belongs to the one above
OURS = re.compile(r"\(\d+\)$")  # ends a number of ours: how many runs it is the mean of


@dataclass(frozen=True)
class Picture:
    """A figure as `plot` draws it: its title, and the SVG file as a data URL."""

    title: str
    url: str


@dataclass(frozen=True)
class Section:
    """What the page shows of one exhibit; `lacking` are the rows of nets of which we have nothing."""

    name: str
    title: str
    table: Table | None
    lacking: frozenset[int]
    chart: Chart | None
    picture: Picture | None


def all_exhibits() -> tuple[str, ...]:
    """All that can be compared or plotted, each once, tables first."""
    tables = exhibits.tables()
    both = [*tables, *(name for name in exhibits.figures() if name not in tables)]
    kinds = ("table", "figure")
    return tuple(sorted(both, key=lambda name: (_place(name, kinds), name)))


def shown_exhibits() -> tuple[str, ...]:
    """What a report shows if nobody chooses: all but what another exhibit shows of the same runs."""
    return tuple(name for name in all_exhibits() if name not in REPEATED)


def _place(name: str, kinds: tuple[str, ...]) -> int:
    return next((place for place, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))


def sections(found: Collection, names: Iterable[str]) -> list[Section]:
    """The sections of some exhibits.

    Raises:
        UsageError: for an unknown exhibit.
    """
    return [_section(name, found) for name in names]


def _section(name: str, found: Collection) -> Section:
    if name not in all_exhibits():
        raise UsageError(f"no exhibit {name!r} to report: there are {', '.join(all_exhibits())}.")
    table = exhibits.build_table(name, found) if name in exhibits.tables() else None
    chart = chart_of(name, found.runs) if name in curves.exhibits() else None
    picture = picture_of(name, found) if name in exhibits.figures() else None
    titled = (part.title for part in (table, chart, picture) if part)
    return Section(
        name=name,
        title=next(titled, f"{name.capitalize()}: nothing to show yet"),
        table=table,
        lacking=lacking(table) if table else frozenset(),
        chart=chart,
        picture=picture,
    )


def lacking(table: Table) -> frozenset[int]:
    """The rows of nets of which we have nothing, by their place; none where that is all of them."""
    rows = [*table.rows, Row(("",))]
    empty = {
        place
        for place, (row, below) in enumerate(itertools.pairwise(rows))
        if DASH in row.cells and not (is_ours(row) or is_continued(row) or is_continued(below))
    }
    return frozenset(empty) if any(is_ours(row) or is_continued(row) for row in table.rows) else frozenset()


def is_ours(row: Row) -> bool:
    """Whether a row has a number of ours."""
    return any(map(OURS.search, row.cells[1:]))


def is_continued(row: Row) -> bool:
    """Whether a row belongs to the one above."""
    return row.cells[0].startswith(CONTINUED)


def _shortened(number: re.Match[bytes]) -> bytes:
    """A coordinate to a hundredth of a point of 1/72 inch; what scales a drawing must keep its digits."""
    return b"%.2f" % float(number[0])


def picture_of(name: str, found: Collection) -> Picture | None:
    """The figure as `plot --paper` draws it; None if there is nothing to draw."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            drawing = exhibits.draw_figure(name, found.runs, Path(folder), paper=True, palette="safe")
        except RecordError:
            return None
        content = next(path for path in drawing.paths if path.suffix == ".svg").read_bytes()
    title = ElementTree.fromstring(content).findtext(".//{http://purl.org/dc/elements/1.1/}title")
    slim = PATH_DATA.sub(lambda path: LONG_NUMBER.sub(_shortened, path[0]), content)
    return Picture(title or name, "data:image/svg+xml;base64," + base64.b64encode(slim).decode())
