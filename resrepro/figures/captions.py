"""What is written below a figure: length and seeds of the runs, their data and departures, whose curves
are whose. Nothing here imports torch.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from resrepro.comparison.groups import RULE, SET_NAMES, about_images, iterations_of
from resrepro.figures.choice import ANOTHER, Groups, first_of, paper_iterations
from resrepro.records import Run
from resrepro.spec.experiment import IMAGENET_CLASSES


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


def footnote(
    layout: Mapping[str, Any], groups: Groups, theirs: Collection[str], notes: Iterable[str] = ()
) -> tuple[str, ...]:
    """What a reader must know beside the curves, sentence by sentence.

    `theirs` are the nets of which the paper's curves are drawn, `notes` say what is not drawn.
    """
    if not groups:
        accuracy = layout["paper"]["accuracy"]
        return (f"The paper's own curves, read off its vector figure (±{accuracy:g}); no runs of ours.",)
    departures = departures_told(groups)
    told = [lead(layout, groups), _data(groups, departures), departures]
    told.append("Training error: on the batches trained on since the sample before.")
    told += rule_told(notes)
    if theirs:
        told.append(_whose(layout, groups, theirs))
    return tuple(sentence for sentence in told if sentence)


def rule_told(notes: Iterable[str]) -> list[str]:
    """By which rule the runs were chosen, where others are not drawn."""
    several = any(note.startswith(ANOTHER) for note in notes)
    return [f"Of several protocols one is drawn: {RULE}."] if several else []


def lead(layout: Mapping[str, Any], groups: Groups) -> str:
    """Length of the runs, number of seeds and split, in one sentence."""
    first = first_of(groups)
    ours, full = iterations_of(first), paper_iterations(layout)
    length = f"{ours:,} iterations" if ours == full else f"{ours:,} of the paper's {full:,} iterations"
    counts = {label: len(group.runs) for label, group in groups.items()}
    usual = min(counts.values())
    more = [f"{label}: {count}" for label, count in counts.items() if count != usual]
    seeds = f"{usual} seed{'s' if usual > 1 else ''} per net" + (f" ({', '.join(more)})" if more else "")
    split = ", 45k/5k split" if first.spec["recipe"].get("split") == "45k5k" else ""
    prefix = "Shortened: " if first.status == "shortened" else ""
    return f"{prefix}{length}, {seeds}{split}."


def _data(groups: Groups, said: str = "") -> str:
    """What the images were, where ImageNet's nets were trained on others and it was not said already."""
    first = first_of(groups)
    if first.family != "imagenet":
        return ""
    told = about_images(first.classes, first.env["data"]["images"], [said])
    return f"Data: {told[0]}." if told else ""


def departures_told(groups: Groups) -> str:
    """How the runs depart from the paper; where not all nets do, which."""
    told: dict[str, list[str]] = {}
    for label, group in groups.items():
        for sentence in group.caveats([{"set": group.first.headline_split}], as_trained=True):
            told.setdefault(sentence, []).append(label)
    parts = [
        sentence if len(labels) == len(groups) else f"{sentence} ({', '.join(labels)})"
        for sentence, labels in told.items()
        if " iterations instead of " not in sentence  # said in the lead
    ]
    return f"Departures from the paper: {'; '.join(parts)}." if parts else ""


def _whose(layout: Mapping[str, Any], groups: Groups, theirs: Collection[str]) -> str:
    """Which lines are the paper's, and how they differ from ours."""
    first = first_of(groups)
    lines = "Pale lines" if layout["training"] == "thin" else "Thin lines"
    told = f"{lines}{'' if set(theirs) <= groups.keys() else ' and names in italics'}: the paper's curves"
    if _data(groups):
        told += f" of ImageNet's {IMAGENET_CLASSES:,} classes"
    if iterations_of(first) != paper_iterations(layout):
        told += ", x scaled to this schedule"
    ours, paper = held_out_names(layout, first)[0], layout["paper"]["held_out"]
    return told + ("." if ours == paper else f"; theirs are {paper} errors where ours are {ours} errors.")
