"""Figures 1, 4 and 6 and the demo's as data: which runs are drawn, their curves, and what is written below.

Drawn is one seed group per net, all of one protocol, with the paper's own curves behind if wanted.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resrepro.comparison import groups
from resrepro.comparison.groups import Protocol, SeedGroup
from resrepro.comparison.tables import TRAINING_ERROR
from resrepro.errors import RecordError, UsageError
from resrepro.paper import curves as paper_curves
from resrepro.paper import with_twins
from resrepro.records import Run
from resrepro.spec import IMAGENET_CLASSES, IMAGENET_IMAGES, catalogue, command_for, net_label
from resrepro.spec.recipe import FAMILIES, read_toml

FRAMES = (20, 40, 60, 100)  # upper ends of the error axis, percent
ANOTHER = "Not drawn, another protocol"
Layout = Mapping[str, Any]  # a figure's entry in figures.toml
Drawn = Protocol[str]  # the runs drawn, by net label, plain nets first, by depth; without groups if none


class Curve(NamedTuple):
    """A net's error (percent) by iteration, or in Figure 7 the std of its responses by layer."""

    depth: int
    plain: bool
    kind: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    std: tuple[float, ...] | None = None  # of `y` over seeds (n-1), where several are averaged
    paper: bool = False

    @property
    def net(self) -> str:
        """`plain-56` or `ResNet-56`."""
        return net_label(self.depth, self.plain)

    @property
    def band(self) -> tuple[list[float], list[float]]:
        """One std below (0 at the least) and above; the curve itself where there is none."""
        pairs = list(zip(self.y, self.std or (0.0,) * len(self.y), strict=True))
        return [max(0.0, y - std) for y, std in pairs], [y + std for y, std in pairs]


class Panel(NamedTuple):
    """One panel: its layout (figures.toml), our curves and the paper's."""

    layout: Layout
    ours: tuple[Curve, ...]
    paper: tuple[Curve, ...]

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Ours, then the paper's."""
        return (*self.ours, *self.paper)


class Sheet(NamedTuple):
    """A whole figure, ready to be drawn."""

    layout: Layout
    panels: tuple[Panel, ...]
    iterations: int
    held_out: str  # the set of the bold lines
    held_out_told: str  # what that is, for the legend
    palette: Mapping[str, Any]
    groups: Mapping[str, SeedGroup]
    footnote: tuple[str, ...]
    notes: tuple[str, ...]  # on what is not in it

    def frame(self, panel: Panel) -> tuple[int, int]:
        """The ends of a panel's error axis, percent: the paper's, or further where curves need it."""
        sharing = [other for other in self.panels if not self.apart or bool(other.ours) == bool(panel.ours)]
        start = self.iterations * self.layout.get("settled", 2 / 3)
        settled = [float(self.layout["frame"])]
        for other in sharing:
            for curve in other.curves:
                if curve.depth not in other.layout.get("off_scale", ()):
                    settled += [error for at, error in zip(curve.x, curve.y, strict=True) if at >= start]
        frames: Sequence[int] = self.layout.get("frames", FRAMES)
        top = next(frame for frame in frames if frame >= min(max(settled), 100))
        floor = int(self.layout.get("floor", 0))
        lowest = min((min(curve.y) for other in sharing for curve in other.curves), default=floor)
        if top > self.layout["frame"] and "of" in self.layout:  # far from the paper's errors
            return min(int(lowest) // 20 * 20, top - 40), top
        return floor if lowest >= floor else 0, top

    @property
    def curves(self) -> list[Curve]:
        """Those of all panels."""
        return [curve for panel in self.panels for curve in panel.curves]

    @property
    def has_ours(self) -> bool:
        """Whether any run of ours is drawn."""
        return any(panel.ours for panel in self.panels)

    @property
    def apart(self) -> bool:
        """Whether the paper's curves have panels of their own, below ours: they are of other images."""
        return self.has_ours and any(panel.paper for panel in self.panels) and "of" in self.layout

    @property
    def unit(self) -> int:
        """Iterations per unit of the x axis: 1e4, as in the paper, unless there are few."""
        return 10_000 if self.iterations >= 20_000 else 1

    def colour(self, depth: int, *, text: bool = False) -> str:
        """The colour of the nets of a depth, or of their names, which can be read on white."""
        own = text and "text" in self.palette
        listed, others = ("text", "other_text") if own else ("colours", "others")
        left: Sequence[str] = self.palette[others]
        return str(self.palette[listed].get(str(depth), left[(depth - 2) // 6 % len(left)]))


def read_layout(name: str) -> Mapping[str, Any]:
    """How a figure is laid out: a TOML file of `resrepro.paper`."""
    return read_toml(f"{name}.toml", "resrepro.paper")


def exhibits() -> Mapping[str, Layout]:
    """The figures of error curves and their layouts."""
    return with_twins(read_layout("figures")["exhibits"])


def palette_named(name: str, figures: str = "figures") -> Mapping[str, Any]:
    """Colours and markers by depth, of "figure3" by side of the map (UsageError for an unknown name)."""
    known: Mapping[str, Mapping[str, Any]] = read_layout(figures)["palettes"]
    if name not in known:
        raise UsageError(f"no palette {name!r}: there are {', '.join(known)}.")
    return known[name]


def make_sheet(exhibit: str, runs: Iterable[Run], *, paper: bool = False, palette: str = "paper") -> Sheet:
    """The figure as data, with the paper's curves if asked; RecordError if there is nothing to draw."""
    layout, colours = exhibits()[exhibit], palette_named(palette)
    drawn, notes = choose(layout, runs)
    first = drawn.first if drawn.groups else None
    layout = {**layout, "title": layout["title"].format(data=groups.data_told(first))}
    scale = groups.iterations_of(first) / paper_iterations(layout) if first else 1.0
    panels = []
    for panel in layout["panels"]:
        shown = [group for group in drawn.groups.values() if _shows(panel, group.first)]
        ours = [mean_curve(group, kind) for group in shown for kind in panel["kinds"]]
        theirs = _paper_curves(exhibit, layout, panel, scale) if paper and "paper" in layout else ()
        panels.append(Panel(panel, tuple(filter(None, ours)), tuple(theirs)))
    nets = {curve.net for panel in panels for curve in panel.paper}
    if first and nets and "of" in layout:  # errors on other images are no answer to the paper's
        own = groups.data_told(first).partition(" (")[0]
        panels = [
            *(Panel(_titled(panel, f"on {own}"), panel.ours, ()) for panel in panels),
            *(Panel(_titled(panel, "on ImageNet, the paper's"), (), panel.paper) for panel in panels),
        ]
    if paper and not nets:
        notes = (*notes, f"The paper has no curves for {exhibit}.")
    if not first and not nets:
        command = command_for(catalogue.find(layout["example"]).spec())
        rest = ", and `--paper` draws the paper's curves alone." if "paper" in layout else "."
        raise RecordError(f"no finished runs for {exhibit} in the runs folders: `{command}` makes one{rest}")
    iterations = groups.iterations_of(first) if first else int(layout["paper"]["drawn_to"])
    held_out = groups.SET_NAMES[first.headline_split] if first else str(layout["paper"]["held_out"])
    size = first.env["data"]["images"].get(first.headline_split) if first and held_out != "test" else None
    images = layout.get("view", f"{size:,} held-out training images" if size else "")
    told = f"{held_out} error ({images})" if images else f"{held_out} error"
    below = [] if first else [alone(layout)]
    if first:
        whose = _whose(layout, drawn, held_out, nets) if nets else ""
        below = [lead(layout, drawn), departures_told(drawn), TRAINING_ERROR, spell_rule(notes), whose]
    footnote = tuple(filter(None, below))
    return Sheet(layout, tuple(panels), iterations, held_out, told, colours, drawn.groups, footnote, notes)


def choose(layout: Layout, runs: Iterable[Run]) -> tuple[Drawn, tuple[str, ...]]:
    """The runs of one protocol that a figure draws, and a sentence on each kind of run that it leaves out."""
    known = [run for run in runs if run.spec["dataset"] in layout["datasets"]]
    known = [run for run in known if any(_shows(panel, run) for panel in layout["panels"])]
    shortcuts = [run for run in known if run.spec["shortcut"] not in (None, "A")]
    members: dict[str, list[Run]] = {}
    for run in sorted(known, key=lambda run: (not run.spec["plain"], run.spec["depth"])):
        if run not in shortcuts:
            members.setdefault(net_label(run.spec["depth"], run.spec["plain"]), []).append(run)
    drawn, *others = groups.protocols_of(members) or [Drawn()]
    doubles = [run for own in drawn.doubles.values() for group in own for run in group.runs]
    notes = [
        ("Not drawn, unfinished", groups.unfinished(known)),
        ("Not drawn, shortcut option B or C (the figure shows A)", map(groups.seed_name, shortcuts)),
        *((ANOTHER, [f"{other.name} ({other.size})"]) for other in others),
        ("Not drawn, other settings than the runs drawn of the same net", map(groups.seed_name, doubles)),
    ]
    told = [(about, ", ".join(names)) for about, names in notes]
    return drawn, tuple(f"{about}: {names}." for about, names in told if names)


def _titled(panel: Panel, more: str) -> Layout:
    return {**panel.layout, "title": f"{panel.layout['title']} {more}"}


def paper_iterations(layout: Layout) -> int:
    """The iterations of the paper's recipe for the nets of a figure."""
    return catalogue.paper_recipe(FAMILIES[layout["datasets"][0]]).recipe.iterations


def _shows(panel: Layout, run: Run) -> bool:
    depth = run.spec["depth"]
    return bool(run.spec["plain"] == panel["plain"] and depth in panel.get("depths", [depth]))


def mean_curve(group: SeedGroup, kind: str) -> Curve | None:
    """Mean error over seeds at each iteration that all have sampled; None if there is none."""
    split = "train" if kind == "train" else group.first.headline_split
    sampled = [run.top1_errors(split) for run in group.runs]
    common = sorted(set.intersection(*map(set, sampled)))
    errors = [[one[at] for at in common] for one in sampled]
    return averaged(group.first, kind, map(float, common), errors) if common else None


def averaged(run: Run, kind: str, x: Iterable[float], rows: Sequence[Sequence[float]]) -> Curve:
    """The mean curve of a net that `run` is of, from a row of values of each seed."""
    import numpy as np

    y = np.array(rows)
    std = tuple(y.std(axis=0, ddof=1).tolist()) if len(rows) > 1 else None
    return Curve(run.spec["depth"], run.spec["plain"], kind, tuple(x), tuple(y.mean(axis=0).tolist()), std)


def _paper_curves(exhibit: str, layout: Layout, panel: Layout, scale: float) -> Iterator[Curve]:
    """The paper's curves of a panel, on a schedule that is longer than its own by a factor."""
    frame = paper_curves(layout.get("of", exhibit)).sort_values("x")
    frame = frame[frame["panel"] == panel["name"]]
    for depth, kind in itertools.product(panel.get("depths", ()), panel["kinds"]):
        net = frame["series"] == net_label(depth, panel["plain"])
        rows = frame[net & (frame["kind"] == layout["paper"]["kinds"][kind])]
        if not rows.empty:
            x = tuple(scale * (float(value) * 10_000) for value in rows["x"])
            yield Curve(depth, panel["plain"], kind, x, tuple(rows["value"]), paper=True)


def alone(layout: Layout) -> str:
    """What the paper's curves are where there are no runs of ours."""
    accuracy = layout["paper"]["accuracy"]
    return f"The paper's own curves, read off its vector figure (±{accuracy:g}); no runs of ours."


def spell_rule(notes: Iterable[str]) -> str:
    """By which rule the runs were chosen, where others are not drawn."""
    several = any(note.startswith(ANOTHER) for note in notes)
    return f"Of several protocols one is drawn: {groups.RULE}." if several else ""


def lead(layout: Layout, drawn: Drawn) -> str:
    """Length of the runs, number of seeds and split, in one sentence."""
    first = drawn.first
    ours, full = groups.iterations_of(first), paper_iterations(layout)
    length = f"{ours:,} iterations" if ours == full else f"{ours:,} of the paper's {full:,} iterations"
    counts = {label: len(group.runs) for label, group in drawn.groups.items()}
    usual = statistics.mode(counts.values())
    more = [f"{label}: {count}" for label, count in counts.items() if count != usual]
    seeds = f"{usual} seed{'s' if usual > 1 else ''} per net" + (f" ({', '.join(more)})" if more else "")
    split = ", 45k/5k split" if first.spec["recipe"].get("split") == "45k5k" else ""
    prefix = "Shortened: " if first.status == "shortened" else ""
    return f"{prefix}{length}, {seeds}{split}."


def departures_told(drawn: Drawn) -> str:
    """How the runs depart from the paper; where not all nets do, which."""
    told: dict[str, list[str]] = {}
    for label, group in drawn.groups.items():
        for sentence in group.caveats([{"set": group.first.headline_split}], as_trained=True):
            told.setdefault(sentence, []).append(label)
    parts = [
        sentence if len(labels) == len(drawn.groups) else f"{sentence} ({', '.join(labels)})"
        for sentence, labels in told.items()
        if " iterations instead of " not in sentence  # said in the lead
    ]
    return f"Departures from the paper: {'; '.join(parts)}." if parts else ""


def _whose(layout: Layout, drawn: Drawn, ours: str, theirs: set[str]) -> str:
    """Which lines are the paper's (of the nets `theirs`), and how they differ from ours."""
    first = drawn.first
    told = "Pale lines" if layout["training"] == "thin" else "Thin lines"
    told += f"{'' if theirs <= drawn.groups.keys() else ' and names in italics'}: the paper's curves"
    if "of" in layout:
        told = "Lower panels: the paper's curves"
    if first.family == "imagenet" and first.env["data"]["images"] != IMAGENET_IMAGES:
        told += f" of ImageNet's {IMAGENET_CLASSES:,} classes"
    if groups.iterations_of(first) != paper_iterations(layout):
        told += ", x scaled to this schedule"
    paper = layout["paper"]["held_out"]
    return told + ("." if ours == paper else f"; theirs are {paper} errors where ours are {ours} errors.")
