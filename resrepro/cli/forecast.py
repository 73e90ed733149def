"""`resrepro train --dry-run`: what the runs that were asked for will take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from resrepro.bench.projection import tell_time
from resrepro.errors import DataError, RecordError, UsageError
from resrepro.launch.capacity import choose_jobs, this_machine, threads_each
from resrepro.launch.costs import wall_seconds
from resrepro.launch.estimates import Estimate, estimate, notes_on
from resrepro.processes import world_size
from resrepro.records import read_run
from resrepro.records.write import has_checkpoint
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import Value


@dataclass(frozen=True)
class Outlook:
    """What the runs of one net will take, and the updates that each of them has made already."""

    each: Estimate
    done: tuple[int, ...]

    @property
    def left(self) -> list[float]:
        """Seconds of each run that is not finished."""
        whole = self.each.iterations
        return [self.each.seconds * (1 - done / whole) for done in self.done if done < whole]


def forecast(
    specs: Sequence[Spec],
    seeds: Sequence[int],
    data: Path | None,
    settings: Mapping[str, Value | None],
    *,
    runs: Path | None,
    jobs: int | None,
    threads: int | None,
    **means: Any,
) -> None:
    """Print time, memory and disk of each run, and of all that is left to do together.

    Args:
        specs: of the runs, each trained with each of the seeds.
        seeds: of every net.
        data: folder of the images.
        settings: settings of the recipe to change.
        runs: folder whose runs are gone on with; None if all are begun anew.
        jobs: runs at once; chosen as `train` does where it is None.
        threads: CPU threads of each run.
        means: the other options of `resrepro.launch.estimates.estimate`.

    Raises:
        UsageError: if a run could not be started, or under torchrun.
        DataError: if there is no such folder of images.
    """
    if world_size() > 1:
        raise UsageError("--dry-run measures one process: leave torchrun out.")
    if data is not None and not data.is_dir():
        raise DataError(
            f"the data folder {data} (--data) does not exist: name the one that holds the images."
        )
    machine, nets = this_machine(), list(dict.fromkeys(specs))
    together = [spec for spec in nets for _ in seeds]
    at_once = choose_jobs(jobs, together, means["device"], means["micro_batch"], machine)
    share = threads_each(at_once, machine) if at_once > 1 else None
    folder = None if data is None else str(data)
    with Console(stderr=True, highlight=False).status("") as status:
        found = []
        for spec in nets:
            status.update(f"{spec.experiment}: measuring a few steps")
            told = estimate(
                spec.experiment, data=folder, settings=settings, threads=threads or share, **means
            )
            done = tuple(0 if runs is None else _made(runs / told.name / f"seed{seed}") for seed in seeds)
            found.append(Outlook(told, done))
    console = Console(highlight=False)
    console.print(table_of(found, at_once))
    for note in (*_going_on(found), *notes_on([net.each for net in found], at_once)):
        console.print(note, markup=False, style="dim")


def _made(folder: Path) -> int:
    """The updates after which a run would go on."""
    if not has_checkpoint(folder):
        return 0
    try:
        return int(read_run(folder).result["iteration"])
    except RecordError:
        return 0


def table_of(found: Sequence[Outlook], at_once: int = 1) -> Table:
    """A line for each net, and one for everything that is left; for a terminal of 80 columns."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("run", vertical="bottom", overflow="fold")
    gpu = any(net.each.gpu_mib is not None for net in found)
    headings = ("runs", "time each", "memory,\nMiB", *(["GPU,\nMiB"] if gpu else []), "disk each,\nMiB")
    for heading in headings:
        grid.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for net in found:
        each = net.each
        held = [f"{each.gpu_mib or 0:,.0f}"] if gpu else []
        grid.add_row(
            each.name, str(len(net.done)), tell_time(each.seconds), f"{each.memory_mib:,.0f}", *held,
            f"{each.disk_mib:,.1f}",
        )  # fmt: skip
    if sum(len(net.done) for net in found) > 1:
        grid.add_section()
        grid.add_row(*_sums(found, at_once, gpu=gpu))
    return grid


def _sums(found: Sequence[Outlook], at_once: int, *, gpu: bool) -> list[str]:
    """What all that is left takes; of the memory, that of the largest runs which may meet."""
    left = [(net.each, seconds) for net in found for seconds in net.left]
    held = [sorted((each.memory_mib for each, _ in left), reverse=True)]
    held += [sorted((each.gpu_mib or 0 for each, _ in left), reverse=True)] if gpu else []
    begun = any(any(net.done) for net in found)
    what = "what is left" if begun else "all"
    return [
        f"{what}, {f'{at_once} at once' if at_once > 1 else 'one after the other'}",
        str(len(left)),
        tell_time(wall_seconds([seconds for _, seconds in left], at_once)),
        *(f"{sum(of_each[:at_once]):,.0f}" for of_each in held),
        f"{sum(net.each.disk_mib * net.done.count(0) for net in found):,.1f}",
    ]


def _going_on(found: Sequence[Outlook]) -> list[str]:
    """Sentences on the runs that were begun before."""
    told = []
    for net in found:
        whole = net.each.iterations
        finished = sum(done >= whole for done in net.done)
        begun = [f"{done:,}" for done in net.done if 0 < done < whole]
        if finished:
            told.append(f"{net.each.name}: {finished} of {len(net.done)} done already.")
        if begun:
            told.append(f"{net.each.name}: goes on after {', '.join(begun)} of {whole:,} iterations.")
    return told
