"""`resrepro describe`: the nets themselves, their layers, parameters and multiply-adds."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrepro.cli import app

if TYPE_CHECKING:
    from resrepro.spec.architectures import Architecture

UNIT = 1e9  # the paper gives multiply-adds in 10^9


@app.command(rich_help_panel="Read")
def describe(
    write: Annotated[
        bool,
        typer.Option("--write", help="For developers: build the nets and write the packaged summary anew."),
    ] = False,
) -> None:
    """Show the nets: layers, blocks, parameters, and multiply-adds beside those that the paper prints."""
    from resrepro.spec.architectures import architectures, vgg19

    written = None
    if write:
        from resrepro.nets.description import describe_all, write_summary

        nets = describe_all()
        written = write_summary(nets)
    console = Console(highlight=False)
    console.print(grid_of([*(nets if write else architectures()).values(), vgg19()]))
    console.print("Projections count as multiply-adds, but not as layers.")
    if written:
        console.print(f"Written: {written}", markup=False, soft_wrap=True)


def grid_of(nets: Iterable["Architecture"]) -> Table:
    """A line for each net, for a terminal of 80 columns; nets for images of one size stand together."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("net", "blocks"):
        grid.add_column(heading, vertical="bottom", no_wrap=True)
    for heading in ("layers", "parameters", "multiply-\nadds, 1e9", "paper", "difference"):
        grid.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for size, group in itertools.groupby(nets, lambda net: net.image_size):
        grid.add_section()
        grid.add_row(Text(f"on {size}x{size}", style="dim"))
        for net in group:
            grid.add_row(net.label, " ".join(str(stage.blocks) for stage in net.stages), *_numbers(net))
    return grid


def _numbers(net: "Architecture") -> list[str]:
    from resrepro.comparison.architecture_table import printed_flops

    counted, printed = net.multiply_adds / UNIT, printed_flops(net)
    told = [str(net.layers), f"{net.parameters:,}", f"{counted:.3f}"]
    if printed is None:
        return [*told, "", ""]
    return [*told, f"{printed / UNIT:.1f}", f"{counted - printed / UNIT:+.3f}".replace("-", "−")]
