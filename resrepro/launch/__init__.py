"""What an exhibit of the paper is made of, what of it is missing, and the commands that make it.

A plan is read off the records in a runs folder, each time anew, so that whatever was done before, by whom and
however it ended, it holds what is missing. `local` and `slurm` run the commands.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resrepro.errors import RecordError, UsageError
from resrepro.launch.local import BASE_BYTES, LAYER_BYTES, Job, RunPool, choose_places, device_kind
from resrepro.machine import gpus
from resrepro.paper import layouts
from resrepro.records import Run, read_run
from resrepro.records.collection import Collection, read_ensembles
from resrepro.records.reading import LAYER_RESPONSES, RESULT, is_measured
from resrepro.records.storage import has_checkpoint, run_folder
from resrepro.spec import Spec, catalogue, command_for, in_folder
from resrepro.spec.recipe import FAMILIES, Value, read_toml, spell
from resrepro.training import LANES_BY_DEFAULT, lane_group

ALL = "all"
ENSEMBLE_PROTOCOL = "multi_scale"  # of the paper's ensembles (Table 5)
SMALL, PHOTOS = "cifar", "imagenet"  # families of nets, in the order in which they are trained
FACTS: Mapping[str, Mapping[str, Any]] = read_toml("reproduction.toml", "resrepro.paper")
"""By exhibit that can be reproduced, in the paper's order: dataset, experiments, responses, claims."""
State = Literal["done", "resume", "start", "blocked"]
Wanted = Sequence[tuple[Spec, int]]  # runs: what to train with which seed


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
    nets = [one.members for one in read_ensembles(runs)[0] if one.protocol == ENSEMBLE_PROTOCOL]
    known = [{(one.name, one.seed, one.digest, one.iteration) for one in own} for own in nets]
    measured = list[Measurement]()
    for exhibit in exhibits:
        groups = [steps[name] for name in exhibit.experiments if name in steps]
        usable = [step for group in groups for step in group if step.state != "blocked"]
        for what in exhibit.measures:
            measured += [Measurement(what, (step,), is_measured(what, step.run)) for step in usable]
        members = tuple(group[0] for group in groups if group and group[0].state != "blocked")
        if exhibit.ensemble and len(members) > 1:
            its = {(step.spec.name, step.seed, step.spec.digest, step.done) for step in members}
            measured.append(Measurement(ENSEMBLE_PROTOCOL, members, its in known))
    every = tuple(step for group in steps.values() for step in group)
    return Plan(runs, every, tuple(exhibits), tuple(dict.fromkeys(measured)))


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


def pool_for(
    wanted: Wanted, words: Sequence[str], jobs: int | None, device: str, engine: str = "auto",
    micro_batch: int | None = None, fast: bool = False,
) -> RunPool:  # fmt: skip
    """The commands of runs that share the options `words`, and where they run (see `choose_places`).
    On a GPU runs that can be lanes of one program (see `training.lane_group`) share commands, with the engine
    lanes, or where `auto` takes it and nothing else is asked for: no more in one than the memory of the
    fullest GPU holds, and as many commands as keep all GPUs busy, larger nets on more.
    """
    specs = [spec for spec, _ in wanted]
    places = choose_places(jobs, specs, device, micro_batch)
    precision = "bf16" if fast or not specs else specs[0].recipe.precision
    unasked = engine == "auto" and jobs is micro_batch is None and precision in LANES_BY_DEFAULT
    if device_kind(device) != "cuda" or find_spec("triton") is None or not (unasked or engine == "lanes"):
        alone = [Job(spec.experiment, seed, train_words(spec, seed, words)) for spec, seed in wanted]
        return RunPool(alone, places)
    places = list(dict.fromkeys(places))
    groups: dict[object, list[tuple[Spec, int]]] = {}
    for spec, seed in wanted:
        groups.setdefault(lane_group(spec) or (spec, seed), []).append((spec, seed))
    free = [size for gpu, size in gpus().items() if gpu in places and size is not None]
    work, each = sum(spec.depth for spec in specs), list[Job]()
    for group in groups.values():
        first = group[0][0]
        lane = LAYER_BYTES * first.depth * first.recipe.batch_size
        commands = math.ceil(len(places) * first.depth * len(group) / work)
        most = min([math.ceil(len(group) / commands), *((size - BASE_BYTES) // lane for size in free)])
        for names, seeds in _shared(group, max(1, most)):
            option = "--seeds" if len(seeds) > 1 else "--seed"  # `--seeds 3` would be three of them
            told = ("train", *names, option, ",".join(map(str, seeds)), *words)
            each += [Job(name, seed, told) for name in names for seed in seeds]
    return RunPool(each, places)


def _shared(group: Wanted, most: int) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Nets and seeds of commands, each of which takes every one of its nets with every one of its seeds."""
    seeds_of: dict[str, tuple[int, ...]] = {}
    for spec, seed in group:
        seeds_of[spec.experiment] = (*seeds_of.get(spec.experiment, ()), seed)
    for seeds in dict.fromkeys(seeds_of.values()):
        names = [name for name, own in seeds_of.items() if own == seeds]
        for some in (names[start : start + most] for start in range(0, len(names), most)):
            step = max(1, most // len(some))
            yield from ((some, seeds[start : start + step]) for start in range(0, len(seeds), step))


def data_folder_of(family: str, folders: Sequence[Path]) -> Path | None:
    """Which of some folders holds the images of a family; photographs lie in train/ and val/ of theirs."""
    photos = [folder for folder in folders if all((folder / part).is_dir() for part in ("train", "val"))]
    if family == SMALL:
        folders = [each for each in folders if each not in photos or any(each.glob("cifar-10-batches-*"))]
    else:
        folders = photos or folders
    return folders[0] if folders else None
