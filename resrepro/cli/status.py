"""How far every run is and what of the records is broken (`status`), and what is missing (`--dry-run`)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resrepro.cli import RunsOption, app
from resrepro.errors import UsageError
from resrepro.spec.recipe import spell

if TYPE_CHECKING:
    from resrepro.launch import Plan, Step
    from resrepro.launch.costs import Speed
    from resrepro.launch.slurm import Place, QueuedJob
    from resrepro.records import Run

STYLES = {
    "running": "green", "starting": "green", "waiting": "cyan", "interrupted": "yellow", "failed": "red",
    "diverged": "red", "finished": "dim",
}  # fmt: skip
PLANNED = {"done": "dim", "resume": "yellow", "start": "green", "blocked": "red"}
TAIL = 4096  # bytes at the end of a log, in which its last error is looked for


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
    queued = None if queue is None else {job.id for job in queue.values()}
    if holder is not None and (not holder.job or queued is None or holder.job in queued):
        where = f"process {holder.pid} on {holder.host}" + (f", job {holder.job}" if holder.job else "")
        return Progress(name, seed, "running" if run else "starting", run, where)
    if over:
        return Progress(name, seed, over, run)
    log, why = _end_of_log(runs / FOLDER / name / f"seed{seed}", folder / RESULT)
    return Progress(name, seed, "interrupted" if run and not why else "failed", run, "", why, log)


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


def _show(found: Sequence[Progress], console: Console) -> None:
    """The runs, those of one name below it, in columns that are as wide in all of them."""
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


def _sum_up(found: Sequence[Progress], console: Console) -> None:
    """How many runs there are of each state, and what the columns mean."""
    states = Counter(progress.state for progress in found)
    told = ", ".join(f"{states[state]} {state}" for state in STYLES if states[state])
    if any(_cells(progress)[3] for progress in found):
        console.print("Errors: training, then test or validation, as last measured.")
    console.print(f"{_count(len(found))}: {told}.")
    if states["interrupted"] or states["failed"]:
        console.print("The command that started a run goes on with it.")


def _print(console: Console, text: Text, indent: int, lead: int = 0) -> None:
    """Print a line that begins at `lead`, wrapped under `indent` in a terminal and left whole in a pipe."""
    if not console.is_terminal:
        console.print(Text(" " * lead) + text, soft_wrap=True)
        return
    first = text.wrap(console, console.width - lead)[0]
    rest = text[len(first) :]
    first.rstrip()
    console.print(Padding(first, (0, 0, 0, lead), expand=False))
    if rest.plain.strip():
        console.print(Padding(Text(rest.plain.strip(), text.style), (0, 0, 0, indent), expand=False))


def _count(runs: int) -> str:
    return f"{runs} run{'s' * (runs != 1)}"


# --- what is missing, and what it takes ----------------------------------------------------------------


def show_plan(
    plan: "Plan", jobs: Mapping[str, int], device: str,
    words_for: "Callable[[Step], Sequence[str]] | None", console: Console,
) -> None:  # fmt: skip
    """Print a line for each net and state, what is measured after, and what all of it takes.

    `jobs` are the runs at once, by the family of their nets; `words_for` gives the command that trains a run
    here, and is None where they are trained elsewhere: no time is told then.

    Raises:
        UsageError: if the runs could not be started.
    """
    speeds = _speeds(plan, jobs, device, words_for) if words_for and plan.to_train else []
    if plan.steps:
        console.print(table_of(plan, speeds))
    lines = [f"{step}: {step.why}" for step in plan.steps if step.why]
    if changes := dict.fromkeys(change for step in plan.steps for change in step.spec.changes):
        lines.append(f"Settings: {', '.join(f'{key}={spell(value)}' for key, value in changes)}.")
    lines += [*_measuring(plan), _totals(plan, speeds, jobs)]
    shown, claims = (", ".join(exhibit.stem for exhibit in plan.exhibits), ", ".join(map(str, plan.claims)))
    if shown:
        lines.append(
            f"Shown at the end: {shown}; verdicts on claims {claims}." if claims else f"At the end: {shown}."
        )
    for line in lines:
        console.print(line, markup=False)


def _speeds(
    plan: "Plan", jobs: Mapping[str, int], device: str, words_for: "Callable[[Step], Sequence[str]]"
) -> "list[Speed]":
    """What tells the time of the missing runs: records of this machine, or else some updates made now."""
    from resrepro.launch.costs import speeds_in, time_missing
    from resrepro.launch.local import threads_each
    from resrepro.records.collection import collect

    speeds, stderr = speeds_in(collect([plan.runs]).runs, device), Console(stderr=True, highlight=False)
    for family, count in jobs.items():
        steps = [step for step in plan.to_train if step.family == family]
        with stderr.status("timing a few updates"):
            timed, sentences = time_missing(steps, speeds, words_for, threads_each(count))
        speeds += timed
        for sentence in sentences:
            stderr.print(f"No time is told: {sentence}", markup=False)
    return speeds


def table_of(plan: "Plan", speeds: "Sequence[Speed]") -> Table:
    """Runs of one net that are in one state share a line; for a terminal of 80 columns."""
    from resrepro.launch.costs import disk_mib, duration, seconds_of

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("run", overflow="fold")
    grid.add_column("seeds", overflow="fold")
    grid.add_column("state", no_wrap=True)
    for heading in ("time each", "MiB each"):
        grid.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in plan.steps:
        groups.setdefault((step.spec.experiment, _state(step)), []).append(step)
    for (name, state), steps in groups.items():
        first = steps[0]
        costs = ("", "")
        if first.to_train:
            costs = duration(seconds_of(first.spec, first.done, speeds)), f"{disk_mib(first.spec):,.1f}"
        seeds = _ranges([step.seed for step in steps])
        grid.add_row(name, seeds, f"[{PLANNED[first.state]}]{state}[/]", *costs)
    return grid


def _state(step: "Step") -> str:
    """`done`, `to resume at 120 of 240`, `to start` or `blocked`."""
    if step.state == "resume":
        return "to resume" + (f" at {step.done:,} of {step.spec.recipe.iterations:,}" if step.done else "")
    return "to start" if step.state == "start" else step.state


def _ranges(seeds: Sequence[int]) -> str:
    """`0-4`, or `0, 3, 7`."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _measuring(plan: "Plan") -> list[str]:
    """`Then measured: ten_crop of 5 runs (2 done).`, if anything is."""
    told = []
    for what in dict.fromkeys(each.what for each in plan.measurements):
        own = [each for each in plan.measurements if each.what == what and len(each.steps) == 1]
        done = sum(each.done for each in own)
        told += [f"{what} of {_count(len(own))}" + (f" ({done} done)" if done else "")] if own else []
    told += [f"{each}{' (done)' if each.done else ''}" for each in plan.measurements if len(each.steps) > 1]
    return [f"Then measured: {', '.join(told)}."] if told else []


def _totals(plan: "Plan", speeds: "Sequence[Speed]", jobs: Mapping[str, int]) -> str:
    """How many runs there are of each state, and what the missing ones take together."""
    from resrepro.launch.costs import disk_mib, duration, total_seconds

    missing = plan.to_train
    if not plan.steps:
        return "No run is needed."
    if not missing:
        left = len(plan.to_measure)
        what = f"{left} measurement{'s' * (left != 1)}" if left else "nothing"
        which = "all runs are done" if not plan.blocked else "no other run can be trained"
        return f"{_count(len(plan.steps))}: {which}; {what} to do."
    states = Counter[str](step.state for step in plan.steps)
    words = {"done": "done", "resume": "to resume", "start": "to start", "blocked": "blocked"}
    counts = ", ".join(f"{states[state]} {word}" for state, word in words.items() if states[state])
    seconds, most = total_seconds(missing, speeds, jobs), max(jobs[step.family] for step in missing)
    together = f" with {most} at once" if most > 1 else ""
    time = "" if seconds is None else f"about {duration(seconds)}{together}, "
    disk = sum(disk_mib(step.spec) for step in missing if step.state == "start")
    return f"{_count(len(plan.steps))}: {counts}; {time}{disk:,.0f} MiB."
