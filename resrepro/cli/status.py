"""`resrepro status`, and what `--launcher slurm` does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrepro.cli import app
from resrepro.cli.options import RunsOption
from resrepro.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from resrepro.launch.slurm import Place, QueuedJob, QueuedRun
    from resrepro.records import Run
    from resrepro.records.locking import Holder
    from resrepro.spec.experiment import Spec

LAUNCHERS = ("local", "slurm")
STYLES = {
    "running": "green", "starting": "green", "waiting": "cyan", "interrupted": "yellow", "failed": "red",
    "diverged": "red", "finished": "dim",
}  # fmt: skip
TAIL = 4096  # bytes at the end of a log, in which its last error is looked for
QUEUE = "Cluster"
LauncherOption = Annotated[
    str,
    typer.Option(
        "--launcher", metavar="local|slurm", rich_help_panel=QUEUE,
        help="Train here, or submit the runs to a Slurm cluster's queue.",
    ),
]  # fmt: skip
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", metavar="KEY=VALUE", rich_help_panel=QUEUE, show_default=False,
        help="Any long option of sbatch (partition, time, cpus-per-task, gpus, mem, ..); may be repeated.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """A run, how far it is, and whose hands it is in.

    Attributes:
        state: one of STYLES.
        record: what there is of it, None before it has begun.
        where: the job or process that trains it, or what the job waits for.
        why: the sentence that its job ended with.
        log: the output of its job, of a run that is neither over nor in the queue.
    """

    run: str
    seed: int
    state: str
    record: "Run | None" = None
    where: str = ""
    why: str = ""
    log: Path | None = None


@app.command(rich_help_panel="Read")
def status(
    records: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", show_default=False,
            help="With --check: runs, folders of runs, or files that eval wrote. (default: those of --runs)",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    check: Annotated[
        bool, typer.Option("--check", help="Check records and checkpoints: seals, checksums, nets.")
    ] = False,
) -> None:  # fmt: skip
    """Show how far every run is, here and in the cluster's queue, or what of their records is broken."""
    if records and not check:
        raise UsageError("runs are named for --check; --runs DIR names the folder to show.")
    if check:
        _check(records or [runs])
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    found, notices = look(runs)
    if found:
        _show(found, console)
        _sum_up(found, console)
    else:
        console.print(f"No runs in {runs}.", markup=False)
    for notice in notices:
        _print(console, Text(f"Note: {notice}"), 0)


def _check(paths: Sequence[Path]) -> None:
    """One line for each record that is whole, one for each thing that is broken; exits with 1 if any is."""
    from resrepro.records.collection import Identity, verify
    from resrepro.records.storage import shown

    def read_checkpoint(path: Path) -> Identity:
        from resrepro.evaluation.sources import read_net  # imports torch

        net = read_net(path)
        return Identity(net.spec.digest, net.seed, net.iteration)

    whole = broken = 0
    for path, summary, troubles in verify(paths, read_checkpoint):
        whole, broken = whole + (not troubles), broken + bool(troubles)
        for text in [f"broken: {trouble}" for trouble in troubles] or [f"whole ({summary})"]:
            typer.echo(shown(f"{path}: {text.replace(f'{path}/', '')}"))
    typer.echo(f"{whole} whole, {broken} broken.")
    if broken:
        typer.echo("The command that started a run restores of it what its checkpoint holds.")
        raise typer.Exit(1)


def look(runs: Path) -> tuple[list[Progress], list[str]]:
    """Every run below a runs folder and every one submitted from it, by name and seed.

    Returns:
        The runs, and a sentence on each file that is broken and on a queue that does not answer.

    Raises:
        RecordError: if the folder is a file.
    """
    from resrepro.launch.slurm import FOLDER, QueueError, jobs_of, place_of
    from resrepro.records.collection import collect

    collection = collect([runs])
    records = {(run.name, run.seed): run for run in collection.runs}
    notices = list(collection.broken)
    submitted = [place_of(folder) for folder in runs.glob(f"{FOLDER}/*/seed*")]
    locked = [place_of(lock.with_name(lock.stem[1:])) for lock in runs.glob("*/.seed*.lock")]
    queue: Mapping[Place, QueuedJob] | None = None
    try:
        queue = jobs_of(runs)
    except QueueError as error:
        notices.append(f"Only what lies in {runs} is shown: {error}")
    places = {place for place in (*records, *submitted, *locked, *(queue or ())) if place is not None}
    found = [_progress(runs, place, records.get(place), queue) for place in sorted(places)]
    return [each for each in found if each.record or each.where or each.log], notices


def _progress(
    runs: Path, place: "Place", run: "Run | None", queue: "Mapping[Place, QueuedJob] | None"
) -> Progress:
    from resrepro.launch.slurm import FOLDER
    from resrepro.records.locking import holder_of
    from resrepro.records.reading import RESULT

    name, seed = place
    folder, job = runs / name / f"seed{seed}", (queue or {}).get(place)
    over = "finished" if run and run.finished else "diverged" if run and run.status == "diverged" else ""
    if job is not None:  # of a run that is over something may be measured
        state = "waiting" if job.state == "PENDING" else "running" if run else "starting"
        return Progress(name, seed, over or state, run, str(job))
    holder = None if over else holder_of(folder)
    if holder is not None and not (holder.job and queue is not None and _has_left(holder, queue)):
        where = f"process {holder.pid} on {holder.host}" + (f", job {holder.job}" if holder.job else "")
        return Progress(name, seed, "running" if run else "starting", run, where)
    if over:
        return Progress(name, seed, over, run)
    log, why = _end_of_log(runs / FOLDER / name / f"seed{seed}", folder / RESULT)
    return Progress(name, seed, "interrupted" if run and not why else "failed", run, "", why, log)


def _has_left(holder: "Holder", queue: "Mapping[Place, QueuedJob]") -> bool:
    return holder.job not in {job.id for job in queue.values()}


def _end_of_log(place: Path, result: Path) -> tuple[Path | None, str]:
    """The newest log of a run's jobs, and the error that it ends with, unless the run went on since."""
    from resrepro.launch.slurm import shown

    logs = sorted(place.glob("*_log.out"), key=lambda log: log.stat().st_mtime)
    if not logs or (result.exists() and result.stat().st_mtime > logs[-1].stat().st_mtime):
        return None, ""
    with logs[-1].open("rb") as file:
        file.seek(max(0, logs[-1].stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return logs[-1], shown(errors[-1]) if errors else ""


def _show(found: Sequence[Progress], console: "Console") -> None:
    """The runs, those of one name below it, in columns that are as wide in all of them."""
    from rich.text import Text

    rows = [_cells(progress) for progress in found]
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(4)]
    name = ""
    for progress, (seed, state, done, errors) in zip(found, rows, strict=True):
        if progress.run != name:
            name = progress.run
            console.print(Text(name, "bold"), soft_wrap=True)
        line = Text(f"  {seed:<{widths[0]}}  ")
        line.append(f"{state:<{widths[1]}}", STYLES[progress.state])
        line.append(f"  {done:>{widths[2]}}  {errors:>{widths[3]}}  {progress.where}")
        line.rstrip()
        _print(console, line, widths[0] + widths[1] + 6)
        if progress.why:
            _print(console, Text(f"{progress.why.rstrip('.')}.", "red"), 4, lead=4)
        if progress.log:
            console.print(f"    log: {progress.log}", soft_wrap=True, markup=False)


def _cells(progress: Progress) -> tuple[str, str, str, str]:
    """Seed, state, iterations and errors of a run."""
    seed, run = f"seed {progress.seed}", progress.record
    if run is None:
        return seed, progress.state, "", ""
    errors = [run.last(part) for part in ("train", run.headline_split)]
    told = " ".join(f"{error:.2f} %" for error in errors if error is not None)
    return seed, progress.state, f"{run.result['iteration']:,}/{run.result['iterations']:,}", told


def _sum_up(found: Sequence[Progress], console: "Console") -> None:
    """How many runs there are of each state, and what the columns mean."""
    states = Counter(progress.state for progress in found)
    told = ", ".join(f"{states[state]} {state}" for state in STYLES if states[state])
    if any(_cells(progress)[3] for progress in found):
        console.print("Errors: training, then test or validation, as last measured.")
    console.print(f"{len(found)} run{'s' * (len(found) != 1)}: {told}.")
    if states["interrupted"] or states["failed"]:
        console.print("The command that started a run goes on with it.")


def _print(console: "Console", text: "Text", indent: int, lead: int = 0) -> None:
    """Print a line that begins at `lead`, wrapped under `indent` in a terminal and left whole in a pipe."""
    from rich.padding import Padding
    from rich.text import Text

    if not console.is_terminal:
        console.print(Text(" " * lead) + text, soft_wrap=True)
        return
    first = text.wrap(console, console.width - lead)[0]
    rest = text[len(first) :]
    first.rstrip()
    console.print(Padding(first, (0, 0, 0, lead), expand=False))
    if rest.plain.strip():
        console.print(Padding(Text(rest.plain.strip(), text.style), (0, 0, 0, indent), expand=False))


def parse_slurm(pairs: Sequence[str], launcher: str) -> dict[str, str]:
    """`["partition=gpu", "time=90"]` -> `{"partition": "gpu", "time": "90"}`.

    Raises:
        UsageError: if one is not key=value or is given where nothing is submitted; if there is no such
            launcher.
    """
    if launcher not in LAUNCHERS:
        raise UsageError(f"--launcher takes {' or '.join(LAUNCHERS)}, not {launcher!r}.")
    if pairs and launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm, which submits the runs to a cluster's queue.")
    told: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.replace("-", "").replace("_", "").isalnum() or not value.isprintable():
            raise UsageError(f"--slurm takes key=value, such as partition=gpu, not {pair!r}.")
        told[key.replace("-", "_")] = value
    return told


def submit_runs(
    wanted: "Sequence[tuple[Spec, int]]",
    words: Sequence[str],
    options: Mapping[str, str],
    threads: int | None,
    runs: Path,
    data: Path | None,
) -> None:
    """Submit runs, and say how to look after them; `words` are the options of all.

    Raises:
        DataError: if the images are missing or damaged; nothing is submitted then.
        ResreproError: as `resrepro.launch.slurm.submit`.
    """
    from resrepro.launch import train_words
    from resrepro.launch.local import prepare_images
    from resrepro.launch.slurm import QueuedRun, submit

    prepare_images([spec for spec, _ in wanted], data)  # downloaded once, not by every job
    queued = [QueuedRun(spec.name, seed, train_words(spec, seed, words)) for spec, seed in wanted]
    tell_jobs(submit(queued, runs, options, threads), runs)


def tell_jobs(submitted: "Sequence[tuple[QueuedRun, str, QueuedJob | None]]", runs: Path) -> None:
    """Print the job of each run, whether it was in the queue already, and how to look after them."""
    from resrepro.spec.experiment import in_folder

    for queued, number, before in submitted:
        there = "" if before is None else "waiting" if before.state == "PENDING" else "running"
        typer.echo(f"{queued}: job {number}" + (f" ({there} already)" if there else ""))
    if submitted:
        typer.echo(f"Next: {in_folder('resrepro status', runs)}")
