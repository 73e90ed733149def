"""`resrepro eval`: error rates, or responses of the layers."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resrepro.cli import (
    DataOption,
    DeviceOption,
    MaxBadOption,
    RunsOption,
    ThreadsOption,
    WorkersOption,
    app,
    option,
)
from resrepro.errors import RecordError, UsageError
from resrepro.spec import check_shortcut
from resrepro.training import is_first

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
        str | None, option("Photographs: center (default), ten_crop, multi_scale; CIFAR-10: single.")
    ] = None,
    ensemble: Annotated[bool, option("Average the scores of all the checkpoints.", "--ensemble")] = False,
    bn_stats: Annotated[
        str | None,
        option("running, or precise: plain averages over training batches. (default: the run's own)"),
    ] = None,
    responses: Annotated[
        bool, option("Measure each 3x3 layer's response and gradient instead (Figure 7).", "--responses")
    ] = False,
    dataset: Annotated[
        str | None, option("cifar10, digits, imagenet or folder. (default: the run's own)")
    ] = None,
    split: Annotated[str | None, option("all or 45k5k. (default: the run's own)")] = None,
    depth: Annotated[int | None, option("Its depth.", panel=OTHERS)] = None,
    plain: Annotated[bool, option("It is plain.", "--plain", panel=OTHERS)] = False,
    shortcut: Annotated[
        str | None, option("Its shortcut option. (default: the paper's)", panel=OTHERS)
    ] = None,
    mean: Annotated[
        str | None, option("Channel mean it was trained with, pixels in 0..1.", panel=OTHERS, metavar="R,G,B")
    ] = None,
    std: Annotated[str | None, option("Its channel std.", panel=OTHERS, metavar="R,G,B")] = None,
    zeros: Annotated[
        str | None,
        option("Place of option A's zeros: trailing or symmetric. (default: trailing)", panel=OTHERS),
    ] = None,
    stride_3x3: Annotated[
        bool, option("Its bottlenecks stride on the 3x3.", "--stride-3x3", panel=OTHERS)
    ] = False,
    image_size: Annotated[
        int | None, option("Side of the crops it was trained on. (default: 224)", panel=OTHERS)
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

    from resrepro.data.loader import Loading
    from resrepro.evaluation import evaluate as measure_and_record
    from resrepro.evaluation.sources import ThirdPartyCheckpoint

    console = Console(highlight=False, quiet=not is_first())
    third_party = ThirdPartyCheckpoint(depth, plain, shortcut, *channels, zeros, stride_3x3, image_size)
    options: dict[str, Any] = {
        "data": data, "device": device, "threads": threads,
        "loading": Loading(workers, max_bad_images or 0),
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


def parse_channels(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45` -> (0.49, 0.48, 0.45); None stays None.

    Raises:
        UsageError: if it is not three numbers.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UsageError(
            f"{option} takes three numbers, one per channel, such as 0.49,0.48,0.45, not {text!r}."
        )
    return values


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
