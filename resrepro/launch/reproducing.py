"""Doing what a plan lacks, and showing what has come of it: the work behind `resrepro reproduce`.

Whatever fails is kept with its reason, and the rest goes on.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.comparison.tables import Table
from resrepro.errors import DataError, Interrupted, sentence_on
from resrepro.figures.exhibits import Drawing, build_table, draw_figure
from resrepro.launch.capacity import choose_jobs, this_machine, threads_each
from resrepro.launch.goals import Exhibit
from resrepro.launch.planning import Measurement, Plan, Step, make_plan, set_apart
from resrepro.records.collection import Collection
from resrepro.records.evaluations import LAYER_RESPONSES, OTHER_IMAGES, is_measured
from resrepro.spec.recipe import FAMILIES, Value

if TYPE_CHECKING:
    from resrepro.claims.judging import Verdict
    from resrepro.data import Dataset
    from resrepro.launch.job import Job, Order
    from resrepro.launch.queueing import Ticket


SMALL = "cifar"
TRAINED = (SMALL, "imagenet")  # the families, in the order in which their nets are trained


@dataclass
class Reproduction:
    """Some exhibits, and the runs that they are to be made of.

    Attributes:
        seeds: of every net; None for those that the paper ran.
        without: experiments that are left out.
        settings: of the recipe, changed.
        data: folders of CIFAR-10 and of photographs.
        failures: what could not be done, with the reason.
    """

    exhibits: tuple[Exhibit, ...]
    runs: Path
    seeds: Sequence[int] | None = None
    without: Sequence[str] = ()
    settings: Mapping[str, Value] = field(default_factory=dict)
    data: Sequence[Path] = ()
    device: str = "auto"
    threads: int | None = None
    failures: dict[str, str] = field(default_factory=dict)
    _datasets: "dict[tuple[str, str], Dataset]" = field(default_factory=dict)

    def plan(self) -> Plan:
        """What there is and what is missing, as the records say now."""
        plan = make_plan(
            self.exhibits, self.runs, seeds=self.seeds, without=self.without, settings=self.settings
        )
        for (name, _), dataset in self._datasets.items():
            plan = set_apart(plan, name, dataset.checksums)
        return plan

    def jobs(self, asked: int | None, plan: Plan) -> dict[str, int]:
        """How many of the missing runs are trained at once, of nets on small images and on photographs.

        Raises:
            UsageError: if the number asked for is none, or under torchrun.
        """
        found = {}
        for family in TRAINED:
            specs = [step.spec for step in of_family(plan.to_train, family)]
            found[family] = choose_jobs(asked, specs, self.device, None, this_machine())
        return found

    def order(self, jobs: int, family: str, *, looks: bool) -> "Order":
        """What is asked of all runs of a family alike."""
        from resrepro.launch.job import Order

        options: dict[str, Any] = {
            **self.settings, "data": folder_of(family, self.data), "runs": self.runs, "device": self.device,
            "threads": self.threads, "threads_if_new": threads_each(jobs, this_machine()),
            "arguments": sys.argv[1:],
        }  # fmt: skip
        return Order(options, (None, 0), looks)

    def train(self, asked: int | None, *, looks: bool) -> None:
        """Train what is missing: nets on small images first, as many at once as there is room for.

        Raises:
            UsageError: if the machine cannot do what is asked.
            Interrupted: after a signal; what was begun has its checkpoint.
        """
        for family in TRAINED:
            self._load(self.plan().to_train)
            count = self.jobs(asked, self.plan())[family]
            missing = of_family(self.plan().to_train, family)
            if steps := [step for step in missing if str(step) not in self.failures]:
                self._train(steps, self.order(count, family, looks=looks), count)

    def _load(self, steps: Iterable[Step]) -> None:
        """Read the small images of runs into memory; runs whose images are missing or damaged have failed."""
        from resrepro.launch.jobs import load_shared

        steps = of_family(steps, SMALL)
        for data in dict.fromkeys(map(data_of, steps)):
            own = [step for step in steps if data_of(step) == data]
            try:
                self._datasets |= load_shared([own[0].spec], folder_of(SMALL, self.data))
            except DataError as error:
                self.failures |= dict.fromkeys(map(str, own), str(error))

    def _train(self, steps: Sequence[Step], order: "Order", count: int) -> None:
        from resrepro.cli.many import JobsView, train_watched
        from resrepro.launch.job import Finished
        from resrepro.launch.jobs import Crew

        names = {job_of(step): str(step) for step in steps}
        crew = Crew(list(names), count, order, self._datasets)
        for job, end in train_watched(crew, JobsView(crew.jobs, onward=False)).items():
            if not isinstance(end, Finished):
                self.failures[names[job]] = end.sentence

    def submit(self, asked: int | None, sbatch: Mapping[str, str]) -> "list[Ticket]":
        """Hand what is missing to a cluster's queue instead of doing it; returns each run's job.

        A run is trained and then measured by one job; an ensemble is not submitted. Images that fit in memory
        are looked for first, and so downloaded once, not by every job.

        Args:
            asked: jobs that may run at once.
            sbatch: see `resrepro.launch.sbatch.sbatch_parameters`.

        Raises:
            ResreproError: if there is no such queue, or it refuses.
        """
        from resrepro.launch import cluster

        self._load(step for step, _ in _lacking(self.plan()))
        tickets: list[Ticket] = []
        for family in TRAINED:
            measures = {
                job_of(step): what
                for step, what in _lacking(self.plan())
                if FAMILIES[step.spec.dataset] == family and str(step) not in self.failures
            }
            if measures:
                order = self.order(1, family, looks=False)
                tickets += cluster.submit(
                    list(measures), order, self.runs, sbatch, measures=measures, at_once=asked
                )
        return tickets

    def measure(self, each: Measurement) -> None:
        """Measure something of trained nets and record it; what failed, or gave no number of use, is kept."""
        data = folder_of(FAMILIES[each.steps[0].spec.dataset], self.data)
        try:
            measure(each, self.runs, data=data, device=self.device, threads=self.threads)
        except Interrupted:
            raise
        except Exception as error:  # also what nobody expected: the others are measured all the same
            self.failures[str(each)] = sentence_on(error)
            return
        if any((other.what, other.steps) == (each.what, each.steps) for other in self.plan().to_measure):
            self.failures[str(each)] = OTHER_IMAGES


def of_family(steps: Iterable[Step], family: str) -> list[Step]:
    """The runs of nets on small images, or on photographs."""
    return [step for step in steps if FAMILIES[step.spec.dataset] == family]


def folder_of(family: str, given: Sequence[Path]) -> Path | None:
    """Which of the folders given holds the images of a family; None if none does, and none must.

    Photographs lie in train/ and val/. What is not theirs is taken for CIFAR-10's, and so is one folder that
    holds both; where there is nothing else, photographs are looked for in whatever was given.
    """
    photos = [folder for folder in given if all((folder / part).is_dir() for part in ("train", "val"))]
    if family == SMALL:
        given = [each for each in given if each not in photos or any(each.glob("cifar-10-batches-*"))]
    else:
        given = photos or given
    return given[0] if given else None


def data_of(step: Step) -> tuple[str, str]:
    """Name and split of the images of a run."""
    return job_of(step).data


def job_of(step: Step) -> "Job":
    """What a process is told to train."""
    from resrepro.launch.job import Job

    return Job.of(step.spec, step.seed)


def _lacking(plan: Plan) -> list[tuple[Step, tuple[str, ...]]]:
    """The runs of which something is to be done, and what is to be measured of each once it is trained."""
    wanted: dict[Path, list[str]] = {}
    for each in plan.measurements:
        if len(each.steps) == 1 and not each.done:
            wanted.setdefault(each.steps[0].folder, []).append(each.what)
    return [
        (step, tuple(wanted.get(step.folder, ())))
        for step in plan.steps
        if step.to_train or (step.state == "done" and step.folder in wanted)
    ]


def measure(each: Measurement, runs: Path, **means: Any) -> None:
    """Measure what a plan names: a test protocol, of one net or of an ensemble, or layer responses.

    Raises:
        ResreproError: if the checkpoint or the images are missing, broken or others.
    """
    from resrepro.evaluation import measure_nets

    measure_nets(each.what, [step.folder for step in each.steps], runs, **means)


def show_exhibit(exhibit: Exhibit, found: Collection, figures: Path) -> tuple[Table | None, Drawing | None]:
    """The table of an exhibit, and its figure drawn into a folder; None for what it has not.

    `found` are the records of the plan: those of other runs that lie beside them are not shown. The paper's
    curves stand behind a figure that has any of ours.

    Raises:
        RecordError: if a file cannot be written.
    """
    own = tuple(run for run in found.runs if run.experiment in exhibit.experiments)
    responses = LAYER_RESPONSES in exhibit.measures
    if exhibit.dataset and not any(
        is_measured(LAYER_RESPONSES, run) if responses else run.finished for run in own
    ):
        return None, None
    shown = Collection(own, (), found.ensembles)
    table = None
    if exhibit.is_table:
        table = replace(build_table(exhibit.name, shown), name=exhibit.stem)
    if not exhibit.is_figure:
        return table, None
    paper = exhibit.dataset in ("cifar10", "imagenet")
    return table, draw_figure(exhibit.name, own, figures, paper=paper, stem=exhibit.stem)


def verdicts_on(claims: Sequence[int], found: Collection) -> "tuple[Verdict, ...]":
    """The verdicts on some claims of the paper, from these records alone."""
    from resrepro.claims.judging import judge

    return tuple(verdict for verdict in judge(found.runs) if verdict.number in claims)
