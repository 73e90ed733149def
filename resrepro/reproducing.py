"""Doing what a plan lacks, and showing what has come of it: the work behind `resrepro reproduce`.

Whatever fails is kept with its reason, and the rest goes on.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.capacity import choose_jobs, this_machine, threads_each
from resrepro.errors import DataError, ResreproError
from resrepro.exhibits import build_table, draw_figure
from resrepro.goals import RESPONSES, Exhibit
from resrepro.planning import Measurement, Plan, Step, make_plan, set_apart
from resrepro.plotting import Drawing
from resrepro.records import Collection
from resrepro.specs import FAMILIES, Value
from resrepro.tables import Table

if TYPE_CHECKING:
    from resrepro.claims import Verdict
    from resrepro.data import Dataset
    from resrepro.job import Job, Order


@dataclass
class Reproduction:
    """Some exhibits, and the runs that they are to be made of.

    Attributes:
        seeds: of every net; None for those that the paper ran.
        without: experiments that are left out.
        settings: of the recipe, changed.
        data: folder of CIFAR-10 or of photographs.
        failures: what could not be done, with the reason.
    """

    exhibits: tuple[Exhibit, ...]
    runs: Path
    seeds: Sequence[int] | None = None
    without: Sequence[str] = ()
    settings: Mapping[str, Value] = field(default_factory=dict)
    data: Path | None = None
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

    def jobs(self, asked: int | None, steps: Sequence[Step]) -> int:
        """How many of these runs are trained at once.

        Raises:
            UsageError: if the number asked for is none, or under torchrun.
        """
        return choose_jobs(asked, [step.spec for step in steps], self.device, None, this_machine())

    def order(self, jobs: int, *, looks: bool) -> "Order":
        """What is asked of all runs alike."""
        from resrepro.job import Order

        options: dict[str, Any] = {
            **self.settings, "data": self.data, "runs": self.runs, "device": self.device,
            "threads": self.threads, "threads_if_new": threads_each(jobs, this_machine()),
            "arguments": sys.argv[1:],
        }  # fmt: skip
        return Order(options, (None, None, 0, None), looks)

    def train(self, asked: int | None, *, looks: bool) -> None:
        """Train what is missing: nets on small images first, as many at once as there is room for.

        Raises:
            UsageError: if the machine cannot do what is asked.
            Interrupted: after a signal; what was begun has its checkpoint.
        """
        for family in ("cifar", "imagenet"):
            self._load([s for s in self.plan().to_train if FAMILIES[s.spec.dataset] == family == "cifar"])
            steps = [
                step
                for step in self.plan().to_train
                if FAMILIES[step.spec.dataset] == family and str(step) not in self.failures
            ]
            if steps:
                self._train(steps, self.jobs(asked, steps), looks)

    def _load(self, steps: Sequence[Step]) -> None:
        """Read the images of some runs into memory; runs whose images are missing or damaged have failed."""
        from resrepro.jobs import load_shared

        for data in dict.fromkeys(map(data_of, steps)):
            own = [step for step in steps if data_of(step) == data]
            try:
                self._datasets |= load_shared([own[0].spec], self.data)
            except DataError as error:
                self.failures |= dict.fromkeys(map(str, own), str(error))

    def _train(self, steps: Sequence[Step], count: int, looks: bool) -> None:
        from resrepro.cli.many import JobsView, train_watched
        from resrepro.job import Finished
        from resrepro.jobs import Crew

        names = {job_of(step): str(step) for step in steps}
        crew = Crew(list(names), count, self.order(count, looks=looks), self._datasets)
        for job, end in train_watched(crew, JobsView(crew.jobs, onward=False)).items():
            if not isinstance(end, Finished):
                self.failures[names[job]] = end.sentence

    def submit(self, jobs: int, sbatch: Mapping[str, str]) -> dict[str, str]:
        """Hand what is missing to a cluster's queue instead of training it; returns each run's job id.

        Images that fit in memory are looked for first, and so downloaded once, not by every job.

        Raises:
            ResreproError: if there is no such queue, or it refuses.
        """
        from resrepro import cluster

        self._load([step for step in self.plan().to_train if FAMILIES[step.spec.dataset] == "cifar"])
        steps = [step for step in self.plan().to_train if str(step) not in self.failures]
        if not steps:
            return {}
        order = self.order(jobs, looks=False)
        ids = cluster.submit([job_of(step) for step in steps], order, self.runs, **sbatch)
        return dict(zip(map(str, steps), ids, strict=True))

    def measure(self, each: Measurement) -> None:
        """Measure something of trained nets and record it; a failure is kept."""
        try:
            measure(each, self.runs, data=self.data, device=self.device, threads=self.threads)
        except ResreproError as error:
            self.failures[str(each)] = str(error)


def data_of(step: Step) -> tuple[str, str]:
    """Name and split of the images of a run."""
    return step.spec.dataset, getattr(step.spec.recipe, "split", "")


def job_of(step: Step) -> "Job":
    """What a process is told to train."""
    from resrepro.job import Job

    return Job(step.spec.experiment, step.seed, data_of(step))


def measure(each: Measurement, runs: Path, **means: Any) -> None:
    """Measure what a plan names: a test protocol, of one net or of an ensemble, or layer responses.

    Raises:
        ResreproError: if the checkpoint or the images are missing, broken or others.
    """
    folders = [step.folder for step in each.steps]
    if each.what == RESPONSES:
        from resrepro.measuring_responses import measure as measure_responses

        measure_responses(folders[0], **means)
        return
    from resrepro.assessment import evaluate

    evaluate(folders if len(folders) > 1 else folders[0], protocol=each.what, runs=runs, **means)


def show_exhibit(exhibit: Exhibit, found: Collection, figures: Path) -> tuple[Table | None, Drawing | None]:
    """The table of an exhibit, and its figure drawn into a folder; None for what it has not.

    `found` are the records of the plan: those of other runs that lie beside them are not shown. The paper's
    curves stand behind a figure that has any of ours.

    Raises:
        RecordError: if a file cannot be written.
    """
    own = tuple(run for run in found.runs if run.experiment in exhibit.experiments)
    if exhibit.dataset and not any(run.finished for run in own):
        return None, None
    shown = Collection(own, (), found.ensembles)
    table = build_table(exhibit.name, shown) if exhibit.is_table else None
    if not exhibit.is_figure:
        return table, None
    paper = exhibit.dataset in ("cifar10", "imagenet")
    return table, draw_figure(exhibit.name, own, figures, paper=paper)


def verdicts_on(claims: Sequence[int], found: Collection) -> "tuple[Verdict, ...]":
    """The verdicts on some claims of the paper, from these records alone."""
    from resrepro.claims import judge

    return tuple(verdict for verdict in judge(found.runs) if verdict.number in claims)
