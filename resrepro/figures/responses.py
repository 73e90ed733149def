"""Figure 7 from run records, as a picture and in numbers: the strength of each layer's response.

Which runs are drawn is decided as for the figures of errors (`figures.curves`).
"""

import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resrepro.comparison.groups import SET_NAMES, seed_name
from resrepro.comparison.table import DASH, NONE, Row, Table, spell_mean
from resrepro.errors import RecordError
from resrepro.figures import curves, drawing
from resrepro.figures.curves import Curve, Drawn
from resrepro.paper import curves as paper_curves
from resrepro.paper import published
from resrepro.records import Run
from resrepro.records.reading import Responses
from resrepro.spec import catalogue, command_for, net_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

EXHIBIT = "figure7"
PLAN = curves.read_layout(EXHIBIT)  # title, nets, frame and panels
LEFT, RIGHT, TOP, GAP, PANEL_HEIGHT, BOTTOM = 0.62, 0.16, 0.14, 0.56, 2.25, 0.56  # inches
HEADING = 0.26  # inches, above the panels of runs that are not on CIFAR-10
ROOM = 1.02  # of the frame above the highest line or band
MARKED = 9  # layers from one marker to the next
STD: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "layer 1": ("response_std_layer1", lambda std: std[0]),
    "last": ("response_std_last", lambda std: std[-1]),
    "smallest": ("response_std_min", min),
    "mean": ("response_std_mean_over_layers", statistics.fmean),
    "median": ("response_std_median", statistics.median),
}  # by column: the name that the paper's number has in published.csv, and ours from the layers' std


def make_figure(
    runs: Sequence[Run], *, paper: bool = False, style: drawing.Style = drawing.USUAL
) -> "tuple[Figure, tuple[str, ...]]":
    """The figure as a matplotlib object, with the means over seeds, and sentences on what was left out; with
    `paper` the paper's curves are behind ours, or alone. RecordError if there is nothing to draw.
    """
    drawn, notes = select(runs)
    ours, theirs = [], _theirs() if paper else []
    for group in drawn.groups.values():
        std = [run.responses.std for run in group.runs if run.responses is not None]
        ours.append(curves.averaged(group.first, "", range(1, len(std[0]) + 1), std))
    if not ours and not theirs:
        train = command_for(catalogue.find(PLAN["example"]).spec())
        way = f"`{train}` makes a run, `resrepro eval RUN --responses` measures it"
        raise RecordError(
            f"no finished run in the runs folders has responses for {EXHIBIT}: {way}, and `--paper` draws "
            f"the paper's curves alone.{' '.join(['', *notes])}"
        )
    # the ends of the axis: the paper's, or further out by halves where a line or band needs it
    low, high = PLAN["frame"]
    for below, above in (line.band for line in [*ours, *theirs]):
        low, high = min(low, *below), max(high, ROOM * max(above))
    ends = math.floor(2 * low) / 2, math.ceil(2 * high) / 2
    told = " ".join(_footnote(drawn, theirs, ends, notes)) if style.caption else ""
    heading = PLAN["headings"].get(drawn.first.spec["dataset"], "") if ours else ""
    palette, width = curves.palette_named(style.palette), style.inches() or PLAN["width"]
    with drawing.own_settings():
        from matplotlib.ticker import MaxNLocator

        lines = drawing.wrap(told, width - 0.4, drawing.SMALL)
        foot = BOTTOM + drawing.LINE * len(lines) + 0.08
        tall = foot + 2 * PANEL_HEIGHT + GAP + (HEADING if heading else 0.1)
        figure, height = drawing.page(width, tall, TOP, _legend_keys(ours, theirs, palette), lines)
        for number, panel in enumerate(PLAN["panels"]):
            bottom = foot + (PANEL_HEIGHT + GAP) * (1 - number)
            place = LEFT / width, bottom / height, (width - LEFT - RIGHT) / width, PANEL_HEIGHT / height
            axes = figure.add_axes(place, xlim=(0, PLAN["layers"]), xticks=PLAN["layer_ticks"], ylim=ends)
            axes.set(xlabel=panel["xlabel"], ylabel="std of the response")
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            for line in [*theirs, *ours]:
                by_size = line._replace(y=tuple(sorted(line.y, reverse=True)), std=None)
                look = _style(line, palette, line.paper and bool(ours))
                drawing.draw_curve(axes, by_size if panel["sorted"] else line, look, {"alpha": 0.18})
        figure.axes[0].set_title(heading, pad=5)
    return figure, notes


def _theirs() -> list[Curve]:
    """The paper's curves, read off its figure, in the order of the legend."""
    frame, lines = paper_curves(EXHIBIT), []
    frame = frame[frame["panel"] == PLAN["panels"][0]["name"]].sort_values("x")
    for plain, depth in _nets():
        rows = frame[frame["series"] == net_label(depth, plain)]
        lines.append(Curve(depth, plain, "", tuple(rows["x"]), tuple(rows["value"]), paper=True))
    return lines


def _nets() -> Iterator[tuple[bool, int]]:
    """The nets in the order of the legend: whether they are plain, and their depths."""
    return ((kind["plain"], depth) for kind in PLAN["nets"] for depth in kind["depths"])


def select(runs: Sequence[Run]) -> tuple[Drawn, tuple[str, ...]]:
    """The runs drawn, those on CIFAR-10 before any on digits, and a sentence on each kind not drawn."""
    notes: list[str] = []
    for dataset in PLAN["datasets"]:
        layout = {**PLAN, "panels": PLAN["nets"], "datasets": [dataset]}
        drawn, told = curves.choose(layout, [run for run in runs if run.responses is not None])
        bare, _ = curves.choose(layout, [run for run in runs if run.responses is None])
        notes += told
        if lacking := list(map(seed_name, bare.runs)):
            notes.append(f"Not drawn, not measured by `resrepro eval RUN --responses`: {', '.join(lacking)}.")
        if drawn.groups:
            break
    return drawn, tuple(notes)


def _style(line: Curve, palette: Mapping[str, Any], faint: bool) -> dict[str, Any]:
    colour = palette["colours"][str(line.depth)]
    style: dict[str, Any] = {
        "color": drawing.pale(colour) if faint else colour,
        "linestyle": drawing.DASHES if line.plain else "-",
        "linewidth": 0.8 if faint else drawing.BOLD - 0.5,
        "zorder": 2.0 if faint else 3.0,
    }
    marker = palette["markers"].get(str(line.depth))
    if marker and not faint:
        start = 4 * list(palette["markers"]).index(str(line.depth)) % MARKED  # they do not hide each other
        style |= {"marker": marker, "markersize": 5, "markevery": (start, MARKED)}
    return style


def _legend_keys(ours: list[Curve], theirs: list[Curve], palette: Mapping[str, Any]) -> "list[Artist]":
    """The nets of ours, or the paper's without any, then the paper's pale lines and the bands."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    own = {line.net for line in ours}
    keys: list[Artist] = []
    for line in [*ours, *(line for line in theirs if line.net not in own)]:
        faint = line.paper and bool(ours)
        style = _style(line, palette, faint) | {"markevery": None}
        keys.append(Line2D([], [], label=f"{line.net}, the paper's alone" if faint else line.net, **style))
    if any(line.std for line in ours):
        keys.append(Patch(color=drawing.DARK, alpha=0.18, linewidth=0, label=drawing.BAND))
    if own.intersection(line.net for line in theirs):
        pale = drawing.pale(drawing.DARK)
        keys.append(Line2D([], [], color=pale, linewidth=0.8, label="the paper's curves (pale)"))
    return keys


def _measured_on(drawn: Drawn) -> str:
    """What a response is and on which images it was measured, in sentences."""
    found = drawn.first.responses
    assert found is not None
    return str(PLAN["measured"]).format(images=f"{found.images:,} {SET_NAMES[found.part]} images")


def _footnote(
    drawn: Drawn, theirs: Sequence[Curve], ends: tuple[float, float], notes: Iterable[str]
) -> list[str]:
    """What a reader must know beside the lines, in sentences; empty where there is nothing to say."""
    if not drawn.groups:
        return [curves.alone(PLAN)]
    several = len(drawn.runs) > len(drawn.groups)
    accuracy, (low, high) = PLAN["paper"]["accuracy"], PLAN["frame"]
    return [
        _measured_on(drawn),
        curves.lead(PLAN, drawn),
        "Lines: mean over seeds; bands: ± standard deviation (n−1)." if several else "",
        curves.departures_told(drawn),
        curves.spell_rule(notes),
        f"Pale lines: the paper's curves, read off its vector figure (±{accuracy:g})." if theirs else "",
        f"The paper's own frame ends at {low:g} and {high:g}." if ends != (low, high) else "",
    ]


def build(runs: Sequence[Run]) -> Table:
    """The table from runs that were read already."""
    drawn, left_out = select(runs)
    rows: list[Row] = []
    records, missing = [], []
    for plain, depth in _nets():
        label = net_label(depth, plain)
        runs_of = drawn.groups[label].runs if label in drawn.groups else ()
        ours = [run.responses for run in runs_of if run.responses]
        both, record = _in_numbers(label, ours)
        rows += both
        records.append(record)
        missing += [] if ours else [(label, _command(depth, plain, drawn))]
    told = [PLAN["table"]["rows"]]
    if drawn.groups:
        told += [_measured_on(drawn), curves.lead(PLAN, drawn), curves.departures_told(drawn)]
    return Table(
        name=EXHIBIT,
        title=PLAN["table"]["title"],
        columns=("net", *STD, "ratio: start", "ratio: end"),
        rows=tuple(rows),
        missing=tuple(missing),
        remarks=(*filter(None, told), PLAN["table"]["ratios"], *left_out),
        records=tuple(records),
    )


def _in_numbers(label: str, ours: Sequence[Responses]) -> tuple[tuple[Row, Row], dict[str, object]]:
    """The paper's row of a net and ours, and both as raw numbers, NaN where there is none."""
    record: dict[str, object] = {"net": label}
    theirs, own = [], []
    for metric, of in STD.values():
        paper, std = published()[EXHIBIT, label, metric].value, [of(each.std) for each in ours]
        theirs.append(f"{paper:.2f}")
        own.append(spell_mean(std).partition(" ")[0] if ours else DASH)
        record[f"{metric}_paper"] = paper
        record[f"{metric}_ours"] = round(statistics.fmean(std or [NONE]), 6)
    for when in ("start", "end"):
        norms = [getattr(each, f"gradient_norm_{when}") for each in ours]
        ratios = [max(norm) / min(norm) if min(norm) > 0 else math.inf for norm in norms]
        ratio = statistics.fmean(ratios or [NONE])
        own.append((f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}") if ours else DASH)
        record[f"gradient_ratio_{when}"] = float(f"{ratio:.6g}")
    record["n"] = len(ours)
    record["set"] = ours[0].part if ours else ""
    record["images"] = ours[0].images if ours else NONE
    return (Row((label, *theirs, "", "")), Row(("↳ ours", *own))), record


def _command(depth: int, plain: bool, drawn: Drawn) -> str:
    """What trains and measures a net as those shown were; as the paper did if there are none."""
    experiment = catalogue.experiment_for("cifar10", depth, plain)
    spec, seeds, top = experiment.spec(), 1, "runs"
    train = command_for(spec)
    if drawn.groups:
        seeds = min(len(group.runs) for group in drawn.groups.values())
        top = drawn.first.runs_folder.as_posix()
        spec, train = drawn.spec_for(experiment.name, {}), drawn.command(experiment.name, {}, seeds)
    folders = shlex.join(f"{top}/{spec.name}/seed{seed}" for seed in range(seeds))
    return f"{train} && resrepro eval {folders} --responses"
