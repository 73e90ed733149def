"""What the page shows of each exhibit: a table, a picture, and the curves as data and in sentences.

Which runs a figure shows, and on which axes, is decided in `figures`. Errors are in percent.
"""

import base64
import itertools
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from resrepro import figures as exhibits
from resrepro.comparison.groups import SeedGroup
from resrepro.comparison.table import DASH, Row, Table
from resrepro.errors import RecordError
from resrepro.figures import curves
from resrepro.figures.curves import Curve, Panel, Sheet, make_sheet, mean_curve
from resrepro.records import Run
from resrepro.records.collection import Collection

PHONE = 4.0  # inches: the width of the pictures for narrow screens
SHOWN_NARROW = ("figure6", "figure7")  # beside which no chart or box that scrolls stands
PATH_DATA = re.compile(rb' d="[^"]*"')
SPACE = re.compile(rb"\s+")
LONG_NUMBER = re.compile(rb"\d+\.\d{3,}")
CONTINUED = "↳"  # begins the name of a row that belongs to the one above
OURS_CELL = re.compile(r"\(\d+\)$")  # ends a number of ours: how many runs it is the mean of
OURS, SEED, PAPER = "ours", "seed", "paper"  # whose a line is: our mean, one of our runs, the paper's
DECIMALS = 3  # of an error in percent: the curves of the paper were read to ±0.03


class Chart(NamedTuple):
    """A figure of curves."""

    title: str
    data: dict[str, Any]  # what the page's script draws
    depths: tuple[int, ...]  # numbers of layers that can be switched on and off
    lines: tuple[tuple[str, str, bool], ...]  # and kinds of lines: name, words, shown at first
    told: tuple[tuple[str, tuple[str, ...]], ...]  # by panel a sentence on each net
    footnote: tuple[str, ...]  # what a reader must know
    notes: tuple[str, ...]  # what was left out


class Picture(NamedTuple):
    """A figure as `plot` draws it: its title, and the SVG file as a data URL, also for narrow screens."""

    title: str
    url: str
    narrow: str | None


class Section(NamedTuple):
    """What the page shows of one exhibit; `lacking` are the rows of nets of which we have nothing."""

    name: str
    title: str
    table: Table | None
    lacking: frozenset[int]
    chart: Chart | None
    picture: Picture | None


def all_exhibits() -> tuple[str, ...]:
    """All that can be compared or plotted, each once, tables first, then figures."""
    return exhibits.in_order({*exhibits.tables(), *exhibits.figures()})


def section(name: str, found: Collection) -> Section:
    """The section of an exhibit."""
    table = exhibits.build_table(name, found) if name in exhibits.tables() else None
    chart = chart_of(name, found.runs) if name in curves.exhibits() else None
    picture = _picture_of(name, found) if name in exhibits.figures() else None
    titles = (part.title for part in (table, chart, picture) if part)
    title = next(titles, f"{name.capitalize()}: nothing to show yet")
    return Section(name, title, table, lacking(table.rows) if table else frozenset(), chart, picture)


def lacking(rows: Sequence[Row]) -> frozenset[int]:
    """The rows of nets of which we have nothing, by their place; none where that is all of them."""
    continued = [row.cells[0].startswith(CONTINUED) for row in (*rows, Row(("",)))]
    filled = [is_ours(row) or below for row, below in zip(rows, continued, strict=False)]
    empty = [n for n, row in enumerate(rows) if DASH in row.cells and not (filled[n] or continued[n + 1])]
    return frozenset(empty if any(filled) else ())


def is_ours(row: Row) -> bool:
    """Whether a row has a number of ours."""
    return any(map(OURS_CELL.search, row.cells[1:]))


def _rounded(number: re.Match[bytes]) -> bytes:
    return b"%.2f" % float(number[0])


def _picture_of(name: str, found: Collection) -> Picture | None:
    """The figure as `plot --paper` draws it; None if there is nothing to draw. The page writes the caption
    itself where it has one. Coordinates are rounded to a hundredth of a point (1/72 inch); what scales a
    drawing keeps its digits.
    """
    style = exhibits.Style("safe", caption=name not in curves.exhibits(), formats=("svg",))
    widths = [None, PHONE] if name in SHOWN_NARROW else [None]
    urls = []
    with tempfile.TemporaryDirectory() as folder:
        for width in widths:
            shown = replace(style, width=width)
            try:
                [path], _ = exhibits.draw_figure(name, found.runs, Path(folder), paper=True, style=shown)
            except RecordError:
                return None
            content = path.read_bytes()
            slim = PATH_DATA.sub(lambda data: LONG_NUMBER.sub(_rounded, data[0]), content)
            urls.append("data:image/svg+xml;base64," + base64.b64encode(SPACE.sub(b" ", slim)).decode())
    title = ElementTree.fromstring(content).findtext(".//{http://purl.org/dc/elements/1.1/}title")
    return Picture(title or name, urls[0], urls[1] if urls[1:] else None)


def chart_of(exhibit: str, runs: Sequence[Run]) -> Chart | None:
    """The chart of a figure of curves, the paper's behind ours unless they are of other images and stand in
    the chart above; None if there is nothing to draw.
    """
    try:
        sheet = make_sheet(exhibit, runs, paper="of" not in curves.exhibits()[exhibit])
    except RecordError:
        return None
    seeds = any(len(group.runs) > 1 for group in sheet.groups.values())
    kinds = {curve.kind for curve in sheet.curves}
    switches = [
        ("train", "training error", "train" in kinds),
        ("held_out", sheet.held_out_told, bool(kinds - {"train"})),
        (OURS, "ours (mean over seeds)" if seeds else "ours", sheet.has_ours),
        (SEED, "ours, each seed", seeds),
        (PAPER, "the paper's", any(curve.paper for curve in sheet.curves)),
    ]
    return Chart(
        title=str(sheet.layout["title"]),
        data={"unit": sheet.unit, "panels": [_panel(sheet, panel) for panel in sheet.panels]},
        depths=tuple(sorted({curve.depth for curve in sheet.curves})),
        lines=tuple((name, words, name != SEED) for name, words, there in switches if there),
        told=tuple((str(panel.layout["title"]), _in_words(sheet, panel)) for panel in sheet.panels),
        footnote=sheet.footnote,
        notes=sheet.notes,
    )


def _panel(sheet: Sheet, panel: Panel) -> dict[str, Any]:
    """One panel for the script: its frame, and its lines: the paper's, our means, of several seeds each."""
    lines = [_line(sheet, curve, PAPER) for curve in panel.paper]
    lines += [_line(sheet, curve, OURS) for curve in panel.ours]
    for mean in panel.ours:
        runs = sheet.groups[mean.net].runs
        for run in runs if len(runs) > 1 else ():
            if curve := mean_curve(SeedGroup((run,)), mean.kind):
                lines.append(_line(sheet, curve, SEED) | {"seed": run.seed})
    start, (floor, top) = float(panel.layout.get("start", 0)) * sheet.iterations, sheet.frame(panel)
    return {
        "frame": [start, float(sheet.iterations), float(floor), float(top)], "lines": lines,
        "share": float(panel.layout.get("share", 1)),
        "ylabel": str(panel.layout["ylabel"]).format(held_out=sheet.held_out),
    }  # fmt: skip


def _line(sheet: Sheet, curve: Curve, whose: str) -> dict[str, Any]:
    return {
        "net": curve.net, "depth": curve.depth, "kind": "train" if curve.kind == "train" else "held_out",
        "told": _set_name(sheet, curve), "whose": whose, "x": [round(at, 1) for at in curve.x],
        "y": [round(error, DECIMALS) for error in curve.y],
    }  # fmt: skip


def _in_words(sheet: Sheet, panel: Panel) -> tuple[str, ...]:
    """A sentence for each net of a panel: where its curves end, ours and the paper's. `plain-56: ours ends at
    5.1 ± 0.2 % training and 10.1 ± 0.2 % test error; the paper's ends at ...`
    """
    curves = sorted((*panel.ours, *panel.paper), key=lambda curve: (curve.depth, curve.plain))
    sentences = []
    for net, group in itertools.groupby(curves, lambda curve: curve.net):
        ends: dict[str, list[str]] = {}
        for curve in group:
            spread = f" ± {curve.std[-1]:.1f}" if curve.std else ""
            end = f"{curve.y[-1]:.1f}{spread} % {_set_name(sheet, curve)}"
            ends.setdefault("the paper's" if curve.paper else "ours", []).append(end)
        told = [f"{whose} ends at {' and '.join(parts)} error" for whose, parts in sorted(ends.items())]
        sentences.append(f"{net}: {'; '.join(told)}.")
    return tuple(sentences)


def _set_name(sheet: Sheet, curve: Curve) -> str:
    """The set that a curve was measured on."""
    if curve.kind == "train":
        return "training"
    return str(sheet.layout["paper"]["held_out"]) if curve.paper else sheet.held_out
