"""The catalogue: recipes, experiments and test protocols as data (TOML), and what differs from them. Every
setting is marked: stated by the paper, derived from it, or assumed by us.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from resrepro.errors import UsageError
from resrepro.spec import Shortcut, Spec, check_depth, check_shortcut, default_shortcut, net_label
from resrepro.spec.recipe import (
    DATASETS,
    FAMILIES,
    SETTING_TYPES,
    ImageNetRecipe,
    NamedRecipe,
    Recipe,
    Setting,
    Value,
    check_setting,
    frozen,
    ordered_settings,
    read_toml,
    spell,
)

PAPER_RECIPES = {"cifar": "cifar-64k", "imagenet": "imagenet-600k"}
STAND_INS = {
    "digits": "dataset digits instead of CIFAR-10",
    "folder": "a folder of other images instead of ImageNet",
}
DEPARTURES = {  # changes with words of their own: {0} the value, {1} the paper's, {2} a plural's s
    "split": "trained on 45,000 images and validated on the last 5,000",
    "lr_policy": "rate divided when the error plateaus (Section 3.4), not where Figure 4 drops",
    "bn_stats": "BN statistics at test: plain averages over training batches, as in the authors' README",
    "stride_3x3": "stride on the 3x3 of a bottleneck instead of its first 1x1",
    "iterations": "{0:,} iteration{2} instead of {1:,} (the schedule keeps its shape)",
    "eval_every": "sampled every {0} iterations; as densely as the paper's curves: every {1}",
    "image_size": "crops of {0} pixels instead of {1} (all sizes of the views in proportion)",
}
FOLLOW = {"lr_drops", "eval_every", "scale"}  # follow from `iterations` or `image_size` unless set by hand


@dataclass(frozen=True)
class Experiment:
    """A net, a recipe, the seeds that the paper ran and the exhibits it belongs to."""

    name: str
    dataset: str
    depth: int
    plain: bool
    recipe: str
    seeds: tuple[int, ...]
    exhibits: tuple[str, ...]
    shortcut: Shortcut | None = None  # by default the paper's for this net

    @property
    def family(self) -> str:
        """`cifar` or `imagenet`: which nets and which kind of recipe."""
        return FAMILIES[self.dataset]

    @property
    def label(self) -> str:
        """`plain-56`, `ResNet-56`, or with an option that is not the depth's own `ResNet-34 (B)`."""
        return self.spec().label

    def spec(self) -> Spec:
        """The paper-exact spec."""
        shortcut = check_shortcut(self.plain, self.shortcut, default_shortcut(self.dataset, self.depth))
        return Spec(self.name, self.dataset, self.depth, self.plain, shortcut, recipes()[self.recipe].recipe)


@cache
def recipes() -> Mapping[str, NamedRecipe]:
    """All recipes by name, bases resolved."""
    named: dict[str, NamedRecipe] = {}
    for name, table in read_toml("recipes.toml").items():
        base = named.get(table.get("base", ""))
        family = base.family if base else table["family"]
        settings = {**(base.settings if base else {}), **_settings(table)}
        named[name] = NamedRecipe(name, table["title"], family, settings)
    return named


def _settings(table: Mapping[str, Any]) -> dict[str, Setting]:
    return {key: Setting(key, **entry) for key, entry in frozen(table["settings"]).items()}


def paper_recipe(family: str) -> NamedRecipe:
    """The paper's recipe for a family of nets, which departures are told against."""
    return recipes()[PAPER_RECIPES[family]]


@cache
def experiments() -> Mapping[str, Experiment]:
    """All experiments of the catalogue by name, in its order."""
    entries = frozen(read_toml("experiments.toml")["experiments"])
    return {name: Experiment(name, **entry) for name, entry in entries.items()}


class Protocol(NamedTuple):
    """A named view of the test images; `crops` is "whole", "center", "ten" or "dense"."""

    name: str
    title: str
    family: str
    crops: str
    settings: Mapping[str, Setting]

    @property
    def sides(self) -> tuple[int, ...]:
        """The shorter sides in pixels, given for crops of 224."""
        return self.settings["sides"].value  # type: ignore[return-value]

    def assumptions(self) -> str:
        """One sentence on the settings that we assume."""
        assumed = [each for each in self.settings.values() if each.mark == "assumed"]
        values = "; ".join(f"{each.key} {spell(each.value)} ({each.note})" for each in assumed)
        return f"The protocol {self.name} assumes: {values}."


@cache
def protocols() -> Mapping[str, Protocol]:
    """All test protocols by name."""
    entries = read_toml("protocols.toml").items()
    return {name: Protocol(name, **entry | {"settings": _settings(entry)}) for name, entry in entries}


def protocol_for(name: str, family: str) -> Protocol:
    """The test protocol of that name (UsageError if this family of nets has none such)."""
    fitting = [protocol.name for protocol in protocols().values() if protocol.family == family]
    if name not in fitting:
        kind = "photographs" if family == "imagenet" else "CIFAR-10 and digits"
        raise UsageError(f"no protocol {name!r} for {kind}: there is {' or '.join(fitting)}.")
    return protocols()[name]


def full_name(name: str, dataset: str = "cifar10") -> str:
    """`resnet56`, `ResNet-56` or `cifar10-resnet-56` -> `cifar10-resnet56`; other names as they are."""
    parts = re.fullmatch(r"(?:([a-z0-9]+)-)?(plain|resnet)[-_ ]?(\d+(?:-[abc])?)", name.lower())
    return f"{parts[1] or dataset}-{parts[2]}{parts[3]}" if parts else name


def find(name: str) -> Experiment:
    """The experiment of that name, also of a net that the catalogue does not list; UsageError if none is."""
    name = full_name(name)
    if name in experiments():
        return experiments()[name]
    parts = re.fullmatch(r"([a-z0-9]+)-(plain|resnet)([0-9]+)(?:-([abc]))?", name)
    if parts and parts[1] in DATASETS and not (parts[2] == "plain" and parts[4]):
        experiment = experiment_for(parts[1], int(parts[3]), parts[2] == "plain", parts[4])
        if experiment.name == name:  # else an option that has no experiment of its own
            return experiment
    # The name of a run begins with its experiment's.
    alike = difflib.get_close_matches(name.partition("+")[0], experiments(), n=1, cutoff=0.8)
    hint = f"did you mean {alike[0]}? " if alike else ""
    raise UsageError(f"no experiment {name!r}: {hint}`resrepro list` shows them all.")


def experiment_for(dataset: str, depth: int, plain: bool = False, shortcut: str | None = None) -> Experiment:
    """The experiment of a dataset and net, from the catalogue or by its default recipe; `folder` takes
    ImageNet's. A shortcut option has one of its own only where the paper trains it as one (ResNet-34 B and C
    on ImageNet); else it is a change to that of the depth. UsageError if the dataset is unknown, the depth
    impossible, or the shortcut not A, B or C.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no dataset {dataset!r}: there are {', '.join(DATASETS[:-1])} and {DATASETS[-1]}.")
    check_depth(depth, FAMILIES[dataset])
    option = check_shortcut(plain, shortcut, default_shortcut(dataset, depth))
    base = f"{dataset}-{'plain' if plain else 'resnet'}{depth}"
    if dataset == "folder":
        twin = experiment_for("imagenet", depth, plain, shortcut)
        return replace(twin, name=twin.name.replace("imagenet", dataset), dataset=dataset)
    for name in (f"{base}-{str(option).lower()}", base):
        if name in experiments():
            return experiments()[name]
    default = read_toml("experiments.toml")["defaults"][dataset]
    return Experiment(base, dataset, depth, plain, default, seeds=(0,), exhibits=())


def derive(experiment: Experiment, shortcut: str | None = None, **settings: Value | None) -> Spec:
    """The experiment's spec with some settings changed; None leaves a setting as it is. `iterations` keeps
    the schedule's shape (`lr_drops` and `eval_every` follow unless given), and `image_size` that of the views
    (`scale` follows). A shortcut option that has an experiment of its own takes that one, and a batch that
    does not divide into the experiment's BN groups is one group. UsageError if a setting is unknown, out of
    range, or does not fit the others.
    """
    if shortcut is not None:
        experiment = experiment_for(experiment.dataset, experiment.depth, experiment.plain, shortcut)
    base = experiment.spec()
    given = {key: value for key, value in settings.items() if value is not None}
    for key, value in given.items():
        if key in SETTING_TYPES and not hasattr(base.recipe, key):
            raise UsageError(f"{key} is no setting of {experiment.name}: leave it out.")
        if SETTING_TYPES.get(key) is float and type(value) is int:
            given[key] = float(value)
        check_setting(key, given[key])
    rescaled = _rescaled(base.recipe, given)
    recipe = replace(rescaled, **given)  # type: ignore[arg-type]
    if recipe.bn_group and recipe.batch_size % recipe.bn_group and "bn_group" not in given:
        recipe = replace(recipe, bn_group=recipe.batch_size)
    _check_together(recipe, base.dataset)
    option = base.shortcut if shortcut is None else check_shortcut(base.plain, shortcut)
    changes: list[tuple[str, Value]] = [("shortcut", option)] if option and option != base.shortcut else []
    for key in ordered_settings(recipe):
        reference = rescaled if key in FOLLOW else base.recipe
        if key == "eval_every" and recipe.densely_by_hand:
            continue  # what earlier versions did by default, under the same names
        if getattr(recipe, key) != getattr(reference, key):
            changes.append((key, getattr(recipe, key)))
    return replace(base, shortcut=option, recipe=recipe, changes=tuple(changes))


def _rescaled(recipe: Recipe, settings: Mapping[str, Value]) -> Recipe:
    """The recipe in those settings' iterations and image size, as far as other settings follow."""
    iterations, image_size = settings.get("iterations"), settings.get("image_size")
    if isinstance(iterations, int) and iterations != recipe.iterations:
        recipe = recipe.shortened_to(iterations)
    if isinstance(image_size, int) and isinstance(recipe, ImageNetRecipe):
        recipe = recipe.resized_to(image_size)
    return recipe


def _check_together(recipe: Recipe, dataset: str) -> None:
    if recipe.momentum_form == "nesterov" and not recipe.momentum:
        raise UsageError("the Nesterov form needs a momentum above 0: set one, or another momentum_form.")
    if recipe.bn_group and recipe.batch_size % recipe.bn_group:
        raise UsageError(
            f"a batch of {recipe.batch_size} does not divide into BN groups of {recipe.bn_group}: "
            "choose a bn_group that divides the batch size."
        )
    if getattr(recipe, "split", "all") == "45k5k" and dataset != "cifar10":
        raise UsageError(f"the 45k/5k split is one of CIFAR-10, not of {dataset}: leave --split out.")
    protocol_for(recipe.test_view, FAMILIES[dataset])
    if isinstance(recipe, ImageNetRecipe) and len(recipe.scale) != 2:
        raise UsageError("scale takes the two ends of the range of the shorter side, such as 256,480.")
    if isinstance(recipe, ImageNetRecipe) and recipe.scale[0] < recipe.image_size:
        raise UsageError(
            f"a shorter side of {recipe.scale[0]} pixels does not hold a crop of {recipe.image_size}: "
            "set a larger scale or a smaller image_size."
        )


def departures(spec: Spec) -> list[str]:
    """How the spec departs from the paper's recipe, one sentence each; empty for a paper-exact run. A changed
    setting on which the paper is silent is listed too, marked as such.
    """
    experiment = find(spec.experiment)
    named, paper = recipes()[experiment.recipe], paper_recipe(experiment.family)
    sentences: list[str] = []
    if spec.dataset in STAND_INS:
        sentences.append(STAND_INS[spec.dataset])
    elif not experiment.exhibits:
        sentences.append(f"the paper gives no number for {net_label(spec.depth, spec.plain)}")
    own = experiment.spec().shortcut
    if spec.shortcut != own:
        section = "4.2" if experiment.family == "cifar" else "4.1"
        sentences.append(f"shortcut option {spec.shortcut} instead of {own} (Section {section})")
    rescaled = _rescaled(paper.recipe, vars(spec.recipe))
    for key in ordered_settings(spec.recipe):
        value = getattr(spec.recipe, key)
        reference = (named if key.startswith("warmup") else paper).settings[key]
        expected = getattr(rescaled, key) if key in FOLLOW else reference.value
        if key == "eval_every" and not (value and expected):
            expected = rescaled.dense_sampling if value else 0
        if value != expected:
            silent = " (the paper does not say)" if reference.mark == "assumed" else ""
            told = DEPARTURES.get(key, f"{key} {spell(value)} instead of {spell(expected)}{silent}")
            sentences.append(told.format(value, expected, "" if value == 1 else "s"))
    return sentences
