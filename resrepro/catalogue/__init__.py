"""The catalogue: experiments, recipes and settings as data (TOML), loaded and checked.

Every setting of a recipe is marked: stated by the paper, derived from it, or assumed by us.
Adding an experiment is one entry in `experiments.toml`.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from resrepro.errors import UsageError
from resrepro.specs import (
    SETTING_TYPES,
    SETTINGS,
    Recipe,
    Spec,
    Value,
    check_depth,
    check_shortcut,
    net_label,
    spell,
)

Mark = Literal["stated", "derived", "assumed"]
DATASETS = ("cifar10", "digits")
PAPER_RECIPE = "cifar-64k"  # what departures are told against
FOLLOW_ITERATIONS = {"lr_drops", "eval_every"}  # follow from `iterations` unless set by hand


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe: its value and how it is known."""

    key: str
    value: Value
    mark: Mark
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe of the catalogue with the mark of each setting."""

    name: str
    title: str
    settings: Mapping[str, Setting]

    @property
    def recipe(self) -> Recipe:
        """The bare values."""
        return Recipe(**{key: setting.value for key, setting in self.settings.items()})  # type: ignore[arg-type]


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

    @property
    def label(self) -> str:
        """`plain-56` or `ResNet-56`."""
        return net_label(self.depth, self.plain)

    def spec(self) -> Spec:
        """The paper-exact spec (option A for residual nets)."""
        shortcut = check_shortcut(self.plain, None)
        recipe = recipes()[self.recipe].recipe
        return Spec(self.name, self.dataset, self.depth, self.plain, shortcut, recipe)


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def setting_rules() -> Mapping[str, Mapping[str, Any]]:
    """For each setting what it means and what values it takes."""
    rules = _toml("settings.toml")
    if tuple(rules) != SETTINGS:
        raise AssertionError("settings.toml and Recipe must list the same settings in the same order")
    return rules


@cache
def recipes() -> Mapping[str, NamedRecipe]:
    """All recipes by name, bases resolved."""
    found: dict[str, NamedRecipe] = {}
    for name, table in _toml("recipes.toml").items():
        base = dict(found[table["base"]].settings) if "base" in table else {}
        for key, entry in table["settings"].items():
            value = tuple(entry["value"]) if isinstance(entry["value"], list) else entry["value"]
            base[key] = Setting(key, value, entry["mark"], entry.get("source", ""), entry.get("note", ""))
            check_setting(key, value)
        found[name] = NamedRecipe(name, table["title"], {key: base[key] for key in SETTINGS})
    return found


@cache
def experiments() -> Mapping[str, Experiment]:
    """All experiments of the catalogue by name, in its order."""
    found = {}
    for name, entry in _toml("experiments.toml")["experiments"].items():
        seeds, exhibits = tuple(entry.pop("seeds")), tuple(entry.pop("exhibits"))
        found[name] = Experiment(name, **entry, seeds=seeds, exhibits=exhibits)
    return found


def find(name: str) -> Experiment:
    """The experiment of that name, also of a depth that the catalogue does not list.

    Raises:
        UsageError: if there is no such experiment or its depth is impossible.
    """
    if name in experiments():
        return experiments()[name]
    dataset, _, net = name.partition("-")
    for kind, plain in (("plain", True), ("resnet", False)):
        if dataset in DATASETS and net.startswith(kind) and net[len(kind) :].isdecimal():
            return experiment_for(dataset, int(net[len(kind) :]), plain)
    raise UsageError(f"no experiment {name!r}: `resrepro list` shows them all.")


def experiment_for(dataset: str, depth: int, plain: bool = False) -> Experiment:
    """The experiment of a dataset, depth and kind, from the catalogue or by its default recipe.

    Raises:
        UsageError: if the dataset is unknown or the depth is not 6n+2.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no dataset {dataset!r}: there are {' and '.join(DATASETS)}.")
    check_depth(depth)
    name = f"{dataset}-{'plain' if plain else 'resnet'}{depth}"
    if name in experiments():
        return experiments()[name]
    default = _toml("experiments.toml")["defaults"][dataset]
    return Experiment(name, dataset, depth, plain, default, seeds=(0,), exhibits=())


def check_setting(key: str, value: Value) -> None:
    """Check one value against its rule.

    Raises:
        UsageError: if the value is of the wrong type, not one of the choices or out of range.
    """
    if key not in SETTING_TYPES:
        raise UsageError(f"no setting {key!r}: `resrepro protocol cifar10-resnet20` lists the settings.")
    rule = setting_rules()[key]
    kind = SETTING_TYPES[key]
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise UsageError(f"{key} must be of type {kind.__name__}, not {value!r}.")
    if kind not in (bool, int, float, str) and not isinstance(value, tuple):
        raise UsageError(f"{key} takes rising iterations above 0, not {value!r}.")
    if "choices" in rule and value not in rule["choices"]:
        raise UsageError(f"{key} is one of {', '.join(rule['choices'])}, not {value!r}.")
    if isinstance(value, tuple):
        if not all(type(v) is int and v > 0 for v in value) or list(value) != sorted(value):
            raise UsageError(f"{key} takes rising iterations above 0, not {spell(value)}.")
    elif isinstance(value, int | float):
        bounds = [
            (not math.isfinite(value), "finite"),
            ("min" in rule and value < rule.get("min", 0), f"at least {rule.get('min')}"),
            ("above" in rule and value <= rule.get("above", 0), f"above {rule.get('above', 0):g}"),
            ("max" in rule and value > rule.get("max", 0), f"at most {rule.get('max', 0):g}"),
        ]
        for broken, need in bounds:
            if broken:
                raise UsageError(f"{key} must be {need}, not {spell(value)}.")


def derive(experiment: Experiment, shortcut: str | None = None, **settings: Value | None) -> Spec:
    """The experiment's spec with some settings changed; None leaves a setting as it is.

    `iterations` keeps the schedule's shape; `lr_drops` and `eval_every` follow unless given.
    Returns the exact spec if every given value is the experiment's own.

    Raises:
        UsageError: if a setting is unknown, out of range, or does not fit the others.
    """
    base = experiment.spec()
    wanted = {key: value for key, value in settings.items() if value is not None}
    for key, value in wanted.items():
        if SETTING_TYPES.get(key) is float and type(value) is int:
            wanted[key] = value = float(value)
        check_setting(key, value)
    iterations = wanted.get("iterations", base.recipe.iterations)
    assert isinstance(iterations, int)
    same_length = iterations == base.recipe.iterations
    scaled = base.recipe if same_length else base.recipe.shortened_to(iterations)
    recipe = replace(scaled, **wanted)  # type: ignore[arg-type]
    option = check_shortcut(base.plain, shortcut)
    _check_together(recipe, base.dataset)
    changes: list[tuple[str, Value]] = []
    if option != base.shortcut and option is not None:
        changes.append(("shortcut", option))
    for key in SETTINGS:
        reference = base.recipe if key not in FOLLOW_ITERATIONS else scaled
        if getattr(recipe, key) != getattr(reference, key):
            changes.append((key, getattr(recipe, key)))
    return replace(base, shortcut=option, recipe=recipe, changes=tuple(changes))


def _check_together(recipe: Recipe, dataset: str) -> None:
    if recipe.momentum_form == "nesterov" and not recipe.momentum:
        raise UsageError("the Nesterov form needs a momentum above 0: set one, or another momentum_form.")
    if recipe.bn_group and recipe.batch_size % recipe.bn_group:
        raise UsageError(
            f"a batch of {recipe.batch_size} does not divide into BN groups of {recipe.bn_group}: "
            "choose a bn_group that divides the batch size."
        )
    if recipe.split == "45k5k" and dataset != "cifar10":
        raise UsageError(f"the 45k/5k split is one of CIFAR-10, not of {dataset}: leave --split out.")


def command_for(spec: Spec, seed: int = 0) -> str:
    """The command line that runs this spec with this seed (data and runs folders left out)."""
    words = ["resrepro", "train"]
    if spec.dataset != "cifar10":
        words += ["--dataset", spec.dataset]
    words += ["--depth", str(spec.depth)] + (["--plain"] if spec.plain else [])
    flags = {
        "shortcut": "--shortcut",
        "iterations": "--iterations",
        "batch_size": "--batch-size",
        "split": "--split",
        "bn_group": "--bn-group",
        "precision": "--precision",
        "eval_every": "--eval-every",
    }
    for key, value in spec.changes:
        words += [flags[key], spell(value)] if key in flags else ["--set", f"{key}={spell(value)}"]
    return " ".join(words + (["--seed", str(seed)] if seed else []))


def departures(spec: Spec) -> list[str]:
    """How the spec departs from the paper's recipe, one sentence each; empty for a paper-exact run.

    A changed setting on which the paper is silent is listed too, marked as such.
    """
    named = recipes()[find(spec.experiment).recipe]
    paper = recipes()[PAPER_RECIPE]
    told: list[str] = []
    if spec.dataset != "cifar10":
        told.append(f"dataset {spec.dataset} instead of CIFAR-10")
    elif not find(spec.experiment).exhibits:
        told.append(f"the paper has no {net_label(spec.depth, spec.plain)}")
    if spec.shortcut in ("B", "C"):
        told.append(f"shortcut option {spec.shortcut} instead of A (Section 4.2)")
    scaled = paper.recipe.shortened_to(spec.recipe.iterations)
    for key in SETTINGS:
        value = getattr(spec.recipe, key)
        reference = named.settings[key] if key.startswith("warmup") else paper.settings[key]
        expected = getattr(scaled, key) if key in FOLLOW_ITERATIONS else reference.value
        if value != expected:
            told.append(_told(key, value, replace(reference, value=expected)))
    return told


def _told(key: str, value: Value, reference: Setting) -> str:
    if key == "iterations":
        return f"{value:,} iterations instead of {reference.value:,} (the schedule keeps its shape)"
    if key == "split":
        return "trained on 45,000 images and validated on the last 5,000"
    if key == "eval_every":
        return f"sampled every {value} iterations instead of {reference.value}"
    silent = " (the paper does not say)" if reference.mark == "assumed" else ""
    return f"{key} {spell(value)} instead of {spell(reference.value)}{silent}"
