"""Figures 1, 4 and 6 and the demo's from run records, with the paper's own curves behind if wanted.

Which runs a figure draws is decided in `figures.choice`, what is written below it in
`figures.captions`, and how it looks in `figures.panels`. Errors are in percent. Nothing here imports
torch.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from resrepro.comparison.groups import SeedGroup, iterations_of
from resrepro.errors import RecordError, UsageError
from resrepro.figures.captions import footnote, held_out_names
from resrepro.figures.choice import Groups, choose, first_of, paper_iterations
from resrepro.figures.panels import draw_sheet
from resrepro.figures.sheets import Curve, Panel, Sheet
from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.experiment import command_for, net_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def _layouts() -> Mapping[str, Any]:
    text = resources.files("resrepro.paper").joinpath("figures.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def exhibits() -> tuple[str, ...]:
    """The figures that can be drawn."""
    return tuple(_layouts()["exhibits"])


def check(exhibit: str, palette: str) -> None:
    """Check that exhibit and palette exist, before anything is drawn.

    Raises:
        UsageError: if one does not.
    """
    _look_up("exhibit", exhibit)
    _look_up("palette", palette)


def palette_named(name: str) -> Mapping[str, Any]:
    """Colours and markers of the nets by depth.

    Raises:
        UsageError: if there is no such palette.
    """
    return _look_up("palette", name)


def _look_up(kind: str, name: str) -> Mapping[str, Any]:
    """An exhibit's layout or a palette.

    Raises:
        UsageError: if there is none of that name.
    """
    known: Mapping[str, Mapping[str, Any]] = _layouts()[f"{kind}s"]
    if name not in known:
        raise UsageError(f"no {kind} {name!r}: there are {', '.join(known)}.")
    return known[name]


def title(exhibit: str) -> str:
    """What the files of a figure call it.

    Raises:
        UsageError: for an unknown exhibit.
    """
    return str(_look_up("exhibit", exhibit)["title"])


def make_figure(
    exhibit: str, runs: Sequence[Run], *, paper: bool = False, palette: str = "paper"
) -> "tuple[Figure, tuple[str, ...]]":
    """The figure as a matplotlib object, for notebooks, and sentences on what was left out.

    Raises:
        UsageError: for an unknown exhibit or palette.
        RecordError: if there is nothing to draw.
    """
    sheet, notes = make_sheet(exhibit, runs, paper=paper, palette=palette)
    return draw_sheet(sheet), notes


def make_sheet(
    exhibit: str, runs: Sequence[Run], *, paper: bool = False, palette: str = "paper"
) -> tuple[Sheet, tuple[str, ...]]:
    """The figure as data, and sentences on what was left out.

    Raises:
        UsageError: for an unknown exhibit or palette.
        RecordError: if there is nothing to draw.
    """
    layout, colours = _look_up("exhibit", exhibit), _look_up("palette", palette)
    groups, notes = select(exhibit, runs)
    theirs = _paper_curves(exhibit, layout) if paper else {}
    if paper and not theirs:
        notes = (*notes, f"The paper has no curves for {exhibit}.")
    if not groups and not theirs:
        raise RecordError(_nothing_to_draw(exhibit, layout))
    first = first_of(groups) if groups else None
    iterations = iterations_of(first) if first else int(layout["paper"]["drawn_to"])
    panels = tuple(
        Panel(
            panel,
            tuple(
                curve
                for label, depth in _nets(panel, groups)
                for kind in panel["kinds"]
                if (curve := mean_curve(groups[label], depth, panel["plain"], kind))
            ),
            tuple(
                _scaled(curve, iterations / paper_iterations(layout) if first else 1)
                for curve in theirs.get(panel["name"], ())
            ),
        )
        for panel in layout["panels"]
    )
    held_out, told = held_out_names(layout, first)
    below = footnote(layout, groups, {curve.net for group in theirs.values() for curve in group}, notes)
    return Sheet(layout, panels, iterations, held_out, told, colours, below), notes


def select(exhibit: str, runs: Iterable[Run]) -> tuple[Groups, tuple[str, ...]]:
    """The runs that a figure draws, by net, and a sentence on each kind of run that it leaves out.

    Raises:
        UsageError: for an unknown exhibit.
    """
    return choose(_look_up("exhibit", exhibit), runs)


def _nets(panel: Mapping[str, Any], groups: Groups) -> list[tuple[str, int]]:
    """Label and depth of the nets of a panel that have runs."""
    depths = sorted({int(group.first.spec["depth"]) for group in groups.values()})
    allowed = panel.get("depths", depths)
    nets = [(net_label(depth, panel["plain"]), depth) for depth in depths if depth in allowed]
    return [(label, depth) for label, depth in nets if label in groups]


def mean_curve(group: SeedGroup, depth: int, plain: bool, kind: str) -> Curve | None:
    """Mean error over seeds at each iteration that all have sampled; None if there is none."""
    import numpy as np

    split = "train" if kind == "train" else group.first.headline_split
    runs = group.runs if split == "train" else group.of_one_set(split)
    sampled = [run.top1_errors(split) for run in runs]
    common = sorted(set.intersection(*map(set, sampled)))
    if not common:
        return None
    errors = np.array([[one[at] for one in sampled] for at in common])
    std = tuple(errors.std(axis=1, ddof=1).tolist()) if len(runs) > 1 else None
    return Curve(depth, plain, kind, tuple(map(float, common)), tuple(errors.mean(axis=1).tolist()), std)


def _paper_curves(exhibit: str, layout: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """The paper's curves by panel, at its own iterations."""
    from resrepro.paper import curves

    frame = curves(exhibit)
    kinds = layout.get("paper", {}).get("kinds", {})
    found: dict[str, list[Curve]] = {}
    for panel in layout["panels"]:
        for depth in panel.get("depths", ()):
            for kind in panel["kinds"]:
                rows = frame[
                    (frame["panel"] == panel["name"])
                    & (frame["series"] == net_label(depth, panel["plain"]))
                    & (frame["kind"] == kinds.get(kind))
                ].sort_values("x")
                if not rows.empty:
                    x = tuple(float(value) * 10_000 for value in rows["x"])
                    curve = Curve(depth, panel["plain"], kind, x, tuple(rows["value"]), paper=True)
                    found.setdefault(panel["name"], []).append(curve)
    return found


def _scaled(curve: Curve, factor: float) -> Curve:
    """A curve of the paper on a schedule that is longer by a factor."""
    x = tuple(factor * iteration for iteration in curve.iterations)
    return Curve(curve.depth, curve.plain, curve.kind, x, curve.errors, paper=True)


def _nothing_to_draw(exhibit: str, layout: Mapping[str, Any]) -> str:
    command = command_for(catalogue.find(layout["example"]).spec())
    paper = "" if "paper" not in layout else ", and `--paper` draws the paper's curves alone"
    return f"no finished runs for {exhibit} in the runs folders: `{command}` makes one{paper}."
