"""`resrepro eval`: error rates, or responses of the layers."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from resrepro.errors import RecordError, UsageError
from resrepro.spec.experiment import check_shortcut
from resrepro.training.processes import is_first

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from resrepro.records.evaluations import Responses
    from resrepro.training.measure import Errors

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
    responses: Annotated[
        bool,
        typer.Option(
            "--responses", help="Measure each 3x3 layer's response and gradient instead (Figure 7)."
        ),
    ] = False,
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
    """Measure top-1 and top-5 error of runs or checkpoints under a test protocol, and record it.

    With --responses measure the layers of finished runs; one that is refused does not stop those after it.
    """
    check_shortcut(plain, shortcut)
    channels = parse_channels(mean, "--mean"), parse_channels(std, "--std")
    if ensemble and len(targets) < 2:
        raise UsageError("an ensemble takes two checkpoints or more: name them all, or leave --ensemble out.")

    from rich.console import Console

    from resrepro.evaluation import evaluate as measure_and_record
    from resrepro.evaluation.sources import ThirdPartyCheckpoint

    console = Console(highlight=False, quiet=not is_first())
    third_party = ThirdPartyCheckpoint(depth, plain, shortcut, *channels, zeros, stride_3x3, image_size)
    options: dict[str, Any] = {
        "data": data, "device": device, "threads": threads,
        "loading": loading_of(workers, max_bad_images),
        "say": lambda text: console.print(text, markup=False, soft_wrap=not console.is_terminal),
    }  # fmt: skip
    if responses:
        if ensemble or third_party != ThirdPartyCheckpoint() or any((protocol, bn_stats, dataset, split)):
            raise UsageError(
                "--responses are those of finished runs: leave the options on protocols and other people's "
                "checkpoints out."
            )
        _measure_responses(targets, console, options)
        return
    for group in [targets] if ensemble else [[target] for target in targets]:
        errors = measure_and_record(
            group, protocol=protocol, bn_stats=bn_stats, dataset=dataset, split=split, runs=runs,
            third_party=third_party, **options,
        )  # fmt: skip
        _show(errors, console)


def _show(errors: "dict[str, Errors]", console: "Console") -> None:
    from rich.table import Table

    grid = Table("set", "images", "top-1 error %", "top-5 error %", "loss", box=None, padding=(0, 2, 0, 0))
    for name, error in errors.items():
        figures = (f"{error.top1_err:.2f}", f"{error.top5_err:.2f}", f"{error.loss:.4f}")
        grid.add_row(name, f"{error.count:,}", *figures)
    console.print(grid)


def _measure_responses(runs: Sequence[Path], console: "Console", options: dict[str, Any]) -> None:
    from resrepro.evaluation.responses import measure_responses

    refused = 0
    for run in runs:
        try:
            console.print(_summary(measure_responses(run, **options)))
        except (UsageError, RecordError) as error:
            if len(runs) == 1:
                raise
            refused += 1
            options["say"](f"Left out: {error}")
    if refused:
        raise RecordError(f"{refused} of {len(runs)} runs were left out: the sentences above tell why.")


def _summary(responses: "Responses") -> "Table":
    """First and last layer, extremes with their layers, mean and median of each quantity."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column(f"{len(responses.layers)} layers")
    for head in ("first", "last", "smallest", "largest", "mean", "median"):
        grid.add_column(head, justify="right")
    grid.add_row("std", *_figures(responses.std))
    grid.add_row("gradient, start", *_figures(responses.gradient_norm_start))
    grid.add_row("gradient, end", *_figures(responses.gradient_norm_end))
    return grid


def _figures(values: Sequence[float]) -> list[str]:
    low, high = (f"{_short(end)} ({values.index(end) + 1})" for end in (min(values), max(values)))
    mean, median = statistics.fmean(values), statistics.median(values)
    return [_short(values[0]), _short(values[-1]), low, high, _short(mean), _short(median)]


def _short(value: float) -> str:
    """Three digits; powers of ten only for what is very small or large."""
    return f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.1e}"
