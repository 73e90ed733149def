"""`resrepro eval`."""

from pathlib import Path
from typing import Annotated

import typer

from resrepro.cli import app
from resrepro.cli.options import DataOption, DeviceOption, RunsOption, ThreadsOption, parse_channels
from resrepro.specs import check_shortcut

OTHERS = "Other people's checkpoints"


@app.command("eval", rich_help_panel="Run")
def evaluate(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_CHECKPOINT...", help="Run folders or checkpoint files.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="cifar10 or digits. (default: the run's own)", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="all or 45k5k. (default: the run's own)", show_default=False)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Its depth, 6n+2.", rich_help_panel=OTHERS, show_default=False)
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="It is plain.", rich_help_panel=OTHERS)] = False,
    shortcut: Annotated[
        str | None,
        typer.Option(help="Its shortcut option. (default: A)", rich_help_panel=OTHERS, show_default=False),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B", rich_help_panel=OTHERS, show_default=False,
            help="Channel mean it was trained with, pixels in 0..1.",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Its channel std.", rich_help_panel=OTHERS, show_default=False),
    ] = None,
    zeros: Annotated[
        str | None,
        typer.Option(
            help="Place of option A's zeros: trailing or symmetric. (default: trailing)",
            rich_help_panel=OTHERS, show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
) -> None:  # fmt: skip
    """Measure top-1 and top-5 error of a run or a checkpoint, single view, and record it."""
    check_shortcut(plain, shortcut)
    channels = parse_channels(mean, "--mean"), parse_channels(std, "--std")

    from rich.console import Console
    from rich.table import Table

    from resrepro.assessment import Foreign
    from resrepro.assessment import evaluate as evaluate_one

    console = Console(highlight=False)
    foreign = Foreign(depth, plain, shortcut, *channels, zeros)
    for target in targets:
        errors = evaluate_one(
            target, dataset=dataset, data=data, split=split, foreign=foreign, runs=runs, device=device,
            threads=threads, say=lambda text: console.print(text, markup=False, soft_wrap=True),
        )  # fmt: skip
        grid = Table(
            "set", "images", "top-1 error %", "top-5 error %", "loss", box=None, padding=(0, 2, 0, 0)
        )
        for name, found in errors.items():
            figures = (f"{found.top1_err:.2f}", f"{found.top5_err:.2f}", f"{found.loss:.4f}")
            grid.add_row(name, f"{found.count:,}", *figures)
        console.print(grid)
