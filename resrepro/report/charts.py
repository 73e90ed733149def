"""The curves of a figure as data for the page, and the same in sentences for those who cannot see them.

Errors are in percent. Which runs a figure shows, and on which axes, is decided in `figures.curves`.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resrepro.comparison.groups import SeedGroup
from resrepro.errors import RecordError
from resrepro.figures.curves import Curve, Groups, Panel, Sheet, make_sheet, mean_curve, select
from resrepro.records import Run
from resrepro.spec.experiment import net_label

OURS, SEED, PAPER = "ours", "seed", "paper"  # whose a line is: our mean, one of our runs, the paper's
DECIMALS = 3  # of an error in percent: the curves of the paper were read to ±0.03


@dataclass(frozen=True)
class Chart:
    """A figure of curves.

    `data` is what the page's script draws; `told` has a sentence for each net, `footnote` and `notes` say
    what a reader must know, and what was left out. `depths` and `lines` are what can be switched on and
    off: numbers of layers, and kinds of lines with the words for them.
    """

    title: str
    data: dict[str, Any]
    depths: tuple[int, ...]
    lines: tuple[tuple[str, str, bool], ...]
    told: tuple[tuple[str, tuple[str, ...]], ...]
    footnote: tuple[str, ...]
    notes: tuple[str, ...]


def chart_of(exhibit: str, runs: Sequence[Run]) -> Chart | None:
    """The chart of a figure, the paper's curves behind ours; None if there is nothing to draw.

    Raises:
        UsageError: for a figure that is not of curves.
    """
    try:
        sheet, notes = make_sheet(exhibit, runs, paper=True)
    except RecordError:
        return None
    groups, _ = select(exhibit, runs)
    seeds = any(len(group.runs) > 1 for group in groups.values())
    panels = [_panel(sheet, panel, groups if seeds else {}) for panel in sheet.panels]
    return Chart(
        title=str(sheet.layout["title"]),
        data={"unit": sheet.unit, "panels": panels},
        depths=tuple(sorted(int(depth) for depth in sheet.depths)),
        lines=_switches(sheet, seeds),
        told=tuple((str(panel.layout["title"]), _told(sheet, panel)) for panel in sheet.panels),
        footnote=sheet.footnote,
        notes=notes,
    )


def _switches(sheet: Sheet, seeds: bool) -> tuple[tuple[str, str, bool], ...]:
    """The kinds of lines that there are: name, words, and whether they are shown at first."""
    drawn = [curve for panel in sheet.panels for curve in (*panel.ours, *panel.paper)]
    wanted = [
        ("train", "training error", any(curve.kind == "train" for curve in drawn)),
        ("held_out", sheet.held_out_told, any(curve.kind != "train" for curve in drawn)),
        (OURS, "ours (mean over seeds)" if seeds else "ours", sheet.has_ours),
        (SEED, "ours, each seed", seeds),
        (PAPER, "the paper's", any(curve.paper for curve in drawn)),
    ]
    return tuple((name, words, name != SEED) for name, words, there in wanted if there)


def _panel(sheet: Sheet, panel: Panel, groups: Groups) -> dict[str, Any]:
    """One panel for the script: its frame, and its lines, the paper's first."""
    start = float(panel.layout.get("start", 0)) * sheet.iterations
    lines = [_line(sheet, curve, PAPER if curve.paper else OURS) for curve in (*panel.paper, *panel.ours)]
    for run, curve in _runs_of(panel.ours, groups):
        lines.append(_line(sheet, curve, SEED) | {"seed": run.seed})
    return {
        "frame": [start, float(sheet.iterations), float(sheet.floor), float(sheet.top)],
        "lines": lines,
        "share": float(panel.layout.get("share", 1)),
        "ylabel": str(panel.layout["ylabel"]).format(held_out=sheet.held_out),
    }


def _runs_of(curves: Iterable[Curve], groups: Groups) -> Iterable[tuple[Run, Curve]]:
    """The curve of each run behind some means, of nets of several seeds."""
    for mean in curves:
        runs = groups[mean.net].runs if mean.net in groups else ()
        for run in runs if len(runs) > 1 else ():
            if curve := mean_curve(SeedGroup((run,)), mean.depth, mean.plain, mean.kind):
                yield run, curve


def _line(sheet: Sheet, curve: Curve, whose: str) -> dict[str, Any]:
    return {
        "net": curve.net,
        "depth": curve.depth,
        "kind": "train" if curve.kind == "train" else "held_out",
        "told": _set_name(sheet, curve),
        "whose": whose,
        "x": [round(iteration, 1) for iteration in curve.iterations],
        "y": [round(error, DECIMALS) for error in curve.errors],
    }


def _told(sheet: Sheet, panel: Panel) -> tuple[str, ...]:
    """A sentence for each net of a panel: where its curves end, ours and the paper's."""
    curves = sorted((*panel.ours, *panel.paper), key=lambda curve: (curve.depth, curve.plain))
    sentences = []
    for (depth, plain), group in itertools.groupby(curves, lambda curve: (curve.depth, curve.plain)):
        whose: dict[str, list[str]] = {}
        for curve in group:
            whose.setdefault("the paper's" if curve.paper else "ours", []).append(_end(sheet, curve))
        ends = [f"{name} ends at {' and '.join(parts)} error" for name, parts in sorted(whose.items())]
        sentences.append(f"{net_label(depth, plain)}: {'; '.join(ends)}.")
    return tuple(sentences)


def _end(sheet: Sheet, curve: Curve) -> str:
    """`27.7 ± 0.3 % validation`."""
    spread = f" ± {curve.std[-1]:.1f}" if curve.std else ""
    return f"{curve.errors[-1]:.1f}{spread} % {_set_name(sheet, curve)}"


def _set_name(sheet: Sheet, curve: Curve) -> str:
    """The set that a curve was measured on."""
    if curve.kind == "train":
        return "training"
    return str(sheet.layout["paper"]["held_out"]) if curve.paper else sheet.held_out
