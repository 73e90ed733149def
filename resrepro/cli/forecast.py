"""`resrepro train --dry-run`: what the runs that were asked for will take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from resrepro.benchmark.projection import tell_time
from resrepro.errors import UsageError
from resrepro.estimates import Estimate, estimate, notes_on
from resrepro.processes import world_size
from resrepro.specs import Value


def forecast(
    names: Sequence[str],
    seeds: Sequence[int],
    data: Path | None,
    settings: Mapping[str, Value | None],
    **means: Any,
) -> None:
    """Print time, memory and disk of each run, and of all of them one after the other.

    Raises:
        UsageError: if a run could not be started, or under torchrun.
    """
    if world_size() > 1:
        raise UsageError("--dry-run measures one process: leave torchrun out.")
    folder = None if data is None else str(data)
    with Console(stderr=True, highlight=False).status("") as status:
        found = []
        for name in names:
            status.update(f"{name}: measuring a few steps")
            found.append(estimate(name, data=folder, settings=settings, **means))
    console = Console(highlight=False)
    console.print(table_of(found, len(seeds)))
    for note in notes_on(found):
        console.print(note, markup=False, style="dim")


def table_of(found: Sequence[Estimate], seeds: int) -> Table:
    """A line for each net, and one for everything together; for a terminal of 80 columns."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("run", vertical="bottom", overflow="fold")
    gpu = any(each.gpu_mib is not None for each in found)
    headings = ("runs", "time each", "memory,\nMiB", *(["GPU,\nMiB"] if gpu else []), "disk each,\nMiB")
    for heading in headings:
        grid.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for each in found:
        held = [f"{each.gpu_mib or 0:,.0f}"] if gpu else []
        grid.add_row(
            each.name, str(seeds), tell_time(each.seconds), f"{each.memory_mib:,.0f}", *held,
            f"{each.disk_mib:,.1f}",
        )  # fmt: skip
    if len(found) * seeds > 1:
        grid.add_section()
        most = [max(each.gpu_mib or 0 for each in found)] if gpu else []
        grid.add_row(
            "all, one after the other", str(len(found) * seeds),
            tell_time(seeds * sum(each.seconds for each in found)),
            *(f"{value:,.0f}" for value in (max(each.memory_mib for each in found), *most)),
            f"{seeds * sum(each.disk_mib for each in found):,.1f}",
        )  # fmt: skip
    return grid
