"""Table 1 in the paper's form: the layers of the five ImageNet nets, and their multiply-adds beside ours.

Structure and counts are those of `resrepro.spec.architecture`, the FLOPs of the paper's row as printed.
Nothing here reads records or imports torch.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from resrepro.comparison.tables import Row, Table
from resrepro.paper import published
from resrepro.spec.architecture import Architecture, Layer, architectures
from resrepro.spec.experiment import IMAGENET_DEPTHS

TITLE = "Table 1. Architectures for ImageNet"
UNIT = 1e9  # the paper gives FLOPs in 10^9
REMARKS = (
    "Layers, blocks and sizes: read off the nets as built, for images of 224x224. /2 is a stride of 2; "
    "the first block of conv3_x, conv4_x and conv5_x has one too.",
)
FLOPS = (
    "multiply-adds (Section 3.3) of every convolution and the fully connected layer, the projection "
    "shortcuts of option B (50 layers and more) among them; those of option A need none"
)
PARAMETERS = "of the convolutions, BN (scale and shift) and the fully connected layer"


def table1_nets() -> dict[str, Architecture]:
    """The nets of Table 1 by the heading of their column (`50-layer`)."""
    return {f"{depth}-layer": architectures()[f"imagenet-resnet{depth}"] for depth in IMAGENET_DEPTHS}


def build() -> Table:
    """Table 1 from the layouts of the nets and the paper's printed FLOPs."""
    nets = table1_nets()
    columns = tuple(nets.values())
    printed = [_printed(heading) for heading in nets]
    counted = [net.multiply_adds for net in columns]
    notes = (FLOPS, _without_projections(nets), *_not_rounded(nets), PARAMETERS)
    return Table(
        name="table1",
        title=TITLE,
        columns=("layer", "output", *nets),
        rows=(
            *_layer_rows(columns),
            Row(("FLOPs, 1e9", "paper", *(f"{value / UNIT:.1f}" for value in printed))),
            Row(("FLOPs, 1e9", "ours", *(f"{value / UNIT:.2f}" for value in counted)), (1, 2)),
            Row(("FLOPs, 1e9", "diff.", *map(_difference, counted, printed)), tuple(range(3, len(notes)))),
            Row(("parameters", "ours", *(f"{net.parameters:,}" for net in columns)), (len(notes),)),
        ),
        notes=notes,
        remarks=REMARKS,
        records=tuple(_record(heading, net) for heading, net in nets.items()),
    )


def printed_flops(net: Architecture) -> float | None:
    """The multiply-adds that Table 1 or Figure 3 prints for a net; None where they print none."""
    heading = next((heading for heading, other in table1_nets().items() if other.name == net.name), "")
    places = (("table1", heading), ("figure3", net.label))
    numbers = [published().get((exhibit, row, "flops")) for exhibit, row in places]
    return next((number.value for number in numbers if number), None)


def _printed(heading: str) -> float:
    return published()["table1", heading, "flops"].value


def _layer_rows(nets: Sequence[Architecture]) -> Iterator[Row]:
    """The upper part: a block's layers below each other, as the paper stacks them, then their number."""

    def row(name: str, side: int | None, cell: Callable[[Architecture], str]) -> Row:
        return Row((name, f"{side}x{side}" if side else "", *map(cell, nets)))

    first = nets[0]
    yield row("conv1", first.layer("conv1").size, lambda net: _conv(net.layer("conv1")))
    for number, stage in enumerate(first.stages):
        name, side = stage.name, stage.size
        if number == 0:  # the pooling belongs to conv2_x
            yield row(name, side, lambda net: _pool(net.layer("max pool")))
            name, side = "", 0
        stacks = [[_kernel(layer) for layer in net.stages[number].layers] for net in nets]
        for lines in itertools.zip_longest(*stacks, fillvalue=""):
            yield Row((name, f"{side}x{side}" if side else "", *lines))
            name, side = "", 0
        yield Row(("", "blocks", *(f"x {net.stages[number].blocks}" for net in nets)))
    yield row("fc", first.layer("fc").size, lambda net: "avg pool")
    yield row("", None, lambda net: f"{net.layer('fc').channels}-d fc")


def _kernel(layer: Layer) -> str:
    return f"{layer.kernel}x{layer.kernel}, {layer.channels}"


def _conv(layer: Layer) -> str:
    return f"{_kernel(layer)} /{layer.stride}"


def _pool(layer: Layer) -> str:
    return f"{layer.kernel}x{layer.kernel} max /{layer.stride}"


def _difference(counted: float, printed: float) -> str:
    return f"{(counted - printed) / UNIT:+.2f}".replace("-", "−")


def _without_projections(nets: Mapping[str, Architecture]) -> str:
    """What the count would be if option B's projections were left out."""
    counts = {
        heading: f"{(net.multiply_adds - net.projections) / UNIT:.2f}"
        for heading, net in nets.items()
        if net.projections
    }
    return f"without projections {', '.join(counts)} would have {', '.join(counts.values())}"


def _not_rounded(nets: Mapping[str, Architecture]) -> Iterator[str]:
    """A sentence on each net whose count, rounded, is not the printed one."""
    for heading, net in nets.items():
        ours, paper = net.multiply_adds / UNIT, _printed(heading) / UNIT
        if f"{ours:.1f}" != f"{paper:.1f}":
            cut = math.floor(ours * 10) == round(paper * 10)
            yield f"{heading}: {ours:.2f} is {paper:.1f} " + (
                "only when cut off, not rounded" if cut else "neither rounded nor cut off"
            )


def _record(heading: str, net: Architecture) -> dict[str, object]:
    """One net as raw numbers, under the names that the paper's numbers have in published.csv."""
    stages = {
        f"{key}_{stage.name}": value
        for stage in net.stages
        for key, value in (
            ("blocks", stage.blocks), ("width", stage.width), ("out_channels", stage.channels),
            ("output_size", stage.size),
        )
    }  # fmt: skip
    return {
        "net": heading,
        "layers": net.layers,
        "conv1_channels": net.layer("conv1").channels,
        "convs_per_block": len(net.stages[0].layers),
        **stages,
        "fc_outputs": net.layer("fc").channels,
        "parameters": net.parameters,
        "flops_paper": int(_printed(heading)),
        "flops": net.multiply_adds,
        "flops_of_projections": net.projections,
    }
