"""A figure of error curves as data: curves, panels, and the sheet with its axes, before anything is drawn.

Errors are in percent. Nothing here imports torch or matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resrepro.spec.experiment import net_label

FRAMES = (20, 40, 60, 100)  # upper ends of the error axis, percent
UNIT_FROM = 20_000  # from so many iterations on the axis counts in 1e4, as in the paper


@dataclass(frozen=True)
class Curve:
    """Error (percent) against iterations of one net; `std` where several seeds are averaged."""

    depth: int
    plain: bool
    kind: str
    iterations: tuple[float, ...]
    errors: tuple[float, ...]
    std: tuple[float, ...] | None = None
    paper: bool = False

    @property
    def net(self) -> str:
        """`plain-56` or `ResNet-56`."""
        return net_label(self.depth, self.plain)


@dataclass(frozen=True)
class Panel:
    """One panel: its layout (figures.toml), our curves and the paper's."""

    layout: Mapping[str, Any]
    ours: tuple[Curve, ...]
    paper: tuple[Curve, ...]

    def needed(self, start: float) -> float:
        """The largest error (percent) from an iteration on, nets off the scale aside."""
        off_scale = self.layout.get("off_scale", ())
        return max(
            (
                error
                for curve in (*self.ours, *self.paper)
                if curve.depth not in off_scale
                for iteration, error in zip(curve.iterations, curve.errors, strict=True)
                if iteration >= start
            ),
            default=0.0,
        )


@dataclass(frozen=True)
class Sheet:
    """A whole figure, ready to be drawn.

    `held_out` names the set of the bold lines, `held_out_told` says in the legend what it is;
    `footnote` is a list of sentences.
    """

    layout: Mapping[str, Any]
    panels: tuple[Panel, ...]
    iterations: int
    held_out: str
    held_out_told: str
    palette: Mapping[str, Any]
    footnote: tuple[str, ...]

    @property
    def top(self) -> int:
        """The upper end of the error axis, percent: the paper's, or higher where curves need it."""
        start = self.iterations * self.layout.get("settled", 2 / 3)
        need = max(panel.needed(start) for panel in self.panels)
        frames: Sequence[int] = self.layout.get("frames", FRAMES)
        return next(frame for frame in frames if frame >= min(max(need, self.layout["frame"]), 100))

    @property
    def floor(self) -> int:
        """The lower end of the error axis, percent: the paper's, or 0 where curves fall below it."""
        floor = int(self.layout.get("floor", 0))
        lowest = (min(curve.errors) for panel in self.panels for curve in (*panel.ours, *panel.paper))
        return floor if min(lowest, default=floor) >= floor else 0

    def height_of(self, error: float) -> float:
        """Where an error lies between the lower (0) and the upper end (1) of the axis."""
        return (min(error, self.top) - self.floor) / (self.top - self.floor)

    @property
    def has_ours(self) -> bool:
        """Whether any run of ours is drawn."""
        return any(panel.ours for panel in self.panels)

    @property
    def depths(self) -> list[str]:
        """The depths of all nets drawn."""
        return sorted({str(curve.depth) for panel in self.panels for curve in (*panel.ours, *panel.paper)})

    @property
    def unit(self) -> int:
        """Iterations per unit of the x axis."""
        return 10_000 if self.iterations >= UNIT_FROM else 1

    def colour(self, depth: int) -> str:
        """The colour of the nets of a depth."""
        others: Sequence[str] = self.palette["others"]
        return str(self.palette["colours"].get(str(depth), others[(depth - 2) // 6 % len(others)]))

    def label(self, curve: Curve) -> str:
        """What is written at the end of a curve."""
        return str(self.layout.get("label", "{net}")).format(net=curve.net, depth=curve.depth)
