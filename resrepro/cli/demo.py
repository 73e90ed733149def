"""`resrepro demo`: the paper's point in minutes, offline."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import DeviceOption, ThreadsOption


@app.command(rich_help_panel="Run")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the runs, the table and the figure.")
    ] = Path("demo"),
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set earlier demo runs aside and train anew.")
    ] = False,
) -> None:
    """Train plain and residual nets of 20 and 56 layers on bundled digits and show what happens."""
    from resrepro.cli.demonstration import DEMO_EXPERIMENTS, verdict
    from resrepro.cli.live import LiveView
    from resrepro.comparison.paper_rows import build
    from resrepro.comparison.tables import to_rich, write_table
    from resrepro.figures.exhibits import draw_figure
    from resrepro.records.collection import collect
    from resrepro.training.engine import keep_memory
    from resrepro.training.session import train

    keep_memory()
    view = LiveView()
    for name in DEMO_EXPERIMENTS:
        train(
            name, runs=out / "runs", device=device, threads=threads, fresh=fresh, watcher=view,
            arguments=sys.argv[1:],
        )  # fmt: skip
    runs = collect([out / "runs"]).runs
    console = Console(highlight=False)
    table = build("demo", runs)
    console.print(to_rich(table))
    paths = [*write_table(table, out), *draw_figure("demo", runs, out).paths]
    console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
    console.print(f"\n{verdict(runs)}", style="bold", markup=False)
    console.print("Next: resrepro train --depth 20        (CIFAR-10, as in the paper)", markup=False)
