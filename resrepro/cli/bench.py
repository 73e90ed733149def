"""`resrepro bench`: how fast this machine trains, against the usual PyTorch loop."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from resrepro.cli import DepthOption, DeviceOption, ThreadsOption, app, option, parse_depths
from resrepro.comparison.screen import Grid
from resrepro.errors import UsageError
from resrepro.spec import check_depth, net_label
from resrepro.training import world_size

if TYPE_CHECKING:
    from resrepro.bench import Speed

DEPTHS = (20, 56, 110)
MACHINE = ("date", "cpu", "gpu", "device", "cores", "threads", "torch", "resrepro")  # columns of the CSV
LEGEND = (
    "Medians over rounds (lowest–highest). × usual: ratio within each round to the usual PyTorch loop, eager "
    "in float32 and NCHW, with the better number of DataLoader workers. Modes with fast are in bf16 (fp16 on "
    "older GPUs); usual-fast has autocast and channels-last maps. Images are made up; no data set is needed."
)
MODES = "Of usual, usual-fast, default, fast, eager, eager-fast, .. (default: by device)"


@app.command(rich_help_panel="Run")
def bench(
    depth: DepthOption = None,
    batch_size: Annotated[int, typer.Option(min=2, max=50_000, help="Images per batch.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, max=3600, help="Of a turn. (default: 3, on an NVIDIA GPU 1)")
    ] = None,
    modes: Annotated[str | None, option(MODES, "--modes")] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    csv_file: Annotated[Path | None, option("Write the numbers.", "--csv", metavar="FILE")] = None,
) -> None:  # fmt: skip
    """Measure the usual PyTorch loop and ours on this machine, turn by turn, on made-up images."""
    depths = dict.fromkeys(parse_depths(depth) or DEPTHS)
    for one in depths:
        check_depth(one)
    if world_size() > 1:
        raise UsageError("a benchmark starts its own processes: leave torchrun out.")
    console = Console(highlight=False)
    with Console(stderr=True, highlight=False).status("starting") as status:
        from resrepro.bench import defaults_on, loops_of, measure_speeds

        own_modes, own_seconds, workers = defaults_on(device)
        modes, seconds = own_modes if modes is None else modes, seconds or own_seconds
        speeds: list[Speed] = []
        for loops in [loops_of(modes, one, batch_size, workers) for one in depths]:
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


def speed_table(speeds: "Sequence[Speed]") -> Grid:
    """A line for each mode of each net."""
    grid = Grid(("net and mode", "workers", "ms/update", "images/s", "× usual"))
    depth = None
    for speed in speeds:
        loop = speed.loop
        label, new, depth = net_label(loop.depth, plain=False), loop.depth != depth, loop.depth
        per_update = 1000 * loop.batch_size / statistics.median(speed.images_per_s)
        grid.add(
            f"{label} {loop.mode}", "" if loop.workers is None else str(loop.workers), f"{per_update:,.1f}",
            _spread(speed.images_per_s, 0 if min(speed.images_per_s) >= 100 else 1), _spread(speed.ratios, 2),
            style="" if speed.counted else "dim", section=new,
        )  # fmt: skip
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
            "counted": speed.counted, "net": net_label(loop.depth, plain=False), "depth": loop.depth,
            "plain": False, "batch_size": loop.batch_size, "mode": loop.mode, "workers": loop.workers,
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
