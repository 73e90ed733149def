"""What is drawn from the nets themselves, without runs: Figure 3 and Table 1.

The figure has VGG-19, the plain and the residual 34-layer net as columns of boxes, one box per layer; layers
of one output size stand at the same height in all columns.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from resrepro.comparison.table import Notes, Row, Table
from resrepro.figures.curves import palette_named, read_layout
from resrepro.figures.drawing import QUIET, USUAL, Style, own_settings, wrap
from resrepro.paper import published
from resrepro.spec import IMAGENET_DEPTHS
from resrepro.spec.architecture import Architecture, Layer, architectures, vgg19

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches.
BOX, BOX_HEIGHT, PITCH = 1.62, 0.19, 0.325
MARGIN, GAP, RIGHT = 1.02, 0.42, 0.72  # left of, between and right of the columns
HEAD, FOOT_LINE = 0.74, 0.17
BULGE = 0.46  # how far an arc leaves its column
TEXT, HEADING = 8.5, 10.5  # points
INK, LINE = "#303030", 0.9
UNIT = 1e9  # the paper gives FLOPs in 10^9
PLAN = read_layout("figure3")  # title, note and columns


class Box(NamedTuple):
    """A layer on the sheet: `row` counts from the top; `joins` is the row of the block's last layer."""

    row: int
    layer: Layer
    shortcut: Layer | None = None
    joins: int = 0

    @property
    def text(self) -> str:
        """The paper's wording: `3x3 conv, 128, /2`, `pool, /2`, `avg pool`, `fc 4096`."""
        layer = self.layer
        stride = f", /{layer.stride}" if layer.stride > 1 else ""
        if layer.kind == "conv":
            return f"{layer.kernel}x{layer.kernel} conv, {layer.channels}{stride}"
        if layer.kind == "fc":
            return f"fc {layer.channels}"
        return f"{layer.kind.removeprefix('max ')}{stride}"


def make_figure(style: Style = USUAL) -> "Figure":
    """The figure as a matplotlib object, scaled to its width (UsageError for an unknown palette)."""
    colours = palette_named(style.palette, "figure3")
    nets = [{**architectures(), "vgg19": vgg19()}[column["net"]] for column in PLAN["columns"]]
    starts, rows = starting_rows(nets)
    width = MARGIN + len(nets) * BOX + (len(nets) - 1) * GAP + RIGHT
    with own_settings():
        from matplotlib.figure import Figure

        lines = wrap(PLAN["note"], width - 0.28, TEXT) if style.caption else []
        foot = 0.2 + FOOT_LINE * len(lines)
        height = HEAD + rows * PITCH + foot
        figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        middle: Any = {"ha": "center", "va": "center"}
        for size, row in starts.items():
            told, hairline = f"output\nsize: {size}", [HEAD + row * PITCH] * 2
            axes.text(0.14, _middle(row), told, fontsize=TEXT, va="center", linespacing=1.1)
            axes.plot([0.12, width - 0.12], hairline, color="#dddddd", linewidth=0.6, zorder=0.5)
        for number, (column, net) in enumerate(zip(PLAN["columns"], nets, strict=True)):
            centre = MARGIN + number * (BOX + GAP) + BOX / 2
            printed, counted = published()["figure3", column["published"], "flops"].value, net.multiply_adds
            axes.text(centre, 0.2, column["heading"], fontsize=HEADING, fontweight="bold", **middle)
            small: Any = {**middle, "fontsize": TEXT, "color": INK}
            axes.text(centre, 0.41, f"{printed / UNIT:.1f} billion FLOPs (paper)", **small)
            axes.text(centre, 0.58, f"{counted / UNIT:.2f} billion FLOPs (counted)", **small)
            _draw_column(axes, centre, boxes_of(net, starts), colours)
        for number, line in enumerate(lines):
            axes.text(0.14, height - foot + 0.16 + FOOT_LINE * number, line, fontsize=TEXT, color=QUIET)
        if wanted := style.inches():
            _scale(figure, wanted / width)
    return figure


def _scale(figure: "Figure", by: float) -> None:
    """Make all of a figure smaller or larger: the boxes are in inches, the rest is here."""
    from matplotlib.patches import FancyArrowPatch

    figure.set_size_inches(*(side * by for side in figure.get_size_inches()))
    axes = figure.axes[0]
    for text in axes.texts:
        text.set_fontsize(float(text.get_fontsize()) * by)
    drawn: Any = (*axes.lines, *axes.patches)
    for artist in drawn:
        artist.set_linewidth(artist.get_linewidth() * by)
        if isinstance(artist, FancyArrowPatch):
            artist.set_mutation_scale(by)


def starting_rows(nets: Sequence[Architecture]) -> tuple[dict[int, int], int]:
    """The first row of every output size, counted below the row of the images, and how many there are."""
    sizes = [[layer.size for part in net.walk() for layer in part.layers] for net in nets]
    starts, row = {}, 1
    for size in sorted({size for column in sizes for size in column}, reverse=True):
        starts[size] = row
        row += max(column.count(size) for column in sizes)
    return starts, row


def boxes_of(net: Architecture, starts: Mapping[int, int]) -> Iterator[Box]:
    """One box per layer; a block's shortcut goes with its first layer."""
    free = dict(starts)
    for part in net.walk():
        last = free[part.size] + len(part.layers) - 1
        for number, layer in enumerate(part.layers):
            yield Box(free[layer.size], layer, None if number else part.shortcut, last)
            free[layer.size] += 1


def _middle(row: int) -> float:
    return HEAD + (row + 0.5) * PITCH


def _draw_column(axes: "Axes", centre: float, boxes: Iterable[Box], colours: Mapping[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.text(centre, _middle(0), "image", fontsize=TEXT, ha="center", va="center")
    above = _middle(0)
    for box in boxes:
        middle = _middle(box.row)
        _draw_arrow(axes, (centre, above + BOX_HEIGHT / 2), (centre, middle - BOX_HEIGHT / 2))
        colour = colours.get(str(box.layer.size), "white") if box.layer.kind == "conv" else "white"
        axes.add_patch(FancyBboxPatch(
            (centre - BOX / 2, middle - BOX_HEIGHT / 2), BOX, BOX_HEIGHT, facecolor=colour, zorder=2,
            boxstyle="round,pad=0,rounding_size=0.05", edgecolor=INK, linewidth=0.7,
        ))  # fmt: skip
        axes.text(centre, middle, box.text, fontsize=TEXT, ha="center", va="center_baseline", zorder=3)
        if box.shortcut:
            _draw_arc(axes, centre, box, dotted=box.shortcut.kind != "identity")
        above = middle


def _draw_arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float]) -> None:
    from matplotlib.patches import FancyArrowPatch

    head: Any = {"arrowstyle": "-|>,head_length=2.2,head_width=1.3", "mutation_scale": 1}
    arrow = FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, color=INK, linewidth=LINE, zorder=1.5, **head)
    axes.add_patch(arrow)


def _draw_arc(axes: "Axes", centre: float, box: Box, *, dotted: bool) -> None:
    """From above the block's first box, round its right side, to below the last one."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    space = PITCH - BOX_HEIGHT
    leave = _middle(box.row) - BOX_HEIGHT / 2 - space * 0.4
    join = _middle(box.joins) + BOX_HEIGHT / 2 + space * 0.22
    edge, out = centre + BOX / 2, centre + BOX / 2 + BULGE * 4 / 3
    points = [(centre, leave), (edge, leave), (out, leave), (out, join), (edge, join), (centre + 0.06, join)]
    codes = [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    axes.add_patch(PathPatch(
        Path(points, codes), fill=False, edgecolor=INK, linewidth=LINE, zorder=1.4, capstyle="butt",
        linestyle=(0, (1, 1.7)) if dotted else "-", gid=f"arc {'zeros' if dotted else 'identity'}",
    ))  # fmt: skip
    _draw_arrow(axes, (centre + 0.06, join), (centre, join))


def table_1() -> Table:
    """Table 1 from the layouts of the nets, in the paper's form, with our multiply-adds beside its FLOPs."""
    words = read_layout("table1")
    nets = {f"{depth}-layer": architectures()[f"imagenet-resnet{depth}"] for depth in IMAGENET_DEPTHS}
    printed = [published()["table1", heading, "flops"].value / UNIT for heading in nets]
    counted = [net.multiply_adds / UNIT for net in nets.values()]
    gaps = (f"{ours - paper:+.2f}".replace("-", "−") for ours, paper in zip(counted, printed, strict=True))
    notes = Notes()
    above = notes.number([words["flops"], words["without"]])
    cut, below = notes.number([words["cut_off"]]), notes.number([words["parameters"]])
    return Table(
        name="table1",
        title=words["title"],
        columns=("layer", "output", *nets),
        rows=(
            *_layer_rows(list(nets.values())),
            Row(("FLOPs, 1e9", "paper", *(f"{value:.1f}" for value in printed))),
            Row(("FLOPs, 1e9", "ours", *(f"{value:.2f}" for value in counted)), above),
            Row(("FLOPs, 1e9", "diff.", *gaps), cut),
            Row(("parameters", "ours", *(f"{net.parameters:,}" for net in nets.values())), below),
        ),
        notes=tuple(notes),
        remarks=(words["layers"],),
        records=tuple(_net_record(heading, net) for heading, net in nets.items()),
    )


def _layer_rows(nets: Sequence[Architecture]) -> Iterator[Row]:
    """The upper part: a block's layers below each other, as the paper stacks them, then their number."""
    conv1, fc = ([net.layer(name) for net in nets] for name in ("conv1", "fc"))
    kernels = [f"{_kernel(layer)} /{layer.stride}" for layer in conv1]
    yield Row(("conv1", f"{conv1[0].size}x{conv1[0].size}", *kernels))
    for number, stage in enumerate(nets[0].stages):
        stacks = [list(map(_kernel, net.stages[number].layers)) for net in nets]
        lines = list(itertools.zip_longest(*stacks, fillvalue=""))
        if number == 0:  # the pooling belongs to conv2_x
            pools = [net.layer("max pool") for net in nets]
            lines.insert(0, tuple(f"{pool.kernel}x{pool.kernel} max /{pool.stride}" for pool in pools))
        yield Row((stage.name, f"{stage.size}x{stage.size}", *lines[0]))
        yield from (Row(("", "", *line)) for line in lines[1:])
        yield Row(("", "blocks", *(f"x {net.stages[number].times}" for net in nets)))
    yield Row(("fc", "1x1", *("avg pool" for _ in fc)))
    yield Row(("", "", *(f"{layer.channels}-d fc" for layer in fc)))


def _kernel(layer: Layer) -> str:
    return f"{layer.kernel}x{layer.kernel}, {layer.channels}"


def _net_record(heading: str, net: Architecture) -> dict[str, object]:
    """One net as raw numbers, under the names that the paper's numbers have in published.csv."""
    stages: dict[str, object] = {}
    for stage in net.stages:
        stages |= {f"blocks_{stage.name}": stage.times, f"width_{stage.name}": stage.width}
        stages |= {f"out_channels_{stage.name}": stage.channels, f"output_size_{stage.name}": stage.size}
    return {
        "net": heading, "layers": net.layers, "conv1_channels": net.layer("conv1").channels,
        "convs_per_block": len(net.stages[0].layers), **stages, "fc_outputs": net.layer("fc").channels,
        "parameters": net.parameters, "flops_paper": int(published()["table1", heading, "flops"].value),
        "flops": net.multiply_adds, "flops_of_projections": net.projections,
    }  # fmt: skip
