"""What the catalogue's files hold: settings, recipes, experiments and test protocols, loaded and checked."""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from resrepro.errors import UsageError
from resrepro.spec.specs import (
    DATASETS,
    FAMILIES,
    RECIPES,
    SETTING_TYPES,
    Recipe,
    Shortcut,
    Spec,
    Value,
    check_depth,
    check_shortcut,
    default_shortcut,
    settings_of,
    spell,
)

Mark = Literal["stated", "derived", "assumed"]
PAPER_RECIPES = {"cifar": "cifar-64k", "imagenet": "imagenet-600k"}  # what departures are told against


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
    family: str
    settings: Mapping[str, Setting]

    @property
    def recipe(self) -> Recipe:
        """The bare values."""
        values = {key: setting.value for key, setting in self.settings.items()}
        return RECIPES[self.family](**values)  # type: ignore[arg-type]


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
    shortcut: Shortcut | None = None
    """The shortcut option; by default the paper's for this net."""

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
        recipe = recipes()[self.recipe].recipe
        return Spec(self.name, self.dataset, self.depth, self.plain, shortcut, recipe)


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def setting_rules() -> Mapping[str, Mapping[str, Any]]:
    """For each setting what it means and what values it takes, in the order in which names list them."""
    rules = _toml("settings.toml")
    if rules.keys() != SETTING_TYPES.keys():
        raise AssertionError("settings.toml and the recipes must have the same settings")
    return rules


def ordered_settings(recipe: Recipe | type[Recipe]) -> tuple[str, ...]:
    """The settings of a recipe in the order of settings.toml."""
    own = settings_of(recipe)
    return tuple(key for key in setting_rules() if key in own)


@cache
def recipes() -> Mapping[str, NamedRecipe]:
    """All recipes by name, bases resolved."""
    found: dict[str, NamedRecipe] = {}
    for name, table in _toml("recipes.toml").items():
        base = found.get(table.get("base", ""))
        family = base.family if base else table["family"]
        settings = dict(base.settings) if base else {}
        for key, entry in table["settings"].items():
            settings[key] = _setting(key, entry)
            check_setting(key, settings[key].value)
        keys = ordered_settings(RECIPES[family])
        found[name] = NamedRecipe(name, table["title"], family, {key: settings[key] for key in keys})
    return found


def _setting(key: str, entry: Mapping[str, Any]) -> Setting:
    value = tuple(entry["value"]) if isinstance(entry["value"], list) else entry["value"]
    return Setting(key, value, entry["mark"], entry.get("source", ""), entry.get("note", ""))


def paper_recipe(family: str) -> NamedRecipe:
    """The recipe of the paper for a family of nets, which departures are told against."""
    return recipes()[PAPER_RECIPES[family]]


@cache
def experiments() -> Mapping[str, Experiment]:
    """All experiments of the catalogue by name, in its order."""
    found = {}
    for name, entry in _toml("experiments.toml")["experiments"].items():
        seeds, exhibits = tuple(entry.pop("seeds")), tuple(entry.pop("exhibits"))
        found[name] = Experiment(name, **entry, seeds=seeds, exhibits=exhibits)
    return found


@dataclass(frozen=True)
class Protocol:
    """A named view of the test images.

    `crops` is "whole", "center", "ten" or "dense".
    """

    name: str
    title: str
    family: str
    crops: str
    settings: Mapping[str, Setting]

    @property
    def sides(self) -> tuple[int, ...]:
        """The shorter sides in pixels, given for crops of 224."""
        value = self.settings["sides"].value
        return value if isinstance(value, tuple) else ()

    def assumptions(self) -> str:
        """One sentence on the settings that we assume."""
        assumed = [each for each in self.settings.values() if each.mark == "assumed"]
        told = "; ".join(f"{each.key} {spell(each.value)} ({each.note})" for each in assumed)
        return f"The protocol {self.name} assumes: {told}."


@cache
def protocols() -> Mapping[str, Protocol]:
    """All test protocols by name."""
    found = {}
    for name, entry in _toml("protocols.toml").items():
        settings = {key: _setting(key, told) for key, told in entry.pop("settings").items()}
        found[name] = Protocol(name, **entry, settings=settings)
    return found


def protocol_for(name: str, family: str) -> Protocol:
    """The test protocol of that name.

    Raises:
        UsageError: if there is none, or it is not one of this family of nets.
    """
    fitting = [each.name for each in protocols().values() if each.family == family]
    if name not in fitting:
        kind = "photographs" if family == "imagenet" else "CIFAR-10 and digits"
        raise UsageError(f"no protocol {name!r} for {kind}: there is {' or '.join(fitting)}.")
    return protocols()[name]


def find(name: str) -> Experiment:
    """The experiment of that name, also of a net that the catalogue does not list.

    Raises:
        UsageError: if there is no such experiment or its depth is impossible.
    """
    if name in experiments():
        return experiments()[name]
    parts = re.fullmatch(r"([a-z0-9]+)-(plain|resnet)([0-9]+)(?:-([abc]))?", name)
    unknown = _unknown(name)
    if parts is None or parts[1] not in DATASETS or (parts[2] == "plain" and parts[4]):
        raise unknown
    found = experiment_for(parts[1], int(parts[3]), parts[2] == "plain", parts[4])
    if found.name != name:  # an option that has no experiment of its own
        raise unknown
    return found


def _unknown(name: str) -> UsageError:
    """Says so, with the experiment that may be meant: of a run, what its name begins with."""
    alike = difflib.get_close_matches(name.partition("+")[0], experiments(), n=1, cutoff=0.8)
    hint = f"did you mean {alike[0]}? " if alike else ""
    return UsageError(f"no experiment {name!r}: {hint}`resrepro list` shows them all.")


def twin_on_folder(name: str) -> str:
    """The name of an ImageNet experiment's twin on a folder of other images; other names are their own."""
    return name.replace("imagenet-", "folder-", 1) if name.startswith("imagenet-") else name


def experiment_for(dataset: str, depth: int, plain: bool = False, shortcut: str | None = None) -> Experiment:
    """The experiment of a dataset and net, from the catalogue or by its default recipe.

    A shortcut option has an experiment of its own only where the paper trains it as one (ResNet-34 B and
    C on ImageNet); else it is a change to the experiment of the depth. `folder` takes ImageNet's
    experiments.

    Raises:
        UsageError: if the dataset is unknown, the depth impossible, or the shortcut not A, B or C.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no dataset {dataset!r}: there are {', '.join(DATASETS[:-1])} and {DATASETS[-1]}.")
    check_depth(depth, FAMILIES[dataset])
    option = check_shortcut(plain, shortcut, default_shortcut(dataset, depth))
    base = f"{dataset}-{'plain' if plain else 'resnet'}{depth}"
    if dataset == "folder":
        twin = experiment_for("imagenet", depth, plain, shortcut)
        return replace(twin, name=twin_on_folder(twin.name), dataset=dataset)
    for name in (f"{base}-{str(option).lower()}", base):
        if name in experiments():
            return experiments()[name]
    default = _toml("experiments.toml")["defaults"][dataset]
    return Experiment(base, dataset, depth, plain, default, seeds=(0,), exhibits=())


def check_setting(key: str, value: Value) -> None:
    """Check one value against its rule.

    Raises:
        UsageError: if the value is of the wrong type, not one of the choices or out of range.
    """
    if key not in SETTING_TYPES:
        raise UsageError(f"no setting {key!r}: `resrepro list EXPERIMENT` lists the settings.")
    rule = setting_rules()[key]
    kind = SETTING_TYPES[key]
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise UsageError(f"{key} must be of type {kind.__name__}, not {value!r}.")
    if kind not in (bool, int, float, str) and not isinstance(value, tuple):
        raise UsageError(f"{key} takes rising whole numbers above 0, not {value!r}.")
    if "choices" in rule and value not in rule["choices"]:
        raise UsageError(f"{key} is one of {', '.join(rule['choices'])}, not {value!r}.")
    if isinstance(value, tuple):
        if not all(type(v) is int and v > 0 for v in value) or list(value) != sorted(value):
            raise UsageError(f"{key} takes rising whole numbers above 0, not {spell(value)}.")
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
