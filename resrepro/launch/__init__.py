"""What an exhibit of the paper is made of, what of it is missing, and the commands that make it.

A plan is read off the records in a runs folder, each time anew, so that whatever was done before, by whom and
however it ended, it holds what is missing. `local` and `slurm` run the commands.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resrepro.errors import RecordError, UsageError
from resrepro.paper import layouts
from resrepro.records import Run, read_run
from resrepro.records.collection import Collection, read_ensembles
from resrepro.records.reading import LAYER_RESPONSES, RESULT, Ensemble, is_measured
from resrepro.records.storage import has_checkpoint, run_folder
from resrepro.spec import Spec, catalogue, command_for, in_folder
from resrepro.spec.recipe import FAMILIES, Value, read_toml, spell

ALL = "all"
ENSEMBLE_PROTOCOL = "multi_scale"  # of the paper's ensembles (Table 5)
SMALL, PHOTOS = "cifar", "imagenet"  # families of nets, in the order in which they are trained
FACTS: Mapping[str, Mapping[str, Any]] = read_toml("reproduction.toml", "resrepro.paper")
"""By exhibit that can be reproduced, in the paper's order: dataset, experiments, responses, claims."""
State = Literal["done", "resume", "start", "blocked"]


class Exhibit(NamedTuple):
    """A table or figure of the paper, or its stand-in on other images, and what it is made of."""

    name: str  # as `compare` and `plot` know it
    stem: str  # of its files; a stand-in never takes those of the paper's exhibit
    dataset: str | None  # of its runs, None if it needs none
    experiments: tuple[str, ...]  # the catalogue's experiments that it shows
    measures: tuple[str, ...]  # of each trained net: test protocols, or LAYER_RESPONSES
    ensemble: bool  # whether it shows the nets together, as one ensemble
    claims: tuple[int, ...]  # numbers of the paper's claims that it bears on


def choose_exhibits(names: Iterable[str], dataset: str | None = None) -> tuple[Exhibit, ...]:
    """The exhibits of these names, or "all" of the paper, on another dataset if one is given (UsageError if a
    name or the dataset is unknown, or the dataset has no such exhibit).
    """
    if dataset is not None and dataset not in FAMILIES:
        raise UsageError(f"no dataset {dataset!r}: there are {', '.join(FAMILIES)}.")
    chosen: dict[str, Exhibit] = {}
    for name in names:
        if name not in (*FACTS, ALL):
            raise UsageError(f"no exhibit {name!r} to reproduce: there are {', '.join(FACTS)} and {ALL}.")
        of_the_paper = [each for each, facts in FACTS.items() if "extra" not in facts]
        found = [_exhibit(each, dataset) for each in (of_the_paper if name == ALL else [name])]
        if not any(found):
            others = " or ".join(other for other in FAMILIES if _exhibit(name, other))
            raise UsageError(
                f"{name} is an exhibit of {others}, not of {dataset}: give another --dataset, or none."
            )
        chosen |= {exhibit.name: exhibit for exhibit in found if exhibit}
    return tuple(chosen.values())


def _exhibit(name: str, dataset: str | None) -> Exhibit | None:
    """An exhibit on a dataset; None if there is none of its kind."""
    facts = FACTS[name]
    own, claims = facts.get("dataset"), tuple(facts["claims"])
    if not own:
        return Exhibit(name, name, None, (), (), False, claims)
    dataset = dataset or own
    stem = name if dataset == own else f"{name}-{dataset}"
    shown = stem if stem in layouts() else name
    source, exhibit = ("imagenet", name) if dataset == "folder" else (dataset, shown)
    listed = [each.replace(own, source, 1) for each in facts.get("experiments", ())]
    of_it = [each for each in catalogue.experiments().values() if each.dataset == source]
    nets = [each.name for each in of_it if (each.name in listed if listed else exhibit in each.exhibits)]
    if not nets or FAMILIES[dataset] != FAMILIES[own]:
        return None
    experiments = tuple(each.replace("imagenet-", f"{dataset}-") for each in nets)
    layout = layouts().get(shown, {})
    protocols = dict.fromkeys(q["protocol"] for q in layout.get("quantities", ()) if "protocol" in q)
    measures = (*protocols, *((LAYER_RESPONSES,) if facts.get("responses") else ()))
    return Exhibit(shown, stem, dataset, experiments, measures, "members" in layout, claims)


@dataclass(frozen=True)
class Step:
    """One run of a plan."""

    spec: Spec
    seed: int
    folder: Path
    state: State
    done: int = 0  # iterations made, 0 if that is not known
    why: str = ""  # what is in the way of a blocked run, or to be said of the record of one to resume
    run: Run | None = field(default=None, compare=False)  # its record, where there is a whole one

    def __str__(self) -> str:
        return f"{self.spec.name}, seed {self.seed}"

    @property
    def family(self) -> str:
        """SMALL or PHOTOS."""
        return FAMILIES[self.spec.dataset]

    @property
    def to_train(self) -> bool:
        """Whether training it is a part of the work."""
        return self.state in ("resume", "start")


class Measurement(NamedTuple):
    """A test protocol, or LAYER_RESPONSES, to measure of a trained net, or of several as one ensemble."""

    what: str
    steps: tuple[Step, ...]
    done: bool

    def __str__(self) -> str:
        count = len(self.steps)
        return f"{self.what} of {self.steps[0] if count == 1 else f'an ensemble of {count}'}"


class Plan(NamedTuple):
    """What there is and what is missing of some exhibits in a runs folder, as the records say now."""

    runs: Path
    steps: tuple[Step, ...]
    exhibits: tuple[Exhibit, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    @property
    def to_measure(self) -> tuple[Measurement, ...]:
        """What can be measured now, its nets being trained, and was not."""
        missing = (each for each in self.measurements if not each.done)
        return tuple(each for each in missing if all(step.state == "done" for step in each.steps))

    @property
    def claims(self) -> tuple[int, ...]:
        """The claims that the exhibits bear on, in the paper's order."""
        return tuple(sorted({number for exhibit in self.exhibits for number in exhibit.claims}))

    def records(self) -> Collection:
        """The records of the runs of this plan that are whole, and the ensembles of them alone."""
        runs = tuple(step.run for step in self.steps if step.run is not None)
        known = {(run.name, run.seed, run.digest) for run in runs}
        there = read_ensembles(self.runs)[0]
        own = (one for one in there if known >= {(net.name, net.seed, net.digest) for net in one.members})
        return Collection(runs, (), tuple(own))


def make_plan(
    exhibits: Sequence[Exhibit], runs: Path, seeds: Sequence[int] | None = None,
    without: Sequence[str] = (), settings: Mapping[str, Value] | None = None,
) -> Plan:  # fmt: skip
    """What is done and what is missing of some exhibits in a runs folder, which need not exist. `seeds` are
    those of every net (default: the paper's), `settings` of the recipe are changed. UsageError if one does
    not fit, or an experiment to leave out is none of theirs.
    """
    wanted = dict.fromkeys(name for exhibit in exhibits for name in exhibit.experiments)
    left: set[str] = set()
    for name in without:
        named = {catalogue.full_name(name, str(exhibit.dataset)) for exhibit in exhibits} & wanted.keys()
        if not named:
            raise UsageError(f"{name} is no part of what is asked for: that is {', '.join(wanted)}.")
        left |= named
    steps: dict[str, list[Step]] = {}
    for experiment in (catalogue.find(name) for name in wanted if name not in left):
        spec = catalogue.derive(experiment, None, **(settings or {}))
        own = experiment.seeds if seeds is None else seeds
        steps[experiment.name] = [step_of(runs, spec, seed) for seed in own]
    ensembles = read_ensembles(runs)[0]
    measured = dict.fromkeys(one for exhibit in exhibits for one in _measurements(exhibit, steps, ensembles))
    every = tuple(step for group in steps.values() for step in group)
    return Plan(runs, every, tuple(exhibits), tuple(measured))


def step_of(runs: Path, spec: Spec, seed: int) -> Step:
    """A run and its state, as its folder says."""
    folder = run_folder(runs, spec, seed)
    going_on = has_checkpoint(folder)
    if not (folder / RESULT).exists():  # of a run cut short before its first checkpoint nothing is kept
        return Step(spec, seed, folder, "resume" if going_on else "start")
    step = partial(Step, spec, seed, folder)
    fresh = f"`{in_folder(f'{command_for(spec, seed)} --fresh', runs)}`"
    try:
        run = read_run(folder)
    except RecordError as error:
        if going_on:
            return step("resume", why=str(error))
        return step("blocked", why=f"{error} {fresh} sets it aside and starts it anew.")
    done = int(run.result["iteration"])
    if (run.digest, run.seed) != (spec.digest, seed):
        return step("blocked", why=f"{folder} holds another run: name another folder with --runs.")
    if run.status == "diverged":
        return step("blocked", done, f"it diverged at iteration {done:,}; {fresh} starts it anew.", run)
    if run.finished:
        return step("done", done, run=run)
    return step("resume", done, run=run) if going_on else step("start", run=run)


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
        wanted = {(step.spec.name, step.seed, step.spec.digest, step.done) for step in members}
        nets = [one.members for one in ensembles if one.protocol == ENSEMBLE_PROTOCOL]
        done = any(wanted == {(one.name, one.seed, one.digest, one.iteration) for one in own} for own in nets)
        yield Measurement(ENSEMBLE_PROTOCOL, members, done)


def option_words(settings: Mapping[str, Value | None], **options: object) -> list[str]:
    """Options as words of a command: `--set key=value`, flags for True, nothing for None and False."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={spell(value)}")]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def train_words(spec: Spec, seed: int, words: Sequence[str]) -> tuple[str, ...]:
    """The command that trains a run, without `resrepro`; `words` are the options that all runs share."""
    return ("train", spec.experiment, "--seed", str(seed), *words)


def data_folder_of(family: str, folders: Sequence[Path]) -> Path | None:
    """Which of some folders holds the images of a family; photographs lie in train/ and val/ of theirs."""
    photos = [folder for folder in folders if all((folder / part).is_dir() for part in ("train", "val"))]
    if family == SMALL:
        folders = [each for each in folders if each not in photos or any(each.glob("cifar-10-batches-*"))]
    else:
        folders = photos or folders
    return folders[0] if folders else None
