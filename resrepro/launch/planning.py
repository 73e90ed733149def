"""What reproducing an exhibit takes: which runs are done, which go on, which start, what is measured after.

A plan is read off the records in a runs folder, each time anew, so that whatever was done before, by whom
and however it ended, it holds what is missing. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from resrepro.comparison.ensembling import why_left_out
from resrepro.errors import RecordError, UsageError
from resrepro.launch.goals import Exhibit
from resrepro.records import Run, read_run
from resrepro.records.collection import Collection, read_ensembles
from resrepro.records.evaluations import Ensemble, is_measured
from resrepro.records.reading import RESULT
from resrepro.records.write import has_checkpoint, run_folder
from resrepro.spec import catalogue
from resrepro.spec.experiment import Spec, command_for, in_folder
from resrepro.spec.recipe import Value

ENSEMBLE_PROTOCOL = "multi_scale"  # of the paper's ensembles (Table 5)
State = Literal["done", "resume", "start", "blocked"]


@dataclass(frozen=True)
class Step:
    """One run of a plan.

    Attributes:
        done: iterations made, 0 if that is not known.
        why: of a blocked run what is in its way, of one to resume what is to be said of its record.
        run: its record, where there is a whole one.
    """

    spec: Spec
    seed: int
    folder: Path
    state: State
    done: int = 0
    why: str = ""
    run: Run | None = None

    def __str__(self) -> str:
        return f"{self.spec.name}, seed {self.seed}"

    @property
    def to_train(self) -> bool:
        """Whether training it is a part of the work."""
        return self.state in ("resume", "start")


@dataclass(frozen=True)
class Measurement:
    """Something to measure of a trained net, or of several together.

    Attributes:
        what: a test protocol, or RESPONSES.
        steps: one run, or the members of an ensemble.
        done: whether it was recorded already.
    """

    what: str
    steps: tuple[Step, ...]
    done: bool

    @property
    def ready(self) -> bool:
        """Whether its nets are trained."""
        return all(step.state == "done" for step in self.steps)

    def __str__(self) -> str:
        if len(self.steps) > 1:
            return f"{self.what} of an ensemble of {len(self.steps)}"
        return f"{self.what} of {self.steps[0]}"


@dataclass(frozen=True)
class Plan:
    """What there is and what is missing of some exhibits in a runs folder, as the records say now."""

    runs: Path
    exhibits: tuple[Exhibit, ...]
    steps: tuple[Step, ...]
    measurements: tuple[Measurement, ...]

    @property
    def to_train(self) -> tuple[Step, ...]:
        """The runs that training would begin or go on with."""
        return tuple(step for step in self.steps if step.to_train)

    @property
    def to_measure(self) -> tuple[Measurement, ...]:
        """What can be measured now and was not."""
        return tuple(each for each in self.measurements if each.ready and not each.done)

    @property
    def blocked(self) -> tuple[Step, ...]:
        """The runs that nothing can be done about."""
        return tuple(step for step in self.steps if step.state == "blocked")

    @property
    def claims(self) -> tuple[int, ...]:
        """The claims that the exhibits bear on, in the paper's order."""
        return tuple(sorted({number for exhibit in self.exhibits for number in exhibit.claims}))

    def records(self) -> Collection:
        """The records of the runs of this plan that are whole, and the ensembles of them alone."""
        runs = tuple(step.run for step in self.steps if step.run is not None)
        known = {(run.name, run.seed, run.digest) for run in runs}
        ensembles = [
            one
            for one in read_ensembles(self.runs)[0]
            if known >= {(member.name, member.seed, member.digest) for member in one.members}
        ]
        return Collection(runs, (), tuple(ensembles))


def make_plan(
    exhibits: Sequence[Exhibit],
    runs: Path,
    *,
    seeds: Sequence[int] | None = None,
    without: Sequence[str] = (),
    settings: Mapping[str, Value] | None = None,
) -> Plan:
    """What is done and what is missing of some exhibits in a runs folder.

    Args:
        exhibits: from `choose_exhibits`.
        runs: the runs folder; it need not exist.
        seeds: of every net; by default those that the paper ran.
        without: experiments that are left out.
        settings: settings of the recipe to change.

    Raises:
        UsageError: if a setting does not fit, or an experiment to leave out is none of theirs.
    """
    wanted = dict.fromkeys(name for exhibit in exhibits for name in exhibit.experiments)
    if strange := [name for name in without if name not in wanted]:
        raise UsageError(f"{strange[0]} is no part of what is asked for: that is {', '.join(wanted)}.")
    steps: dict[str, list[Step]] = {}
    for name in wanted:
        if name not in without:
            experiment = catalogue.find(name)
            spec = catalogue.derive(experiment, None, **(settings or {}))
            own = experiment.seeds if seeds is None else seeds
            steps[name] = [_step(run_folder(runs, spec, seed), spec, seed) for seed in own]
    ensembles = read_ensembles(runs)[0] if any(exhibit.ensemble for exhibit in exhibits) else ()
    measurements: dict[tuple[str, tuple[Path, ...]], Measurement] = {}
    for exhibit in exhibits:
        for each in _measurements(exhibit, steps, ensembles):
            measurements.setdefault((each.what, tuple(step.folder for step in each.steps)), each)
    every = tuple(step for group in steps.values() for step in group)
    return Plan(runs, tuple(exhibits), every, tuple(measurements.values()))


def _step(folder: Path, spec: Spec, seed: int) -> Step:
    """The state of a run, as its folder says."""
    going_on = has_checkpoint(folder)
    if not (folder / RESULT).exists():  # of a run cut short before its first checkpoint nothing is kept
        return Step(spec, seed, folder, "resume" if going_on else "start")
    command = in_folder(f"{command_for(spec, seed)} --fresh", folder.parent.parent)
    try:
        run = read_run(folder)
    except RecordError as error:
        state: State = "resume" if going_on else "blocked"
        way_out = "" if going_on else f" `{command}` sets it aside and starts it anew."
        return Step(spec, seed, folder, state, why=f"{error}{way_out}")
    done = int(run.result["iteration"])
    if (run.digest, run.seed) != (spec.digest, seed):
        why = f"{folder} holds a run of another specification: name another folder with --runs."
        return Step(spec, seed, folder, "blocked", why=why)
    if run.status == "diverged":
        why = f"it diverged at iteration {done:,}; `{command}` starts it anew."
        return Step(spec, seed, folder, "blocked", done, why, run)
    if run.finished:
        return Step(spec, seed, folder, "done", done, run=run)
    return Step(spec, seed, folder, "resume" if going_on else "start", done if going_on else 0, run=run)


def _measurements(
    exhibit: Exhibit, steps: Mapping[str, Sequence[Step]], ensembles: Sequence[Ensemble]
) -> Iterable[Measurement]:
    """What an exhibit needs to have measured of its runs."""
    groups = [steps[name] for name in exhibit.experiments if name in steps]
    for what in exhibit.measures:
        for step in (step for group in groups for step in group if step.state != "blocked"):
            yield Measurement(what, (step,), is_measured(what, step.run))
    members = tuple(group[0] for group in groups if group and group[0].state != "blocked")
    if exhibit.ensemble and len(members) > 1:
        done = any(_is_of(one, members) for one in ensembles if one.protocol == ENSEMBLE_PROTOCOL)
        yield Measurement(ENSEMBLE_PROTOCOL, members, done)


def _is_of(ensemble: Ensemble, members: Sequence[Step]) -> bool:
    """Whether an ensemble is of these runs as they are now, and belongs in a table."""
    wanted = {(step.spec.name, step.seed, step.spec.digest, step.done) for step in members}
    found = {(each.name, each.seed, each.digest, each.iteration) for each in ensemble.members}
    runs = [step.run for step in members if step.run is not None]
    return found == wanted and not why_left_out(ensemble, runs)


def set_apart(plan: Plan, dataset: str, checksums: Mapping[str, str]) -> Plan:
    """The plan in which finished runs on other images than those at hand are blocked.

    Of those that are not finished training itself refuses to mix images.
    """

    def looked_at(step: Step) -> Step:
        if step.state != "done" or step.run is None or step.spec.dataset != dataset:
            return step
        if step.run.env["data"]["sha256"] == dict(checksums):
            return step
        why = (
            f"{step.folder} was trained on other images than those at hand (checksum differs): keep the two "
            "apart with --runs."
        )
        return replace(step, state="blocked", why=why, run=None)

    steps = tuple(map(looked_at, plan.steps))
    apart = {step.folder for step in steps if step.state == "blocked"}
    measurements = tuple(
        each for each in plan.measurements if not apart & {step.folder for step in each.steps}
    )
    return replace(plan, steps=steps, measurements=measurements)
