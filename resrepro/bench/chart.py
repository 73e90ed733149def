"""A bar chart of a benchmark: how much faster than the usual loop, per net, with the spread as whiskers.

It looks like the other figures (`resrepro.figures.panels`). Nothing here imports torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from resrepro.bench.contestants import USUAL
from resrepro.bench.results import Outcome, Range
from resrepro.errors import RecordError
from resrepro.figures.lettering import wrap
from resrepro.figures.panels import QUIET, SETTINGS, SMALL, TEXT, render
from resrepro.records.durable import write_out
from resrepro.spec.specs import net_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "bench", "Training speed against the usual PyTorch loop"
WIDTH, HEIGHT = 6.4, 3.0  # inches; the height is that of the frame
LEFT, RIGHT, TOP, BOTTOM, LINE = 0.6, 0.12, 0.4, 0.4, 0.19
NETS = 2  # that there is room for at least, so that the bars of one are not too wide
BAR = 0.8  # of the distance between nets, that the bars of one net take
# Okabe and Ito (2008), as in the palette for colour-blind readers; a mode without its engine is paler.
COLOURS = {"default": "#0072b2", "fast": "#d55e00", "default-eager": "#56b4e9", "fast-eager": "#e69f00"}
INK = "#303030"


def draw(outcome: Outcome, figures: Path) -> tuple[Path, ...]:
    """Write the chart as PNG and SVG.

    Raises:
        RecordError: if there is nothing to compare, or the files cannot be written.
    """
    files = render(make_figure(outcome), TITLE)
    paths = tuple(figures / f"{NAME}.{kind}" for kind in files)
    for path, content in zip(paths, files.values(), strict=True):
        write_out(path, content)
    return paths


def ratios(outcome: Outcome) -> dict[str, list[Range]]:
    """By mode of ours, the ratio to the usual loop at each depth of the plan."""
    return {
        mode: [
            ratio
            for depth in outcome.plan.depths
            if (entry := outcome.find(depth, mode)) and (ratio := outcome.ratio(entry))
        ]
        for mode in outcome.plan.modes
        if mode != USUAL
    }


def make_figure(outcome: Outcome) -> "Figure":
    """The chart as a matplotlib object.

    Raises:
        RecordError: if there is nothing to compare.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bars = {mode: found for mode, found in ratios(outcome).items() if found}
    if not bars:
        raise RecordError(
            "nothing to draw: the chart compares modes with the usual loop, so --modes must name both."
        )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        lines = wrap(_note(outcome), WIDTH - 0.4, SMALL)
        foot = BOTTOM + LINE * len(lines) + 0.1
        height = foot + HEIGHT + TOP
        figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
        place = (LEFT / WIDTH, foot / height, (WIDTH - LEFT - RIGHT) / WIDTH, HEIGHT / height)
        _draw_bars(figure.add_axes(place), outcome, bars)
        for number, line in enumerate(reversed(lines)):
            figure.text(0.2 / WIDTH, (0.12 + LINE * number) / height, line, fontsize=SMALL, color=QUIET)
    return figure


def _draw_bars(axes: "Axes", outcome: Outcome, bars: dict[str, list[Range]]) -> None:
    width, nets = BAR / len(bars), range(len(outcome.plan.depths))
    top = max(ratio.high for found in bars.values() for ratio in found)
    for number, (mode, found) in enumerate(bars.items()):
        x = [net - BAR / 2 + (number + 0.5) * width for net in nets]
        heights = [ratio.median for ratio in found]
        below = [ratio.median - ratio.low for ratio in found]
        above = [ratio.high - ratio.median for ratio in found]
        axes.bar(
            x, heights, width * 0.92, color=COLOURS[mode], label=mode, zorder=2, yerr=(below, above),
            error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 3, "zorder": 3},
        )  # fmt: skip
        for place, ratio in zip(x, found, strict=True):
            high = ratio.high + 0.02 * top
            axes.text(place, high, f"{ratio.median:.2f}", ha="center", va="bottom", fontsize=SMALL)
    axes.axhline(1, color=INK, linewidth=1.0, linestyle=(0, (4, 1.6)), zorder=2.5, label=USUAL)
    margin = max(0.5, (NETS - len(nets)) / 2)
    axes.set_xlim(-margin, len(nets) - 1 + margin)
    axes.set_ylim(0, 1.12 * max(top, 1))
    axes.set_xticks(list(nets), [net_label(depth, outcome.plan.plain) for depth in outcome.plan.depths])
    axes.tick_params(axis="x", length=0, pad=6)
    axes.set_ylabel("images/s, usual loop = 1", fontsize=TEXT)
    axes.grid(axis="y", linestyle=(0, (4, 4)), linewidth=0.5, color="#b0b0b0", zorder=0.5)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(bars) + 1, frameon=False, fontsize=SMALL,
        borderaxespad=0.0, handlelength=1.8, columnspacing=2.0,
    )  # fmt: skip


def _note(outcome: Outcome) -> str:
    machine, plan = outcome.machine, outcome.plan
    where = machine.get("gpu") or machine.get("cpu")
    return (
        f"{where}, {machine.get('threads')} threads, torch {machine.get('torch')}, batches of "
        f"{plan.batch_size}. Bars: median ratio of images/s within a round, {plan.rounds} "
        f"round{'s' * (plan.rounds > 1)} of {plan.seconds:g} s; whiskers: lowest and highest."
    )
