"""A benchmark's outcome as tables for a terminal of 80 columns, and as CSV files. No torch.

`speeds_csv` has a row for each contestant, the usual loop's with each number of workers among them:

- date, cpu, gpu, device, cores, threads, torch, resrepro: the machine, the versions, the day (UTC);
- net, depth, plain, batch_size, mode, workers (of the usual loop's DataLoader);
- counted: whether it is the entry of its mode (of the usual loop the better number of workers is);
- rounds, turn_s: turns and the seconds that each was to take;
- images_per_s_median, .._min, .._max over rounds;
- ratio_to_usual_median, .._min, .._max: of speeds within each round, empty without the usual loop;
- gflop_per_s: 1e9 operations of training per second (3 passes, 2 per multiply-add, less the gradient of the
  images), peak_gflop_per_s: of a matrix product in the mode's precision, share_of_peak: their ratio;
- peak_memory_mib: resident memory of the process, without DataLoader workers, or what it held of the GPU's;
- data_s: the data pipeline alone, per batch, data_share: that against a step;
- compile_s: what the engine took to start, break_even_iterations: after how many it has paid for that.

`times_csv` has a row for each experiment of the paper and mode: experiment, net, runs, mode, run_s (the
projected time of one run), scaled_from_depth (empty if the net itself was measured).
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resrepro.bench.projection import IMAGENET, Projection, tell_time
from resrepro.bench.results import Entry, Outcome, Range
from resrepro.comparison.tables import DASH
from resrepro.records.durable import write_out
from resrepro.spec.specs import net_label

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MACHINE = ("date", "cpu", "gpu", "device", "cores", "threads", "torch", "resrepro")
LEGEND = (
    "images/s: median over rounds, lowest–highest below. × usual: ratio within each round. GFLOP/s: 3 "
    "passes, 2 per multiply-add, as a direct convolution takes them. peak: share of this machine's matrix "
    "product in the same precision; above 100 % where a convolution takes fewer (Winograd). "
    "data: data pipeline alone against a step. Images are made up; no data set is needed."
)


def speed_records(outcome: Outcome) -> list[dict[str, Any]]:
    """The rows of `speeds_csv`."""
    machine = {key: outcome.machine.get(key) for key in MACHINE}
    counted = {id(entry) for depth in outcome.plan.depths for entry in outcome.shown(depth)}
    return [
        machine | {"counted": id(entry) in counted} | _record(outcome, entry) for entry in outcome.entries
    ]


def _record(outcome: Outcome, entry: Entry) -> dict[str, Any]:
    who, plan = entry.contestant, outcome.plan
    peak = outcome.peaks[who.arithmetic.precision]
    return {
        "net": net_label(who.depth, who.plain), "depth": who.depth, "plain": who.plain,
        "batch_size": who.batch_size, "mode": who.mode, "workers": who.workers,
        "rounds": plan.rounds, "turn_s": plan.seconds,
        **_columns("images_per_s", entry.speed), **_columns("ratio_to_usual", outcome.ratio(entry)),
        "gflop_per_s": entry.operations_per_second / 1e9, "peak_gflop_per_s": peak / 1e9,
        "share_of_peak": outcome.share_of_peak(entry), "peak_memory_mib": entry.memory_mib,
        "data_s": entry.data_seconds, "data_share": entry.data_share,
        "compile_s": entry.compile_seconds, "break_even_iterations": outcome.breaks_even(entry),
    }  # fmt: skip


def _columns(name: str, found: Range | None) -> dict[str, float | None]:
    values = (None,) * 3 if found is None else (found.median, found.low, found.high)
    return {f"{name}_{kind}": value for kind, value in zip(("median", "min", "max"), values, strict=True)}


def time_records(projections: Iterable[Projection]) -> list[dict[str, Any]]:
    """The rows of `times_csv`."""
    return [
        {
            "experiment": each.experiment, "net": each.label, "runs": each.runs, "mode": each.mode,
            "run_s": each.seconds, "scaled_from_depth": each.scaled_from,
        }
        for each in projections
    ]  # fmt: skip


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records, at least one, with a heading; empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write_csv(outcome: Outcome, projections: Sequence[Projection], path: Path) -> list[Path]:
    """Write the speeds to a file, and the projected times, if there are any, to one beside it.

    Raises:
        RecordError: if they cannot be written.
    """
    files = {path: speed_records(outcome)}
    if projections:
        files[path.with_name(f"{path.stem}-times{path.suffix}")] = time_records(projections)
    for place, records in files.items():
        write_out(place, to_csv(records).encode())
    return list(files)


def show(outcome: Outcome, projections: Sequence[Projection]) -> "RenderableType":
    """All tables and sentences, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_machine(outcome)), Text(""), speed_table(outcome), Text("")]
    parts += [Text(sentence) for sentence in sentences(outcome)]
    parts.append(Text(LEGEND, style="dim"))
    if projections:
        parts += [Text("\nProjected time of one run, evaluations included:\n"), time_table(projections)]
        parts.append(Text(f"\n{IMAGENET}", style="dim"))
    return Group(*parts)


def _machine(outcome: Outcome) -> str:
    machine, plan = outcome.machine, outcome.plan
    where = machine.get("gpu") or machine.get("cpu")
    return (
        f"{where}, {machine.get('threads')} threads, torch {machine.get('torch')}: batches of "
        f"{plan.batch_size}, {plan.rounds} rounds of {plan.seconds:g} s"
    )


def sentences(outcome: Outcome) -> list[str]:
    """The peaks, the better number of workers, and what the engines took to start."""
    peaks = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in outcome.peaks.items())
    told = [f"Matrix peak: {peaks} GFLOP/s."]
    shown = [entry for depth in outcome.plan.depths for entry in outcome.shown(depth)]
    workers = [
        f"{entry.contestant.workers} for {net_label(entry.contestant.depth, entry.contestant.plain)}"
        for entry in shown
        if entry.contestant.workers is not None
    ]
    if workers:
        told.append(f"The usual loop's DataLoader is better with this many workers: {', '.join(workers)}.")
    return told + [_start_of(outcome, entry) for entry in shown if entry.compile_seconds]


def _start_of(outcome: Outcome, entry: Entry) -> str:
    paid = outcome.breaks_even(entry)
    after = "" if paid is None else f", and has paid after {paid:,} iterations"
    return f"{entry.contestant.label}: its engine takes {entry.compile_seconds:.1f} s to start{after}."


def _grid(headings: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(heading, justify=justify, vertical="bottom", no_wrap=True)
    return grid


def speed_table(outcome: Outcome) -> "Table":
    """Two lines for each mode of each net."""
    from rich.text import Text

    held = "GPU MiB" if outcome.machine.get("device") == "cuda" else "MiB"
    grid = _grid(("mode", "images/s", "× usual", "GFLOP/s", "peak", "data", held))
    for depth in outcome.plan.depths:
        grid.add_section()
        grid.add_row(Text(net_label(depth, outcome.plan.plain), style="dim"))
        for entry in outcome.shown(depth):
            grid.add_row(
                f"  {entry.contestant.mode}\n",
                _cell(entry.speed, speed=True),
                _cell(outcome.ratio(entry)),
                f"{entry.operations_per_second / 1e9:,.1f}\n",
                f"{outcome.share_of_peak(entry):.1%}\n",
                f"{entry.data_share:.1%}\n",
                f"{entry.memory_mib:,.0f}\n",
            )
    return grid


def _cell(found: Range | None, *, speed: bool = False) -> str:
    """The median, and the spread below it."""
    if found is None:
        return f"{DASH}\n"
    places = 2 if not speed else 0 if found.median >= 100 else 1
    median, low, high = (f"{value:,.{places}f}" for value in (found.median, found.low, found.high))
    return f"{median}\n{low}–{high}"


def time_table(projections: Sequence[Projection]) -> "Table":
    """A line for each experiment, a column for each mode."""
    modes = list(dict.fromkeys(each.mode for each in projections))
    grid = _grid(("experiment", "runs", *modes, "known"))
    for name in dict.fromkeys(each.experiment for each in projections):
        own = {each.mode: each for each in projections if each.experiment == name}
        first = next(iter(own.values()))
        known = "measured" if first.scaled_from is None else f"scaled from {first.scaled_from}"
        times = [tell_time(own[mode].seconds) if mode in own else DASH for mode in modes]
        grid.add_row(name, str(first.runs), *times, known)
    return grid
