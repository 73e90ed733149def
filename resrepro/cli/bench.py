"""`resrepro bench`: how fast this machine trains, against the usual PyTorch loop."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import DeviceOption, ThreadsOption

DEPTHS = (20, 56, 110)


@app.command(rich_help_panel="Run")
def bench(
    depth: Annotated[
        list[int] | None,
        typer.Option(
            "--depth", help="Weighted layers, 6n+2; may be repeated. (default: 20, 56, 110)",
            show_default=False,
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without shortcuts.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 128,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of a turn.")] = 3.0,
    modes: Annotated[
        str, typer.Option(help="Of usual, default, fast; default-eager and fast-eager without engine.")
    ] = "usual,default,fast",
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers.", show_default=False)
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Draw the ratios (PNG, SVG).", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure the usual PyTorch loop and ours on this machine, turn by turn, on made-up images."""
    from resrepro.bench.contest import hold
    from resrepro.bench.contestants import Plan, parse_modes
    from resrepro.bench.projection import project
    from resrepro.bench.report import show, write_csv

    plan = Plan(
        tuple(depth or DEPTHS), plain, batch_size, rounds, seconds, parse_modes(modes), threads, device
    )
    with Console(stderr=True, highlight=False).status("") as status:
        outcome = hold(plan, lambda text: status.update(text))
    projections = project(outcome)
    console = Console(highlight=False)
    console.print(show(outcome, projections))
    written = list(write_csv(outcome, projections, csv)) if csv else []
    if figures:
        from resrepro.bench.chart import draw

        written += draw(outcome, figures)
    if written:
        console.print(f"Written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
