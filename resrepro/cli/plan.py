"""How `resrepro reproduce` shows what there is, what is missing and what that takes."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from resrepro.bench.projection import tell_time
from resrepro.launch.costs import Seen, disk_mib, seconds_of, wall_seconds
from resrepro.launch.planning import Plan, Step
from resrepro.spec.recipe import FAMILIES, spell

UNKNOWN = "?"
STATES = {"done": "dim", "resume": "yellow", "start": "green", "blocked": "red"}


def show_plan(plan: Plan, seen: Sequence[Seen], jobs: Mapping[str, int], console: Console) -> None:
    """Print a line for each net and state, what is measured after, and what all of it takes.

    Args:
        plan: what there is and what is missing.
        seen: what tells the time.
        jobs: runs at once, by the family of their nets.
        console: where to.
    """
    if plan.steps:
        console.print(table_of(plan, seen))
    for step in plan.steps:
        if step.why:
            console.print(f"{step}: {step.why}", markup=False)
    for line in (_changed(plan), _measuring(plan), _totals(plan, seen, jobs), _showing(plan)):
        if line:
            console.print(line, markup=False)


def table_of(plan: Plan, seen: Sequence[Seen]) -> Table:
    """Runs of one net that are in one state share a line; for a terminal of 80 columns."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("run", overflow="fold")
    grid.add_column("seeds", overflow="fold")
    grid.add_column("state", no_wrap=True)
    for heading in ("time each", "MiB each"):
        grid.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in plan.steps:
        groups.setdefault((step.spec.experiment, state_told(step)), []).append(step)
    for (name, state), steps in groups.items():
        first = steps[0]
        style = STATES[first.state]
        costs = ("", "")
        if first.to_train:
            costs = told_time(seconds_of(first.spec, first.done, seen)), f"{disk_mib(first.spec):,.1f}"
        grid.add_row(name, _seeds([step.seed for step in steps]), f"[{style}]{state}[/]", *costs)
    return grid


def state_told(step: Step) -> str:
    """`done`, `to resume at 120 of 240`, `to start` or `blocked`."""
    if step.state == "resume":
        at = f" at {step.done:,} of {step.spec.recipe.iterations:,}" if step.done else ""
        return f"to resume{at}"
    return "to start" if step.state == "start" else step.state


def told_time(seconds: float | None) -> str:
    """A duration, or a question mark."""
    return UNKNOWN if seconds is None else tell_time(seconds)


def _seeds(seeds: Sequence[int]) -> str:
    """`0-4`, or `0, 3, 7`."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _changed(plan: Plan) -> str:
    """The settings that make runs others than those of the paper; the names of the runs end in them."""
    changes = dict.fromkeys(change for step in plan.steps for change in step.spec.changes)
    told = ", ".join(f"{key}={spell(value)}" for key, value in changes)
    return f"Settings: {told}." if told else ""


def _measuring(plan: Plan) -> str:
    told = []
    for what in dict.fromkeys(each.what for each in plan.measurements):
        own = [each for each in plan.measurements if each.what == what and len(each.steps) == 1]
        done = sum(each.done for each in own)
        told += [f"{what} of {_runs(len(own))}" + (f" ({done} done)" if done else "")] if own else []
    told += [f"{each}{' (done)' if each.done else ''}" for each in plan.measurements if len(each.steps) > 1]
    return f"Then measured: {', '.join(told)}." if told else ""


def _totals(plan: Plan, seen: Sequence[Seen], jobs: Mapping[str, int]) -> str:
    """How many runs there are of each state, and what the missing ones take together."""
    missing = plan.to_train
    if not plan.steps:
        return "No run is needed."
    if not missing:
        left = len(plan.to_measure)
        what = f"{left} measurement{'s' * (left != 1)}" if left else "nothing"
        which = "all runs are done" if not plan.blocked else "no other run can be trained"
        return f"{_runs(len(plan.steps))}: {which}; {what} to do."
    counts = {
        "done": len(plan.steps) - len(missing) - len(plan.blocked),
        "to resume": sum(step.state == "resume" for step in missing),
        "to start": sum(step.state == "start" for step in missing),
        "blocked": len(plan.blocked),
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    disk = sum(disk_mib(step.spec) for step in missing if step.state == "start")
    return f"{_runs(len(plan.steps))}: {told}; {_time(missing, seen, jobs)}{disk:,.0f} MiB."


def _time(missing: Sequence[Step], seen: Sequence[Seen], jobs: Mapping[str, int]) -> str:
    """`about 2 min with 2 at once, `; families are trained one after the other. Empty if it is not known."""
    total = 0.0
    for family, count in jobs.items():
        steps = [step for step in missing if FAMILIES[step.spec.dataset] == family]
        each = [seconds_of(step.spec, step.done, seen) for step in steps]
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each):
            return ""
        total += wall_seconds(known, count)
    most = max(jobs[FAMILIES[step.spec.dataset]] for step in missing)
    return f"about {tell_time(total)}{f' with {most} at once' if most > 1 else ''}, "


def _showing(plan: Plan) -> str:
    shown = ", ".join(exhibit.stem for exhibit in plan.exhibits)
    claims = ", ".join(map(str, plan.claims))
    return f"Shown at the end: {shown}; verdicts on claims {claims}." if claims else f"At the end: {shown}."


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
