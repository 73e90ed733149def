"""How far every run is and what of the records is broken (`status`), and what is missing (`--dry-run`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from resrepro.cli import JsonOption, QuietOption, RunsOption, app, argument, option
from resrepro.cli.view import tell
from resrepro.comparison.table import Grid
from resrepro.errors import UsageError
from resrepro.launch import Plan, Step
from resrepro.launch.local import disk_mib, seconds_of, span
from resrepro.launch.slurm import FOLDER, QueuedJob, QueueError, jobs_of, place_of
from resrepro.records import Run
from resrepro.records.collection import Identity, collect, verify
from resrepro.records.storage import holder_of
from resrepro.spec.recipe import spell

STYLES = {
    "running": "green", "starting": "green", "waiting": "cyan", "interrupted": "yellow", "failed": "red",
    "diverged": "red", "finished": "dim",
}  # fmt: skip
PLANNED = {
    "done": ("done", "dim"), "resume": ("to resume", "yellow"), "start": ("to start", "green"),
    "blocked": ("blocked", "red"),
}  # fmt: skip
RECORDS = "With --check: runs, folders of runs, or files that eval wrote. (default: those of --runs)"
CHECK = "Check records and checkpoints: seals, checksums, nets."


@app.command(rich_help_panel="Read")
def status(
    records: Annotated[list[Path] | None, argument(RECORDS, "RUN...")] = None,
    runs: RunsOption = Path("runs"),
    check: Annotated[bool, option(CHECK, "--check")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far every run is, here and in the cluster's queue, or what of their records is broken."""
    if records and not check:
        raise UsageError("runs are named for --check; --runs DIR names the folder to show.")
    if check:
        return _check(records or [runs])
    rows, notices = _look(runs)
    console = Console(highlight=False, soft_wrap=True)
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(6)]
    above = ""
    for name, seed, state, done, errors, where in rows:  # in columns that are as wide for all nets
        if name != above:
            console.print(Text(name, "bold"))
        above = name
        line = Text(f"  {seed:<{widths[1]}}  ").append(f"{state:<{widths[2]}}", STYLES[state])
        line.append(f"  {done:>{widths[3]}}  {errors:>{widths[4]}}  {where}").rstrip()
        if len(line) > console.width:
            parts = filter(None, (f"  {seed} {state}", done, errors, where))
            line = Text("\n    ".join(parts), STYLES[state])
        console.print(line)
    if any(row[4] for row in rows):
        console.print("Errors: training, then test or validation, as last measured.")
    states = Counter(row[2] for row in rows)
    told = ", ".join(f"{states[state]} {state}" for state in STYLES if states[state])
    console.print(f"{_count(len(rows))}: {told}." if rows else f"No runs in {runs}.", markup=False)
    if states["interrupted"] or states["failed"]:
        console.print("The command that started a run goes on with it.")
    for notice in notices:
        Console(stderr=as_json, highlight=False, soft_wrap=True).print(f"Note: {notice}", markup=False)


def _check(paths: Sequence[Path]) -> None:
    """One line for all records that are whole, one for each thing that is broken; exits with 1 if any is."""

    def read_checkpoint(path: Path) -> Identity:
        from resrepro.evaluation.sources import read_net  # imports torch

        net = read_net(path)
        return net.spec.digest, net.seed, net.iteration

    checked = list(verify(paths, read_checkpoint))
    for path, summary, troubles in checked:
        tell(record=str(path), whole=not troubles, holds=summary, broken=troubles)
        for trouble in troubles:
            print(f"{path}: broken: {trouble.replace(f'{path}/', '')}")
    broken = sum(bool(troubles) for *_, troubles in checked)
    if len(checked) == 1 and not broken:
        return print(f"{path}: whole ({summary})")
    print(f"{len(checked) - broken} whole, {broken} broken.")
    if broken:
        print("The command that started a run restores of it what its checkpoint holds.")
        raise typer.Exit(1)


def _look(runs: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """Name, seed, state, iterations, errors and place of each run, which `tell` hears of; what is broken."""
    collection = collect([runs])
    records = {(run.name, run.seed): run for run in collection.runs}
    rows, notices, queue = list[tuple[str, ...]](), list(collection.broken), dict[Any, QueuedJob]()
    submitted = {place_of(folder) for folder in runs.glob(f"{FOLDER}/*/seed*")}
    locked = {place_of(lock.with_name(lock.stem[1:])) for lock in runs.glob("*/.seed*.lock")}
    try:
        queue = jobs_of(runs)
    except QueueError as error:
        notices.append(f"Only what lies in {runs} is shown: {error}")
    for name, seed in sorted({*records, *submitted, *locked, *queue}):
        run, folder = records.get((name, seed)), runs / name / f"seed{seed}"
        state, where = _state_of(run, queue.get((name, seed)), folder)
        if state == "failed" and (name, seed) in submitted:
            where = f"log in {runs / FOLDER / name / f'seed{seed}'}"
        done, errors, numbers = "", "", dict[str, object]()
        if run is not None:
            measured = {part: figures["top1_err"] for part, figures in run.result["last"].items()}
            numbers = {key: run.result[key] for key in ("iteration", "iterations")} | {"top1_err": measured}
            done = "{iteration:,}/{iterations:,}".format(**numbers)
            last = (measured.get(part) for part in ("train", run.headline_split))
            errors = " ".join(f"{error:.2f} %" for error in last if error is not None)
        if run or where:  # a lock that was left behind is nothing
            tell(record=str(folder), state=state, where=where, **numbers)
            rows.append((name, f"seed {seed}", state, done, errors, where))
    return rows, notices


def _state_of(run: Run | None, job: QueuedJob | None, folder: Path) -> tuple[str, str]:
    """One of STYLES, and in whose hands a run is: its job's or its process's."""
    over = "finished" if run and run.finished else "diverged" if run and run.status == "diverged" else ""
    if job is not None:  # of a run that is over something may be measured
        return over or ("waiting" if job.state == "PENDING" else "running" if run else "starting"), str(job)
    if not over and (holder := holder_of(folder)):
        return "running" if run else "starting", f"process {holder.pid} on {holder.host}"
    return over or ("interrupted" if run else "failed"), ""


def _count(number: int, what: str = "run") -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def show_plan(plan: Plan, device: str | None, console: Console) -> None:
    """Print a line for each net and state, what is measured after, the disk and, on a device, the time."""
    if plan.steps:
        console.print(_table_of(plan, device))
    lines = [f"{step}: {step.why}" for step in plan.steps if step.why]
    if changes := dict.fromkeys(change for step in plan.steps for change in step.spec.changes):
        lines.append(f"Settings: {', '.join(f'{key}={spell(value)}' for key, value in changes)}.")
    alone = [each for each in plan.measurements if len(each.steps) == 1]
    measured = []  # `ten_crop of 5 runs (2 done)`
    for what in dict.fromkeys(each.what for each in alone):
        dones = [each.done for each in alone if each.what == what]
        measured.append(f"{what} of {_count(len(dones))}" + (f" ({sum(dones)} done)" if any(dones) else ""))
    together = (each for each in plan.measurements if len(each.steps) > 1)
    measured += [f"{each}{' (done)' if each.done else ''}" for each in together]
    lines += [f"Then measured: {', '.join(measured)}."] if measured else []
    lines.append(_totals(plan))
    claims = f"; verdicts on claims {', '.join(map(str, plan.claims))}" if plan.claims else ""
    if plan.exhibits:
        lines.append(f"Shown at the end: {', '.join(each.stem for each in plan.exhibits)}{claims}.")
    for line in lines:
        console.print(line, markup=False)


def _table_of(plan: Plan, device: str | None) -> Grid:
    """Runs of one net that are in one state share a line."""
    seen = collect([plan.runs]).runs if device else ()
    grid = Grid(("run", "seeds", "state", "time each", "MiB each"), left=3)
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in plan.steps:
        state = PLANNED[step.state][0]
        if step.state == "resume" and step.done:
            state += f" at {step.done:,} of {step.spec.recipe.iterations:,}"
        groups.setdefault((step.spec.experiment, state), []).append(step)
    for (name, state), (first, *others) in groups.items():
        time = span(seconds_of(first.spec, first.done, seen, device)) if device and first.to_train else ""
        disk = f"{disk_mib(first.spec):,.1f}" if first.to_train else ""
        seeds = ", ".join(str(step.seed) for step in (first, *others))
        grid.add(name, seeds, Text(state, PLANNED[first.state][1]), time, disk)
    return grid


def _totals(plan: Plan) -> str:
    """How many runs there are of each state, and the disk that the missing ones take."""
    if not plan.steps:
        return "No run is needed."
    states = Counter[str](step.state for step in plan.steps)
    if not any(step.to_train for step in plan.steps):
        what = _count(len(plan.to_measure), "measurement") if plan.to_measure else "nothing"
        which = "no other run can be trained" if states["blocked"] else "all runs are done"
        return f"{_count(len(plan.steps))}: {which}; {what} to do."
    counts = ", ".join(f"{states[key]} {word}" for key, (word, _) in PLANNED.items() if states[key])
    disk = sum(disk_mib(step.spec) for step in plan.steps if step.state == "start")
    return f"{_count(len(plan.steps))}: {counts}; {disk:,.0f} MiB."
