"""Putting a `Sheet` of error curves on paper: panels in a row, every net labelled at the end of its curve.

matplotlib is used through its objects, without pyplot and the user's settings: equal input gives equal files.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resrepro.errors import UsageError
from resrepro.figures.curves import Curve, Panel, Sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"  # ships with matplotlib, hence the same everywhere
INCH = 72  # points
PANEL_HEIGHT, LEFT, GAP, TOP, BOTTOM = 3.0, 0.6, 0.58, 0.12, 0.52  # inches
NARROWEST, WIDEST = 1.5, 3.5  # inches, of a panel: else fewer stand in a row; of one of several rows
PER_TICK = 0.41  # inches of the axis of iterations
TITLE, LEGEND, KEY_PITCH, LINE = 0.24, 0.26, 0.18, 0.19  # heights of the rows of text, inches
HANDLE = 0.65  # inches beside the words of a key
TEXT, SMALL = 10.0, 9.0  # points
LABEL_PITCH = 13.0  # points from one net's label to the next
LEADER = 26.0  # points between the frame and the labels
BOLD = 2.1  # line width, points
DASHES = (0, (4, 1.6))
QUIET, DARK = "#6b6b6b", "#303030"
TICKS = {20: (0, 5, 10, 20), 40: range(0, 41, 10)}
BAND = "mean ± std over seeds (n−1)"
SETTINGS: Any = {
    "font.family": FONT, "font.size": TEXT, "axes.titlesize": TEXT, "axes.linewidth": 0.8,
    "xtick.direction": "in", "ytick.direction": "in",
    "text.parse_math": False,  # sentences of the records are shown as they are
    "svg.hashsalt": "resrepro", "svg.fonttype": "path", "pdf.fonttype": 42,
}  # fmt: skip
WIDTHS = {"column": 3.25, "text": 6.875}  # of the paper's own page, inches
NARROW, WIDE = 3.0, 40.0  # inches
FORMATS: Mapping[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}  # and what is not said in them


@dataclass(frozen=True)
class Style:
    """How a figure is drawn: colours, caption, width, and the kinds of its files."""

    palette: str = "paper"
    caption: bool = True
    width: float | str | None = None  # in inches, or one of `WIDTHS`; by default the figure's own
    formats: tuple[str, ...] = ("png", "svg")

    def inches(self) -> float | None:
        """The width; UsageError if it is none, or no figure fits into it."""
        if self.width is None:
            return None
        with contextlib.suppress(ValueError):
            width = float(WIDTHS.get(str(self.width), self.width))
            if NARROW <= width <= WIDE:
                return width
        ways = f"{NARROW:g} to {WIDE:g} inches, or {' or '.join(WIDTHS)}"
        raise UsageError(f"no width {self.width!r}: give {ways}.")


USUAL = Style()


def draw_sheet(sheet: Sheet, style: Style = USUAL) -> "Figure":
    """The figure as a matplotlib object, as wide as its layout says or as wanted; its colours are chosen."""
    with own_settings():
        width = style.inches() or float(sheet.layout["width"])
        told = list(sheet.footnote)
        for panel in sheet.panels:
            for curve in _labelled(panel):
                if (end := curve.y[-1]) > sheet.frame(panel)[1]:
                    kind = "training" if curve.kind == "train" else sheet.held_out
                    told.append(f"{curve.net} ends above the frame, at {end:.1f} % ({kind}).")
        lines = wrap(" ".join(told), width - 0.5, SMALL) if style.caption else []
        rows = _rows(sheet, width)
        titles = TITLE if any(panel.layout["title"] for panel in sheet.panels) else 0.0
        tall = min(PANEL_HEIGHT, 1.3 + width / 4)
        pitch, foot = titles + tall + BOTTOM, LINE * len(lines) + 0.1
        figure, height = page(width, foot + len(rows) * pitch, TOP, _legend_keys(sheet), lines)
        for number, row in enumerate(rows):
            low = foot + BOTTOM + (len(rows) - 1 - number) * pitch
            for panel, left, own in row:
                axes = figure.add_axes((left / width, low / height, own / width, tall / height))
                _draw_panel(axes, sheet, panel)
    return figure


def page(
    width: float, tall: float, top: float, keys: "Sequence[Artist]", lines: Sequence[str]
) -> "tuple[Figure, float]":
    """A figure with keys above and lines at the foot of what is so tall, and its whole height (inches)."""
    from matplotlib.figure import Figure

    columns, legend = _arrange(keys, width - LEFT)
    height = tall + legend + top
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    if keys:
        figure.legend(
            handles=keys, loc="upper left", bbox_to_anchor=(LEFT / width, 1 - 0.06 / height), ncols=columns,
            frameon=False, fontsize=SMALL, handlelength=2.6, columnspacing=2.0, borderaxespad=0.0,
            borderpad=0.2,
        )  # fmt: skip
    for number, line in enumerate(reversed(lines)):
        y = (0.12 + LINE * number) / height
        figure.text(0.2 / width, y, line, fontsize=SMALL, color=QUIET, va="baseline")
    return figure, height


def _rows(sheet: Sheet, width: float) -> list[list[tuple[Panel, float, float]]]:
    """The panels of each row, as many as leave each wide enough: with left edge and width in inches."""
    for most in range(len(sheet.panels) // (2 if sheet.apart else 1), 0, -1):
        starts = range(0, len(sheet.panels), most)
        rows = [_row(sheet, sheet.panels[start : start + most], width) for start in starts]
        if all(own >= NARROWEST * panel.layout.get("share", 1) for row in rows for panel, _, own in row):
            break
    return rows


def _row(sheet: Sheet, panels: Sequence[Panel], width: float) -> list[tuple[Panel, float, float]]:
    """Panels side by side with the names of their nets right of them."""
    names = [[_label_text(sheet, panel, curve) for curve in _labelled(panel)] for panel in panels]
    margins = [(LEADER + 4) / INCH + max([text_width(name, TEXT) for name in own] or [0.1]) for own in names]
    shares = [float(panel.layout.get("share", 1)) for panel in panels]
    unit = (width - LEFT - sum(margins) - GAP * (len(panels) - 1)) / sum(shares)
    if len(panels) < len(sheet.panels) and not sheet.apart:
        unit = min(unit, WIDEST)
    row, left = [], LEFT
    for panel, share, margin in zip(panels, shares, margins, strict=True):
        row.append((panel, left, unit * share))
        left += unit * share + margin + GAP
    return row


def _arrange(keys: "Sequence[Artist]", room: float) -> tuple[int, float]:
    """How many keys fit side by side into so many inches, wider ones wrapped, and the height of all."""
    for key in keys:
        key.set_label("\n".join(wrap(str(key.get_label()), room - HANDLE, SMALL)))
    told = [str(key.get_label()).splitlines() for key in keys]
    widths = [HANDLE + max(text_width(line, SMALL) for line in lines) for lines in told]
    for columns in range(len(keys), 1, -1):
        rows, longer = divmod(len(keys), columns)  # the first columns have one more
        starts = [rows * number + min(number, longer) for number in range(columns + 1)]
        if sum(max(widths[low:high]) for low, high in itertools.pairwise(starts)) <= room:
            return columns, LEGEND + KEY_PITCH * (rows + (longer > 0) - 1)
    return 1, LEGEND + KEY_PITCH * (sum(map(len, told)) - 1) if keys else 0.0


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """While active, figures look the same whatever the user has set up for his own."""
    try:
        import matplotlib
    except ValueError:  # $MPLBACKEND is a notebook's, and not installed here
        os.environ.pop("MPLBACKEND", None)
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]  # half of it was read
        import matplotlib

    usual = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(usual | SETTINGS):  # rcdefaults() would read his style files
        yield


def _draw_panel(axes: "Axes", sheet: Sheet, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    start = float(panel.layout.get("start", 0)) * sheet.iterations / sheet.unit
    end, (floor, top) = sheet.iterations / sheet.unit, sheet.frame(panel)
    axes.set(xlim=(start, end), ylim=(floor, top))
    own_ticks = {**sheet.layout["ticks"], **panel.layout.get("ticks", {})}
    errors = own_ticks.get(str(top), TICKS.get(top, range(0, top + 1, 20)))
    apart = (top - floor) * TEXT / (axes.bbox.height * INCH / axes.figure.dpi)
    ticks = [float(error) for error in errors if error >= floor]
    axes.set_yticks(ticks[:1] + [high for low, high in itertools.pairwise(ticks) if high - low >= apart])
    few = min(7, int(axes.bbox.width / axes.figure.dpi / PER_TICK))
    locator = MaxNLocator(nbins=few, steps=[1, 2, 2.5, 5, 10], integer=sheet.unit == 1)
    ticks = [float(tick) for tick in locator.tick_values(start, end) if start <= tick <= end]
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.set_xlabel("iter. (1e4)" if sheet.unit > 1 else "iterations")
    axes.set_ylabel(panel.layout["ylabel"].format(held_out=sheet.held_out))
    axes.set_title(panel.layout["title"], pad=5)
    if sheet.layout["grid"]:
        axes.grid(axis="y", linestyle=(0, (4, 4)), linewidth=0.5, color="#b0b0b0", zorder=0.5)
        axes.set_axisbelow(True)
    for curve in (*panel.paper, *panel.ours):
        draw_curve(axes, curve, _style(sheet, curve), {"alpha": 0.22, "zorder": 2.5}, unit=sheet.unit)
    own: Any = {"transform": axes.transAxes, "color": QUIET}
    if not panel.curves:
        box = {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.5, 0.5, "no runs yet", ha="center", va="center", bbox=box, **own)
    elif not panel.ours and sheet.has_ours and not sheet.apart:
        told = "no runs yet,\nthe paper's alone"
        axes.text(0.97, 0.95, told, ha="right", va="top", fontsize=SMALL, linespacing=1.3, **own)
    _label_nets(axes, sheet, panel)


def _style(sheet: Sheet, curve: Curve) -> dict[str, Any]:
    faint = curve.paper and sheet.has_ours and not sheet.apart
    bold = curve.kind != "train" or sheet.layout["training"] == "solid"
    style = _stroke(sheet, bold=bold, faint=faint)
    marker = sheet.palette["markers"].get(str(curve.depth))
    if marker and bold and not faint:
        # The spacing of a net's markers starts elsewhere for every depth: they do not hide each other.
        depths = sorted({str(each.depth) for each in sheet.curves})
        style |= {"marker": marker, "markersize": 6, "markevery": (depths.index(str(curve.depth)) / 40, 0.16)}
    colour = sheet.colour(curve.depth)
    style["color"], style["zorder"] = (pale(colour), 2.0) if faint else (colour, 3.5 if bold else 3.0)
    return style


def draw_curve(
    axes: "Axes", curve: Curve, style: Mapping[str, Any], band: Mapping[str, Any], unit: int = 1
) -> None:
    """Draw a curve, x in so many units, and its spread over seeds as a band."""
    x, told = [value / unit for value in curve.x], f"{curve.net} {curve.kind}".strip()
    label = f"{'paper' if curve.paper else 'ours'} {told}"
    axes.plot(x, curve.y, label=label, markeredgecolor="white", markeredgewidth=0.6, **style)
    if curve.std is not None:
        axes.fill_between(x, *curve.band, color=style["color"], linewidth=0, label=f"band {told}", **band)


def _stroke(sheet: Sheet, *, bold: bool, faint: bool) -> dict[str, Any]:
    """Training error dashed, or thin as in Figure 4, held-out error bold."""
    thin = sheet.layout["training"] == "thin"
    if bold:
        return {"linewidth": (1.6 if thin else 1.1) if faint else BOLD, "linestyle": "-"}
    if thin:
        return {"linewidth": 0.6 if faint else 0.8, "linestyle": "-"}
    return {"linewidth": 0.8 if faint else 1.2, "linestyle": DASHES}


def _labelled(panel: Panel) -> list[Curve]:
    """The curve of each net at whose end its label stands: ours before the paper's, bold before dashed."""
    chosen: dict[str, Curve] = {}
    for curve in panel.curves:
        known = chosen.setdefault(curve.net, curve)
        if known.kind == "train" and known.paper == curve.paper:
            chosen[curve.net] = curve
    return list(chosen.values())


def _label_text(sheet: Sheet, panel: Panel, curve: Curve) -> str:
    name = str(sheet.layout.get("label", "{net}")).format(net=curve.net, depth=curve.depth)
    return name + (" ↑" if curve.y[-1] > sheet.frame(panel)[1] else "")


def _label_nets(axes: "Axes", sheet: Sheet, panel: Panel) -> None:
    """Write each net's name right of the frame, at the height of its curve's end or close to it."""
    curves = _labelled(panel)
    width, height = (side * INCH / axes.figure.dpi for side in axes.bbox.size)
    floor, top = sheet.frame(panel)
    ends = [(min(curve.y[-1], top) - floor) / (top - floor) * height for curve in curves]
    for curve, end, place in zip(curves, ends, spread(ends, LABEL_PITCH, height), strict=True):
        colour = sheet.colour(curve.depth, text=True)
        theirs = curve.paper and sheet.has_ours and not sheet.apart
        x = [1 + points / width for points in (1.5, 4, LEADER - 5)]
        marker = "" if theirs else sheet.palette["markers"].get(str(curve.depth), "")
        axes.plot(
            x, [end / height, end / height, place / height], color=colour, linewidth=0.7, marker=marker,
            markevery=[2], markersize=4.5, transform=axes.transAxes, clip_on=False, label="leader",
        )  # fmt: skip
        axes.text(
            1 + LEADER / width, place / height, _label_text(sheet, panel, curve), transform=axes.transAxes,
            va="center_baseline", color=colour, fontstyle="italic" if theirs else "normal",
        )  # fmt: skip


def _legend_keys(sheet: Sheet) -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    curves, training = sheet.curves, sheet.layout["training"]
    beside_theirs = sheet.has_ours and any(curve.paper for curve in curves) and not sheet.apart
    keys: list[Artist] = []
    if training != "solid" and curves:
        stroke = _stroke(sheet, bold=False, faint=False)
        keys.append(Line2D([], [], color=DARK, label="training error", **stroke))
        keys.append(Line2D([], [], color=DARK, linewidth=BOLD, label=sheet.held_out_told))
    elif beside_theirs:
        keys.append(Line2D([], [], color=DARK, linewidth=BOLD, label="our runs"))
    if any(curve.std for curve in curves):
        keys.append(Patch(color=DARK, alpha=0.22, linewidth=0, label=BAND))
    if beside_theirs:
        told = f"the paper's curves ({'pale' if training == 'thin' else 'thin'})"
        keys.append(Line2D([], [], color=pale(DARK), linewidth=1.0, label=told))
    return keys


def spread(positions: Sequence[float], pitch: float, high: float) -> list[float]:
    """The closest positions (least squares) in order, `pitch` apart at least, in 0 to `high` if they fit."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    if not positions:
        return []
    order, steps = np.argsort(positions, kind="stable"), pitch * np.arange(len(positions))
    shifted = isotonic_regression(np.array(positions)[order] - steps).x
    placed = np.empty(len(positions))
    placed[order] = shifted.clip(0, max(0, high - steps[-1])) + steps
    return [float(place) for place in placed]


def text_width(text: str, size: float) -> float:
    """The width of a text in inches at a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / INCH


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of words that are at most `width` inches wide at a size in points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def pale(colour: str) -> str:
    """A colour with much white in it."""
    return "#" + "".join(f"{round(part + (255 - part) * 0.55):02x}" for part in bytes.fromhex(colour[1:]))
