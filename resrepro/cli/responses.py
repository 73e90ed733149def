"""`resrepro responses`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrepro.cli import app
from resrepro.cli.options import (
    DataOption,
    DeviceOption,
    MaxBadOption,
    ThreadsOption,
    WorkersOption,
    loading_of,
)
from resrepro.errors import RecordError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from resrepro.records.responses import Responses


@app.command(rich_help_panel="Run")
def responses(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, with checkpoints.")
    ],
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    max_bad_images: MaxBadOption = None,
) -> None:
    """Measure the strength of each 3x3 layer's response and gradient, and record it (Figure 7).

    Of several runs, one that is refused does not stop those after it.
    """
    from rich.console import Console

    from resrepro.evaluation.measuring_responses import measure

    console, refused = Console(highlight=False), 0
    for run in runs:
        try:
            found = measure(
                run, data=data, device=device, threads=threads,
                loading=loading_of(workers, max_bad_images),
                say=lambda text: console.print(text, markup=False, soft_wrap=not console.is_terminal),
            )  # fmt: skip
        except (UsageError, RecordError) as error:
            if len(runs) == 1:
                raise
            refused += 1
            console.print(f"Left out: {error}", markup=False, soft_wrap=not console.is_terminal)
            continue
        console.print(_summary(found))
    if refused:
        raise RecordError(f"{refused} of {len(runs)} runs were left out: the sentences above tell why.")


def _summary(found: "Responses") -> "Table":
    """First and last layer, extremes with their layers, mean and median of each quantity."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column(f"{len(found.layers)} layers")
    for head in ("first", "last", "smallest", "largest", "mean", "median"):
        grid.add_column(head, justify="right")
    grid.add_row("std", *_figures(found.std))
    grid.add_row("gradient, start", *_figures(found.gradient_norm_start))
    grid.add_row("gradient, end", *_figures(found.gradient_norm_end))
    return grid


def _figures(values: Sequence[float]) -> list[str]:
    low, high = (f"{_short(end)} ({values.index(end) + 1})" for end in (min(values), max(values)))
    mean, median = statistics.fmean(values), statistics.median(values)
    return [_short(values[0]), _short(values[-1]), low, high, _short(mean), _short(median)]


def _short(value: float) -> str:
    """Three digits; powers of ten only for what is very small or large."""
    return f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.1e}"
