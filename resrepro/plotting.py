"""Figures 1 and 6 and the demo's from run records, with the paper's own curves behind if wanted.

Runs share a line only if they are identical but for the seed, and a figure only if they follow one
protocol: the same recipe, data and mode. What is left out is told in `Drawing.notes`. Errors are in
percent. Nothing here imports torch.
"""

import json
import tomllib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro import catalogue
from resrepro.errors import RecordError, UsageError
from resrepro.panels import Curve, Panel, Sheet, draw_sheet, render
from resrepro.recording import write_whole
from resrepro.records import DEFAULT_FOLDERS, Run, collect
from resrepro.specs import net_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What nets of one protocol may differ in: the warm-up belongs to the net (Section 4.2), and how often
# we sample does not change what is trained.
FREE_SETTINGS = ("warmup_lr", "warmup_until_err", "warmup_window", "eval_every")
SET_NAMES = {"test": "test", "val": "validation"}
Cells = Mapping[str, tuple[Run, ...]]  # by net label


@dataclass(frozen=True)
class Drawing:
    """The files of a figure, and sentences on what is not in it."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


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


def _look_up(kind: str, name: str) -> Mapping[str, Any]:
    """An exhibit's layout or a palette.

    Raises:
        UsageError: if there is none of that name.
    """
    known: Mapping[str, Mapping[str, Any]] = _layouts()[f"{kind}s"]
    if name not in known:
        raise UsageError(f"no {kind} {name!r}: there are {', '.join(known)}.")
    return known[name]


def plot(
    exhibit: str = "figure6",
    runs: str | Path | Sequence[str | Path] = DEFAULT_FOLDERS,
    figures: str | Path = "figures",
    *,
    paper: bool = False,
    palette: str = "paper",
) -> list[Path]:
    """Draw a figure of the paper from our runs, as PNG and SVG.

    Args:
        exhibit: "figure1", "figure6" or "demo".
        runs: one or several folders of runs; a broken record gives a `UserWarning`.
        figures: folder to which `<exhibit>.png` and `<exhibit>.svg` are written.
        paper: draw the paper's own curves thin behind ours, or alone where there are no runs.
        palette: "paper", or "safe" for colour-blind readers.

    Returns:
        The paths of the two files. Equal records give equal bytes.

    Raises:
        UsageError: for an unknown exhibit or palette.
        RecordError: if there is nothing to draw, or the files cannot be written.
    """
    folders = [runs] if isinstance(runs, str | Path) else runs
    collection = collect([Path(folder) for folder in folders])
    for sentence in collection.broken:
        warnings.warn(sentence, stacklevel=2)
    return list(draw(exhibit, collection.runs, Path(figures), paper=paper, palette=palette).paths)


def draw(
    exhibit: str, runs: Sequence[Run], figures: Path, *, paper: bool = False, palette: str = "paper"
) -> Drawing:
    """The same from runs that were read already; also tells what was left out.

    Raises:
        UsageError: for an unknown exhibit or palette.
        RecordError: if there is nothing to draw, or the files cannot be written.
    """
    figure, notes = make_figure(exhibit, runs, paper=paper, palette=palette)
    files = render(figure, str(_look_up("exhibit", exhibit)["title"]))
    paths = tuple(figures / f"{exhibit}.{kind}" for kind in files)
    for path, content in zip(paths, files.values(), strict=True):
        write_whole(path, content)
    return Drawing(paths, notes)


def make_figure(
    exhibit: str, runs: Sequence[Run], *, paper: bool = False, palette: str = "paper"
) -> "tuple[Figure, tuple[str, ...]]":
    """The figure as a matplotlib object, for notebooks, and sentences on what was left out.

    Raises:
        UsageError: for an unknown exhibit or palette.
        RecordError: if there is nothing to draw.
    """
    layout, colours = _look_up("exhibit", exhibit), _look_up("palette", palette)
    cells, notes = select(exhibit, runs)
    theirs = _paper_curves(exhibit, layout) if paper else {}
    if paper and not theirs:
        notes = (*notes, f"The paper has no curves for {exhibit}.")
    if not cells and not theirs:
        raise RecordError(_nothing_to_draw(exhibit, layout))
    first = next(iter(cells.values()))[0] if cells else None
    iterations = _iterations(first) if first else _paper_iterations()
    panels = tuple(
        Panel(
            panel,
            tuple(
                curve
                for label, depth in _nets(panel, cells)
                for kind in panel["kinds"]
                if (curve := _mean_curve(cells[label], depth, panel["plain"], kind))
            ),
            tuple(_scaled(curve, iterations) for curve in theirs.get(panel["name"], ())),
        )
        for panel in layout["panels"]
    )
    held_out, told = _held_out(first)
    footnote = _footnote(cells, {curve.net for group in theirs.values() for curve in group}, held_out)
    sheet = Sheet(layout, panels, iterations, held_out, told, colours, footnote)
    return draw_sheet(sheet), notes


def select(exhibit: str, runs: Iterable[Run]) -> tuple[Cells, tuple[str, ...]]:
    """The runs that a figure draws, by net, and a sentence on each kind of run that it leaves out.

    Drawn are finished runs with option-A shortcuts of a single protocol: that of the paper-exact runs
    if there are any, else the one that covers most nets, else the longest.

    Raises:
        UsageError: for an unknown exhibit.
    """
    layout = _look_up("exhibit", exhibit)
    known = [run for run in runs if run.spec["dataset"] == layout["dataset"] and _has_place(layout, run)]
    unfinished = [run for run in known if not run.finished]
    known = [run for run in known if run.finished]
    shortcuts = [run for run in known if run.spec["shortcut"] not in (None, "A")]
    known = [run for run in known if run.spec["shortcut"] in (None, "A")]
    protocols: dict[str, list[Run]] = {}
    for run in known:
        protocols.setdefault(_protocol(run), []).append(run)
    chosen = max(sorted(protocols), key=lambda key: _merit(protocols[key]), default="")
    others = [run for run in known if _protocol(run) != chosen]
    cells, doubles = _one_cell_per_net(protocols.get(chosen, []))
    notes = [
        _note("Not drawn, unfinished", unfinished, with_status=True),
        _note("Not drawn, shortcut option B or C (the figure shows A)", shortcuts),
        _note("Not drawn, another protocol than that of the figure", others),
        _note("Not drawn, other settings than the runs drawn of the same net", doubles),
    ]
    return cells, tuple(note for note in notes if note)


def _has_place(layout: Mapping[str, Any], run: Run) -> bool:
    """Whether some panel shows the run's net."""
    return any(
        run.spec["plain"] == panel["plain"] and run.spec["depth"] in panel.get("depths", [run.spec["depth"]])
        for panel in layout["panels"]
    )


def _protocol(run: Run) -> str:
    """What all runs of one figure share."""
    recipe = {key: value for key, value in run.spec["recipe"].items() if key not in FREE_SETTINGS}
    return json.dumps([recipe, run.env["data"]["sha256"], run.env["mode"]], sort_keys=True)


def _merit(runs: Sequence[Run]) -> tuple[bool, int, int, int, int]:
    """Rank of a protocol: paper-exact, nets covered, iterations, few settings changed, runs."""
    nets = {(run.spec["plain"], run.spec["depth"]) for run in runs}
    return (
        any(run.paper_exact for run in runs),
        len(nets),
        _iterations(runs[0]),
        -min(run.name.count("+") for run in runs),
        len(runs),
    )


def _one_cell_per_net(runs: Sequence[Run]) -> tuple[Cells, list[Run]]:
    """For each net its cell (the exact one, else that of most seeds), and the runs of other cells."""
    nets: dict[tuple[bool, int], dict[tuple[str, str, str], list[Run]]] = {}
    for run in runs:
        net = not run.spec["plain"], int(run.spec["depth"])
        nets.setdefault(net, {}).setdefault(run.cell, []).append(run)
    cells: dict[str, tuple[Run, ...]] = {}
    doubles: list[Run] = []
    for (residual, depth), groups in sorted(nets.items()):
        best = max(sorted(groups), key=lambda cell: (groups[cell][0].exact, len(groups[cell])))
        cells[net_label(depth, not residual)] = tuple(sorted(groups[best], key=lambda run: run.seed))
        doubles += [run for cell, group in groups.items() if cell != best for run in group]
    return cells, doubles


def _note(told: str, runs: Sequence[Run], *, with_status: bool = False) -> str:
    names = [
        f"{run.name} seed {run.seed}"
        + (f" ({run.status} at iteration {run.result['iteration']:,})" if with_status else "")
        for run in runs
    ]
    return f"{told}: {', '.join(names)}." if names else ""


def _nets(panel: Mapping[str, Any], cells: Cells) -> list[tuple[str, int]]:
    """Label and depth of the nets of a panel that have runs."""
    depths = sorted({int(cell[0].spec["depth"]) for cell in cells.values()})
    allowed = panel.get("depths", depths)
    nets = [(net_label(depth, panel["plain"]), depth) for depth in depths if depth in allowed]
    return [(label, depth) for label, depth in nets if label in cells]


def _mean_curve(runs: Sequence[Run], depth: int, plain: bool, kind: str) -> Curve | None:
    """Mean error over seeds at each iteration that all have sampled; None if there is none."""
    import pandas as pd

    split = "train" if kind == "train" else runs[0].headline_split
    columns = [
        run.metrics[run.metrics["split"] == split].groupby("iteration")["top1_err"].last() for run in runs
    ]
    errors = pd.concat(columns, axis=1, join="inner").dropna().sort_index()
    if errors.empty:
        return None
    std = tuple(errors.std(axis=1, ddof=1)) if len(runs) > 1 else None
    return Curve(depth, plain, kind, tuple(map(float, errors.index)), tuple(errors.mean(axis=1)), std)


def _paper_curves(exhibit: str, layout: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """The paper's curves by panel, at its own iterations."""
    from resrepro.paper import curves

    frame = curves(exhibit)
    found: dict[str, list[Curve]] = {}
    for panel in layout["panels"]:
        for depth in panel.get("depths", ()):
            for kind in panel["kinds"]:
                rows = frame[
                    (frame["panel"] == panel["name"])
                    & (frame["series"] == net_label(depth, panel["plain"]))
                    & (frame["kind"] == ("train" if kind == "train" else "test"))
                ].sort_values("x")
                if not rows.empty:
                    x = tuple(float(value) * 10_000 for value in rows["x"])
                    curve = Curve(depth, panel["plain"], kind, x, tuple(rows["value"]), paper=True)
                    found.setdefault(panel["name"], []).append(curve)
    return found


def _scaled(curve: Curve, iterations: int) -> Curve:
    """A curve of the paper on a schedule of another length."""
    factor = iterations / _paper_iterations()
    x = tuple(factor * iteration for iteration in curve.iterations)
    return Curve(curve.depth, curve.plain, curve.kind, x, curve.errors, paper=True)


def _iterations(run: Run) -> int:
    return int(run.spec["recipe"]["iterations"])


def _paper_iterations() -> int:
    return catalogue.recipes()[catalogue.PAPER_RECIPE].recipe.iterations


def _held_out(run: Run | None) -> tuple[str, str]:
    """The name of the set that the bold lines are measured on, and what the legend says of them."""
    if run is None or run.headline_split == "test":
        return "test", "test error"
    name = SET_NAMES[run.headline_split]
    size = run.env["data"].get("images", {}).get(run.headline_split)
    return name, f"{name} error ({size:,} held-out training images)" if size else f"{name} error"


def _footnote(cells: Cells, theirs: Collection[str], held_out: str) -> tuple[str, ...]:
    """What a reader must know beside the curves: length, seeds, departures, whose curves are whose.

    `theirs` are the nets of which the paper's curves are drawn.
    """
    if not cells:
        return ("The paper's own curves, read off its vector figure (±0.03); no runs of ours.",)
    told = [_lead(cells), _departures(cells)]
    told.append("Training error: on the batches trained on since the sample before.")
    if theirs:
        scaled = _iterations(next(iter(cells.values()))[0]) != _paper_iterations()
        told.append(
            f"Thin lines{'' if set(theirs) <= cells.keys() else ' and names in italics'}: the paper's curves"
            + (", x scaled to this schedule" if scaled else "")
            + (f"; theirs are test errors where ours are {held_out} errors." if held_out != "test" else ".")
        )
    return tuple(sentence for sentence in told if sentence)


def _lead(cells: Cells) -> str:
    """Length of the runs, number of seeds and split, in one sentence."""
    first = next(iter(cells.values()))[0]
    ours, full = _iterations(first), _paper_iterations()
    length = f"{ours:,} iterations" if ours == full else f"{ours:,} of the paper's {full:,} iterations"
    counts = {label: len(runs) for label, runs in cells.items()}
    usual = min(counts.values())
    more = [f"{label}: {count}" for label, count in counts.items() if count != usual]
    seeds = f"{usual} seed{'s' if usual > 1 else ''} per net" + (f" ({', '.join(more)})" if more else "")
    split = ", 45k/5k split" if first.spec["recipe"]["split"] == "45k5k" else ""
    prefix = "Shortened: " if first.status == "shortened" else ""
    return f"{prefix}{length}, {seeds}{split}."


def _departures(cells: Cells) -> str:
    """How the runs depart from the paper; where not all nets do, which."""
    told: dict[str, list[str]] = {}
    for label, runs in cells.items():
        sentences = [*runs[0].result["departures"], *runs[0].result.get("notices", [])]
        if runs[0].env["mode"] != "default":
            sentences.append(f"trained in mode {runs[0].env['mode']}")
        for sentence in sentences:
            told.setdefault(str(sentence), []).append(label)
    parts = [
        sentence if len(labels) == len(cells) else f"{sentence} ({', '.join(labels)})"
        for sentence, labels in told.items()
        if " iterations instead of " not in sentence  # said in the lead
    ]
    return f"Departures from the paper: {'; '.join(parts)}." if parts else ""


def _nothing_to_draw(exhibit: str, layout: Mapping[str, Any]) -> str:
    command = catalogue.command_for(catalogue.find(layout["example"]).spec())
    paper = "" if layout["dataset"] != "cifar10" else ", and `--paper` draws the paper's curves alone"
    return f"no finished runs for {exhibit} in the runs folders: `{command}` makes one{paper}."
