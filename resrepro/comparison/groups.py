"""Which runs belong together, and which of them an exhibit or a claim shows.

Runs that are identical but for the seed are a `SeedGroup`: they share a mean, a line, a cell. Groups that
follow one recipe on the same images in the same mode are a `Protocol`: whatever is compared is of one
protocol, and of several RULE chooses. Errors are of the last iteration, in percent.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from resrepro.records import Run
from resrepro.records.reading import Ensemble
from resrepro.spec import IMAGENET_IMAGES, Spec, catalogue, command_for, in_folder
from resrepro.spec.recipe import Value, recipe_from_json, spell

RULE = (
    "the longest schedule under which at least two of the nets stand, then the paper's split, then the most "
    "nets, then the most seeds"
)
# What nets of one protocol may differ in: the warm-up belongs to the net (Section 4.2), and how often we
# sample changes only what is recorded as training error: verdicts on that one keep to one interval.
WARM_UP = ("warmup_lr", "warmup_until_err", "warmup_window")
FREE_SETTINGS = (*WARM_UP, "eval_every")
STAND_INS = {"cifar10": "digits", "imagenet": "folder"}  # other images for the nets of a dataset
DATASET_NAMES = {"cifar10": "CIFAR-10", "imagenet": "ImageNet", "folder": "folder of images"}

SET_NAMES = {"train": "training", "val": "validation", "test": "test"}
FAST = "fast"
OF_TEST = "the test set", "the test images"  # how notices begin that are about the test images alone
AFTERWARDS = "test error measured after training, on all 10,000 test images"
Quantity = Mapping[str, Any]  # a column of layouts.toml: its `set`, and `protocol` and `metric` of `eval`
Net = TypeVar("Net")


@dataclass(frozen=True)
class SeedGroup:
    """Runs that are identical but for the seed, in the order of their seeds."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any of them, for what they share."""
        return self.runs[0]

    def set_of(self, quantity: Quantity) -> str:
        """The set that a quantity is measured on: "held_out" is that of the headline error."""
        return self.first.headline_split if quantity["set"] == "held_out" else str(quantity["set"])

    def measured(self, quantity: Quantity) -> list[tuple[Run, float]]:
        """The runs for which a quantity was measured, with its value in percent."""
        part, protocol = self.set_of(quantity), quantity.get("protocol")
        found = []
        for run in self.runs:
            value = run.evaluated(protocol, quantity["metric"], part) if protocol else run.error(part)
            found += [(run, value)] if value is not None else []
        return found

    def values(self, quantity: Quantity) -> list[float]:
        """The values of `measured` without the runs."""
        return [value for _, value in self.measured(quantity)]

    def lacking(self, quantity: Quantity) -> list[Run]:
        """The runs that `eval` has yet to measure for a quantity."""
        if "protocol" not in quantity and quantity["set"] != "test":
            return []
        return [run for run in self.runs if not SeedGroup((run,)).measured(quantity)]

    @property
    def best_sample(self) -> float | None:
        """The lowest sampled headline error of any run; None of a test set that is not whole."""
        if self.first.headline_split == "test" and not all(run.own_test_is_whole for run in self.runs):
            return None
        return min((run.best for run in self.runs if run.best is not None), default=None)

    @property
    def comparable(self) -> bool:
        """Whether its errors compare with the paper's: not shortened, and of ImageNet's nets on all of it."""
        run, size = self.first, catalogue.paper_recipe("imagenet").settings["image_size"].value
        images = run.env["data"]["images"].get("val"), run.spec["recipe"].get("image_size")
        whole = run.spec["dataset"] == "imagenet" and images == (IMAGENET_IMAGES["val"], size)
        return run.status != "shortened" and (whole or run.family != "imagenet")

    def caveats(self, quantities: Sequence[Quantity], as_trained: bool = False) -> list[str]:
        """Everything that must be said beside some of its quantities: departures, notices, data, mode.
        `as_trained`: of the test error that was measured while training, whole or not.
        """
        sets = {self.set_of(quantity) for quantity in quantities}
        sentences = [text for run in self.runs for text in run.result["departures"]]
        tested = any(run.error("test") is not None for run in self.runs)
        for run in self.runs:
            later = "test" in sets and tested and not as_trained and not run.own_test_is_whole
            silent = later or "test" not in sets
            sentences += [text for text in run.result["notices"] if not (silent and text.startswith(OF_TEST))]
            if later and run.test_afterwards:
                sentences += [*run.test_afterwards.data.notices, AFTERWARDS]
        if self.first.env["mode"] != "default":
            sentences.append(f"trained in mode {self.first.env['mode']}")
        for quantity in quantities:
            if "protocol" in quantity:
                read = [run.evaluation(quantity["protocol"], self.set_of(quantity)) for run in self.runs]
                told = [text for one in read if one for text in one.data.notices]
                sentences += not_said_yet(told, sentences)
        return list(dict.fromkeys(sentences))


def not_said_yet(notices: Iterable[str], said: Iterable[str]) -> list[str]:
    """The notices without those on how many classes and images there are, if one of the sentences said it."""
    known = any(" classes" in sentence for sentence in said)
    return [notice for notice in notices if not (known and " classes" in notice)]


def data_told(record: Run | Ensemble | None) -> str:
    """What photographs a record is of, by its notices: `tiny-imagenet-10 (10 classes, images of 64x64)`."""
    data = record.env["data"] if isinstance(record, Run) else record.data._asdict() if record else {}
    side = record.spec["recipe"].get("image_size") if isinstance(record, Run) else None
    named = filter(None, (re.match("the folder (.+) has ", notice) for notice in data.get("notices", ())))
    facts = [f"{data['classes']:,} classes"] if data.get("classes") else []
    facts += [f"images of {side}x{side}"] if side else []
    name = next((found[1] for found in named), "a folder of images")
    return name + (f" ({', '.join(facts)})" if facts else "")


def seed_name(run: Run) -> str:
    """How a run is told: `cifar10-plain56 seed 0`."""
    return f"{run.name} seed {run.seed}"


def unfinished(runs: Iterable[Run]) -> list[str]:
    """The unfinished and diverged among runs: `cifar10-plain56 seed 0 (running at iteration 1,000)`."""
    left = (run for run in runs if not run.finished)
    return [f"{seed_name(run)} ({run.status} at iteration {run.result['iteration']:,})" for run in left]


def seed_groups(runs: Iterable[Run]) -> list[SeedGroup]:
    """Runs by what they share but for the seed, in a fixed order."""
    ordered = sorted(runs, key=lambda run: (run.seed_group, run.seed))
    return [SeedGroup(tuple(own)) for _, own in itertools.groupby(ordered, lambda run: run.seed_group)]


def iterations_of(run: Run) -> int:
    """The iterations that a run was to make."""
    return int(run.spec["recipe"]["iterations"])


def spec_of(run: Run) -> Spec:
    """The specification of a run; TypeError or ValueError if this version does not know its settings."""
    recipe = recipe_from_json(run.spec["recipe"])
    return catalogue.derive(catalogue.find(run.experiment), **vars(recipe))


def on_stand_in(experiment: str) -> str:
    """The experiment of the same net on other images: `digits-resnet20` of `cifar10-resnet20`."""
    dataset, _, net = experiment.partition("-")
    return f"{STAND_INS.get(dataset, dataset)}-{net}"


def with_seeds(command: str, seeds: int) -> str:
    """A training command for seeds 0, 1, and so on."""
    return command + (f" --seeds 0-{seeds - 1}" if seeds > 1 else "")


@dataclass(frozen=True)
class Protocol(Generic[Net]):
    """The runs of one protocol, by net; a net without finished runs is missing."""

    groups: dict[Net, SeedGroup] = field(default_factory=dict)  # those of fewest changes and most seeds
    doubles: dict[Net, list[SeedGroup]] = field(default_factory=dict)  # others: sampled more often, say
    left_out: dict[Net, list[Run]] = field(default_factory=dict)  # not finished, of `groups` and missing nets
    free: tuple[str, ...] = FREE_SETTINGS  # the settings in which its nets may differ

    @property
    def first(self) -> Run:
        """Any of its runs, for what they share."""
        return next(iter(self.groups.values())).first

    @property
    def runs(self) -> list[Run]:
        """All runs of its groups."""
        return [run for group in self.groups.values() for run in group.runs]

    @property
    def own_data(self) -> bool:
        """Whether the images are of the paper's dataset."""
        return self.first.spec["dataset"] in STAND_INS

    @property
    def held_out(self) -> str:
        """The set of its held-out error: the whole test set where all runs have it, else the headline's."""
        whole = all(run.error("test") is not None for run in self.runs)
        return "test" if whole else self.first.headline_split

    def rank(self, enough: int) -> tuple[Any, ...]:
        """Its place among the protocols of an exhibit; what it says of the paper plays no part. Images of the
        paper's own dataset come first, then RULE; ties go to the paper's own protocol and fewest changes.
        """
        run, nets = self.first, len(self.groups)
        own = catalogue.find(run.experiment).spec().recipe
        split = run.spec["recipe"].get("split") == getattr(own, "split", None)
        exact = all(run.paper_exact for run in self.runs)
        return (
            self.own_data, min(nets, enough), iterations_of(run), split, nets, len(self.runs),
            exact, run.env["mode"] == "default", -run.name.count("+"), self.name,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """`CIFAR-10, 2,000 of 64,000 iterations, split 45k5k, fast`: data, length and what it changes."""
        run, mode, ours = self.first, self.first.env["mode"], iterations_of(self.first)
        whole = catalogue.find(run.experiment).spec().recipe.iterations
        length = f"{ours:,}{'' if ours == whole else f' of {whole:,}'} iterations"
        hidden = {"iterations", *self.free, *(("precision",) if mode == FAST else ())}
        changes = [f"{key} {spell(value)}" for key, value in spec_of(run).changes if key not in hidden]
        data = DATASET_NAMES.get(run.spec["dataset"], run.spec["dataset"])
        return ", ".join([data, length, *changes, *([] if mode == "default" else [mode])])

    @property
    def size(self) -> str:
        """`2 nets, 4 runs`."""
        nets, runs = len(self.groups), len(self.runs)
        return f"{nets} net{'' if nets == 1 else 's'}, {runs} run{'' if runs == 1 else 's'}"

    def command(self, experiment: str, settings: Mapping[str, Value], seeds: int) -> str:
        """The command that trains so many seeds of a net under this protocol; finished ones are kept."""
        spec, fast = self.spec_for(experiment, settings), ""
        others = tuple((key, value) for key, value in spec.changes if key != "precision")
        if self.first.env["mode"] == FAST and others != spec.changes:
            spec, fast = replace(spec, changes=others), " --fast"
        return in_folder(with_seeds(command_for(spec) + fast, seeds), self.first.runs_folder)

    def spec_for(self, experiment: str, settings: Mapping[str, Value]) -> Spec:
        """What a run of a net under this protocol trains."""
        own = spec_of(self.first)
        changes = {key: value for key, value in own.changes if key not in ("shortcut", *self.free)}
        wanted = catalogue.find(experiment if self.own_data else on_stand_in(experiment))
        return catalogue.derive(wanted, None, **{**changes, **settings})


def protocols_of(
    members: Mapping[Net, Iterable[Run]], enough: int = 2, free: tuple[str, ...] = FREE_SETTINGS
) -> list[Protocol[Net]]:
    """The protocols under which there are finished runs of some nets, the one that is shown first. `members`
    are the runs of each net, finished or not, of which those that this version does not know are passed over;
    more nets than `enough` do not outweigh a longer schedule; in the settings `free` runs may differ.
    """
    shared: dict[str, dict[Net, list[Run]]] = {}
    for net, runs in members.items():
        for run in runs:
            try:
                spec_of(run)
            except (TypeError, ValueError):
                continue
            recipe = {key: value for key, value in run.spec["recipe"].items() if key not in free}
            alike = json.dumps([recipe, run.data_key, run.env["mode"], run.spec["dataset"]], sort_keys=True)
            shared.setdefault(alike, {}).setdefault(net, []).append(run)
    found: list[Protocol[Net]] = []
    for nets in shared.values():
        protocol: Protocol[Net] = Protocol(free=free)
        for net, own in nets.items():
            waiting = [run for group in seed_groups(own) for run in group.runs if not run.finished]
            if finished := seed_groups(run for run in own if run.finished):
                shown = max(finished, key=lambda group: (-group.first.name.count("+"), len(group.runs)))
                protocol.groups[net] = shown
                protocol.doubles[net] = [group for group in finished if group is not shown]
                waiting = [run for run in waiting if run.seed_group == shown.first.seed_group]
            if waiting:
                protocol.left_out[net] = waiting
        if protocol.groups:
            found.append(protocol)
    return sorted(found, key=lambda one: one.rank(enough), reverse=True)
