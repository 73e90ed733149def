"""`resrepro eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrepro.cli import app
from resrepro.cli.options import (
    DataOption,
    DeviceOption,
    MaxBadOption,
    RunsOption,
    ThreadsOption,
    WorkersOption,
    loading_of,
    parse_channels,
)
from resrepro.errors import UsageError
from resrepro.processes import is_first
from resrepro.spec.specs import check_shortcut

if TYPE_CHECKING:
    from rich.console import Console

    from resrepro.training.metrics import Errors

OTHERS = "Other people's checkpoints"


@app.command("eval", rich_help_panel="Run")
def evaluate(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_CHECKPOINT...", help="Run folders or checkpoint files.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Photographs: center (default), ten_crop, multi_scale; CIFAR-10: single.", show_default=False
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average the scores of all the checkpoints.")
    ] = False,
    bn_stats: Annotated[
        str | None,
        typer.Option(
            help="running, or precise: plain averages over training batches. (default: the run's own)",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="cifar10, digits, imagenet or folder. (default: the run's own)", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="all or 45k5k. (default: the run's own)", show_default=False)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Its depth.", rich_help_panel=OTHERS, show_default=False)
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="It is plain.", rich_help_panel=OTHERS)] = False,
    shortcut: Annotated[
        str | None,
        typer.Option(
            help="Its shortcut option. (default: the paper's)", rich_help_panel=OTHERS, show_default=False
        ),
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
    stride_3x3: Annotated[
        bool,
        typer.Option("--stride-3x3", help="Its bottlenecks stride on the 3x3.", rich_help_panel=OTHERS),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the crops it was trained on. (default: 224)", rich_help_panel=OTHERS,
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    max_bad_images: MaxBadOption = None,
    runs: RunsOption = Path("runs"),
) -> None:  # fmt: skip
    """Measure top-1 and top-5 error of runs or checkpoints under a test protocol, and record it."""
    check_shortcut(plain, shortcut)
    channels = parse_channels(mean, "--mean"), parse_channels(std, "--std")
    if ensemble and len(targets) < 2:
        raise UsageError("an ensemble takes two checkpoints or more: name them all, or leave --ensemble out.")

    from rich.console import Console

    from resrepro.evaluation.assessment import Foreign
    from resrepro.evaluation.assessment import evaluate as measure_and_record

    console = Console(highlight=False, quiet=not is_first())
    foreign = Foreign(depth, plain, shortcut, *channels, zeros, stride_3x3, image_size)
    for group in [targets] if ensemble else [[target] for target in targets]:
        errors = measure_and_record(
            group, protocol=protocol, bn_stats=bn_stats, dataset=dataset, data=data, split=split,
            foreign=foreign, runs=runs, device=device, threads=threads,
            loading=loading_of(workers, max_bad_images),
            say=lambda text: console.print(text, markup=False, soft_wrap=not console.is_terminal),
        )  # fmt: skip
        _show(errors, console)


def _show(errors: "dict[str, Errors]", console: "Console") -> None:
    from rich.table import Table

    grid = Table("set", "images", "top-1 error %", "top-5 error %", "loss", box=None, padding=(0, 2, 0, 0))
    for name, found in errors.items():
        figures = (f"{found.top1_err:.2f}", f"{found.top5_err:.2f}", f"{found.loss:.4f}")
        grid.add_row(name, f"{found.count:,}", *figures)
    console.print(grid)
