"""`resrepro bench`: how fast this machine trains, against the usual PyTorch loop."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrepro.cli import DeviceOption, ThreadsOption, app, option
from resrepro.errors import UsageError
from resrepro.spec.experiment import check_depth, net_label
from resrepro.training import world_size

if TYPE_CHECKING:
    from resrepro.bench import Loop, Speed

DEPTHS = (20, 56, 110)
USUAL_WORKERS = (0, 2)  # of the usual loop's DataLoader: both are measured, the better one counts
MACHINE = ("date", "cpu", "gpu", "device", "cores", "threads", "torch", "resrepro")  # columns of the CSV
LEGEND = (
    "images/s: median over rounds (lowest–highest). × usual: ratio within each round to the usual PyTorch "
    "loop with the better number of DataLoader workers. Images are made up; no data set is needed."
)


@app.command(rich_help_panel="Run")
def bench(
    depth: Annotated[
        list[int] | None, option("Weighted layers, 6n+2; may be repeated. (default: 20, 56, 110)", "--depth")
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
    csv_file: Annotated[Path | None, option("Write the numbers.", "--csv", metavar="FILE")] = None,
) -> None:  # fmt: skip
    """Measure the usual PyTorch loop and ours on this machine, turn by turn, on made-up images."""
    _check(depth or DEPTHS, batch_size, rounds, seconds, threads)
    console = Console(highlight=False)
    with Console(stderr=True, highlight=False).status("starting") as status:
        from resrepro.bench import measure_speeds

        nets = [loops_of(modes, one, plain, batch_size) for one in depth or DEPTHS]
        speeds: list[Speed] = []
        for loops in nets:
            reached, machine = measure_speeds(loops, rounds, seconds, device, threads, status.update)
            speeds += reached
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    console.print(f"{where}: batches of {batch_size}, {rounds} rounds of {seconds:g} s")
    console.print(speed_table(speeds))
    console.print(Text(LEGEND, style="dim"))
    if csv_file:
        from resrepro.records.storage import write_out

        write_out(csv_file, to_csv(speeds, machine, seconds).encode())
        console.print(f"Written: {csv_file}", markup=False, soft_wrap=True)


def _check(depths: Sequence[int], batch_size: int, rounds: int, seconds: float, threads: int | None) -> None:
    for depth in depths:
        check_depth(depth)
    for broken, sentence in (
        (len(set(depths)) < len(depths), "give each --depth once"),
        (rounds < 1, f"--rounds must be at least 1, not {rounds}"),
        (not 0 < seconds <= 3600, f"--seconds must be above 0 and at most 3600, not {seconds:g}"),
        (not 1 < batch_size <= 50_000, f"--batch-size must be from 2 to 50000, not {batch_size}"),
        (threads is not None and threads < 1, f"--threads must be at least 1, not {threads}"),
        (world_size() > 1, "a benchmark starts its own processes: leave torchrun out"),
    ):
        if broken:
            raise UsageError(f"{sentence}.")


def loops_of(modes: str, depth: int, plain: bool, batch_size: int) -> "list[Loop]":
    """`usual,fast` -> the loops of a net, the usual one once for each number of workers.

    Raises:
        UsageError: if a mode is unknown, named twice, or there is none.
    """
    from resrepro.bench import MODES, USUAL, Loop

    names = [part.strip() for part in modes.split(",") if part.strip()]
    for mode in names:
        if mode not in MODES:
            raise UsageError(f"no mode {mode!r}: there are {', '.join(MODES)}.")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--modes takes modes, each once, such as usual,default,fast, not {modes!r}.")
    return [
        Loop(mode, depth, plain, batch_size, workers)
        for mode in names
        for workers in (USUAL_WORKERS if mode == USUAL else (None,))
    ]


def speed_table(speeds: "Sequence[Speed]") -> Table:
    """A line for each mode of each net, for a terminal of 80 columns."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("mode", "workers", "images/s", "× usual"):
        grid.add_column(heading, justify="left" if heading == "mode" else "right", no_wrap=True)
    net = None
    for speed in speeds:
        if (label := net_label(speed.loop.depth, speed.loop.plain)) != net:
            net = label
            grid.add_section()
            grid.add_row(Text(label, style="dim"))
        workers = "" if speed.loop.workers is None else str(speed.loop.workers)
        style = None if speed.counted else "dim"
        reached = _spread(speed.images_per_s, 0 if min(speed.images_per_s) >= 100 else 1)
        grid.add_row(f"  {speed.loop.mode}", workers, reached, _spread(speed.ratios, 2), style=style)
    return grid


def _spread(values: Sequence[float], places: int) -> str:
    """`1,270 (1,003–1,314)`."""
    if not values:
        return "–"
    median, low, high = (f"{f(values):,.{places}f}" for f in (statistics.median, min, max))
    return f"{median} ({low}–{high})"


def to_csv(speeds: "Sequence[Speed]", machine: Mapping[str, Any], seconds: float) -> str:
    """A row for each loop: the machine, the loop; median, lowest and highest over the rounds."""
    rows = []
    for speed in speeds:
        loop = speed.loop
        row = {key: machine.get(key) for key in MACHINE} | {
            "counted": speed.counted, "net": net_label(loop.depth, loop.plain), "depth": loop.depth,
            "plain": loop.plain, "batch_size": loop.batch_size, "mode": loop.mode, "workers": loop.workers,
            "rounds": len(speed.images_per_s), "turn_s": seconds,
        }  # fmt: skip
        for name, values in (("images_per_s", speed.images_per_s), ("ratio_to_usual", speed.ratios)):
            for kind, function in (("median", statistics.median), ("min", min), ("max", max)):
                row[f"{name}_{kind}"] = function(values) if values else None
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
