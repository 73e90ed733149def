"""What is written below a figure: length and seeds of the runs, their data and departures, whose curves
are whose. Nothing here imports torch.
"""

from collections.abc import Collection, Mapping
from typing import Any

from resrepro.comparison.cells import SET_NAMES, data_told
from resrepro.comparison.selection import Cells, iterations_of, paper_iterations
from resrepro.records import Run
from resrepro.spec.specs import IMAGENET_CLASSES


def held_out_names(layout: Mapping[str, Any], run: Run | None) -> tuple[str, str]:
    """The name of the set that the bold lines are measured on, and what the legend says of them.

    `run` is any of the runs drawn, None where the paper's curves stand alone.
    """
    name = layout["paper"]["held_out"] if run is None else SET_NAMES[run.headline_split]
    if "view" in layout:
        return name, f"{name} error ({layout['view']})"
    size = run.env["data"]["images"].get(run.headline_split) if run else None
    if name == "test":
        return name, "test error"
    return name, f"{name} error ({size:,} held-out training images)" if size else f"{name} error"


def footnote(layout: Mapping[str, Any], cells: Cells, theirs: Collection[str]) -> tuple[str, ...]:
    """What a reader must know beside the curves, sentence by sentence.

    `theirs` are the nets of which the paper's curves are drawn.
    """
    if not cells:
        accuracy = layout["paper"]["accuracy"]
        return (f"The paper's own curves, read off its vector figure (±{accuracy:g}); no runs of ours.",)
    departures = departures_told(cells)
    told = [lead(layout, cells), _data(cells, departures), departures]
    told.append("Training error: on the batches trained on since the sample before.")
    if theirs:
        told.append(_whose(layout, cells, theirs))
    return tuple(sentence for sentence in told if sentence)


def _first(cells: Cells) -> Run:
    return next(iter(cells.values()))[0]


def lead(layout: Mapping[str, Any], cells: Cells) -> str:
    """Length of the runs, number of seeds and split, in one sentence."""
    first = _first(cells)
    ours, full = iterations_of(first), paper_iterations(layout)
    length = f"{ours:,} iterations" if ours == full else f"{ours:,} of the paper's {full:,} iterations"
    counts = {label: len(runs) for label, runs in cells.items()}
    usual = min(counts.values())
    more = [f"{label}: {count}" for label, count in counts.items() if count != usual]
    seeds = f"{usual} seed{'s' if usual > 1 else ''} per net" + (f" ({', '.join(more)})" if more else "")
    split = ", 45k/5k split" if first.spec["recipe"].get("split") == "45k5k" else ""
    prefix = "Shortened: " if first.status == "shortened" else ""
    return f"{prefix}{length}, {seeds}{split}."


def _data(cells: Cells, said: str = "") -> str:
    """What the images were, where ImageNet's nets were trained on others and it was not said already."""
    first = _first(cells)
    if first.family != "imagenet":
        return ""
    told = data_told(first.classes, first.env["data"]["images"], [said])
    return f"Data: {told[0]}." if told else ""


def departures_told(cells: Cells) -> str:
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


def _whose(layout: Mapping[str, Any], cells: Cells, theirs: Collection[str]) -> str:
    """Which lines are the paper's, and how they differ from ours."""
    first = _first(cells)
    lines = "Pale lines" if layout["training"] == "thin" else "Thin lines"
    told = f"{lines}{'' if set(theirs) <= cells.keys() else ' and names in italics'}: the paper's curves"
    if _data(cells):
        told += f" of ImageNet's {IMAGENET_CLASSES:,} classes"
    if iterations_of(first) != paper_iterations(layout):
        told += ", x scaled to this schedule"
    ours, paper = held_out_names(layout, first)[0], layout["paper"]["held_out"]
    return told + ("." if ours == paper else f"; theirs are {paper} errors where ours are {ours} errors.")
