"""The settings that decide what a run computes: their types and marks, and which values each takes; in
`settings.toml` they stand in the order in which a run's name and `resrepro list` tell them.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal, NamedTuple, Self

from resrepro.errors import UsageError

Value = bool | int | float | str | tuple[int, ...]
Mark = Literal["stated", "derived", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that all recipes share (Sections 3.4 and 4.2; meanings in settings.toml)."""

    iterations: int  # updates
    batch_size: int
    sampling: str
    lr: float
    lr_drops: tuple[int, ...]  # how many updates come before each
    lr_divisor: float
    warmup_lr: float
    warmup_until_err: float
    warmup_window: int
    momentum: float
    momentum_form: str
    weight_decay: float
    decay_bn_bias: bool
    init: str
    bn_group: int
    bn_momentum: float
    bn_eps: float
    option_a_zeros: str
    mean: str
    pixel_divisor: float
    flip: bool
    precision: str
    eval_every: int
    test_view: str

    SAMPLE_CAP: ClassVar[int] = 1000  # most iterations between samples: as the family's figure is drawn

    def shortened_to(self, iterations: int) -> Self:
        """The same schedule in other iterations: drops keep their place; at least 32 samples, if it can."""
        drops = tuple(math.ceil(drop * iterations / self.iterations) for drop in self.lr_drops)
        short = replace(self, iterations=iterations, lr_drops=drops)
        return replace(short, eval_every=short.dense_sampling)

    @property
    def dense_sampling(self) -> int:
        """Iterations between samples as the family's figure has them, 32 at least."""
        return min(self.SAMPLE_CAP, math.ceil(self.iterations / 32))

    @property
    def densely_by_hand(self) -> bool:
        """Whether it is sampled so although samples an epoch apart are the default."""
        return self.eval_every == self.dense_sampling and self.shortened_to(self.iterations).eval_every == 0

    def sampled_every(self, images: int) -> int:
        """Iterations between samples of a run on so many images: `eval_every`, or an epoch at least."""
        return self.eval_every or max(self.dense_sampling, math.ceil(images / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class CifarRecipe(Recipe):
    """The settings of runs on images held in memory (Section 4.2)."""

    split: str
    pad: int
    pad_order: str
    pad_value: float


@dataclass(frozen=True, kw_only=True)
class ImageNetRecipe(Recipe):
    """The settings of runs on a folder of photographs (Section 3.4)."""

    lr_policy: str
    plateau_patience: int
    plateau_gain: float
    image_size: int
    scale: tuple[int, ...]
    colour: str
    colour_std: float
    stride_3x3: bool
    bn_stats: str

    SAMPLE_CAP: ClassVar[int] = 5000  # an epoch of ImageNet

    def shortened_to(self, iterations: int) -> Self:
        """As of any recipe; but samples, which take long, are an epoch apart (0) where they were denser."""
        short = super().shortened_to(iterations)
        return replace(short, eval_every=short.eval_every if short.eval_every == self.SAMPLE_CAP else 0)

    def resized_to(self, image_size: int) -> Self:
        """The same views for another crop: the range of the shorter side keeps its ratio to it."""
        scale = tuple(scaled(side, image_size, self.image_size) for side in self.scale)
        return replace(self, image_size=image_size, scale=scale)


def scaled(side: int, image_size: int, reference: int = 224) -> int:
    """A side that the paper gives for crops of `reference` pixels, for crops of `image_size` pixels."""
    return max(image_size, round(side * image_size / reference))


RECIPES: Mapping[str, type[Recipe]] = {"cifar": CifarRecipe, "imagenet": ImageNetRecipe}
# Which nets, recipe and views a dataset takes: those of Section 4.2, or those of Sections 3.3 and 3.4.
FAMILIES = {"cifar10": "cifar", "digits": "cifar", "imagenet": "imagenet", "folder": "imagenet"}
DATASETS = tuple(FAMILIES)
SETTING_TYPES: Mapping[str, Any] = {f.name: f.type for recipe in RECIPES.values() for f in fields(recipe)}


@cache
def read_toml(name: str, package: str = "resrepro.spec") -> Mapping[str, Any]:
    """A TOML file that lies in one of our packages."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def setting_rules() -> Mapping[str, Mapping[str, Any]]:
    """For each setting what it means and which values it takes, in the order of names."""
    return read_toml("settings.toml")


def ordered_settings(recipe: Recipe | type[Recipe]) -> tuple[str, ...]:
    """The names of a recipe's settings, in the order of settings.toml."""
    own = {field.name for field in fields(recipe)}
    return tuple(key for key in setting_rules() if key in own)


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a record or checkpoint (TypeError if a setting is missing or unknown)."""
    return RECIPES["imagenet" if "image_size" in values else "cifar"](**frozen(dict(values)))


def frozen(value: Any) -> Any:
    """What JSON or TOML holds with tuples for lists, as settings have it."""
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


class Setting(NamedTuple):
    """One setting of a recipe: its value and how it is known."""

    key: str
    value: Value
    mark: Mark
    source: str = ""
    note: str = ""


class NamedRecipe(NamedTuple):
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


def spell(value: Value | None) -> str:
    """A setting's value as one types it after `--set key=`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # exact, so that two values never share a name
    return str(value)


def whole_number(text: str) -> int:
    """`64000`, `64,000`, `64_000`, `64e3` or `64k` -> 64000 (ValueError if it is none)."""
    grouped = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip().lower())
    if not re.fullmatch(r"-?[\d_.]+(e[+]?\d|k)", grouped):
        return int(grouped)
    exact = Decimal(re.sub("k$", "e3", grouped))
    if exact != int(exact):
        raise ValueError
    return int(exact)


def _type_of(key: str) -> Any:
    if key not in SETTING_TYPES:
        raise UsageError(f"no setting {key!r}: `resrepro list EXPERIMENT` lists the settings.")
    return SETTING_TYPES[key]


def parse(key: str, text: str) -> Value:
    """A setting's value from its text, in the type that the recipe declares (UsageError if it is not)."""
    kind = _type_of(key)
    try:
        if kind is bool:
            return {"on": True, "true": True, "off": False, "false": False}[text.strip().lower()]
        if kind is str:
            return text.strip()
        if kind not in (int, float):
            return tuple(whole_number(part) for part in text.split(",") if part.strip())
        return whole_number(text) if kind is int else kind(text)
    except (KeyError, ValueError, ArithmeticError):
        form = {bool: "on or off", int: "a whole number", float: "a number"}.get(kind, "a,b,.. whole numbers")
        raise UsageError(f"{key} takes {form}, not {text!r}.") from None


def check_setting(key: str, value: Value) -> None:
    """Check the type of a value, and that it is one of the choices or in range (UsageError if not)."""
    kind, rule = _type_of(key), setting_rules()[key]
    if kind not in (bool, int, float, str):
        whole = isinstance(value, tuple) and all(type(v) is int and v > 0 for v in value)
        if not whole or list(value) != sorted(value):  # type: ignore[arg-type]
            raise UsageError(f"{key} takes rising whole numbers above 0, not {spell(value)}.")
    elif type(value) is not kind:
        raise UsageError(f"{key} must be of type {kind.__name__}, not {value!r}.")
    if "choices" in rule and value not in rule["choices"]:
        raise UsageError(f"{key} is one of {', '.join(rule['choices'])}, not {value!r}.")
    if kind not in (int, float):
        return
    number: Any = value
    for broken, bound in (
        (not math.isfinite(number), "finite"),
        (number < rule.get("min", -math.inf), f"at least {rule.get('min')}"),
        (number <= rule.get("above", -math.inf), f"above {rule.get('above', 0):g}"),
        (number > rule.get("max", math.inf), f"at most {rule.get('max', 0):g}"),
    ):
        if broken:
            raise UsageError(f"{key} must be {bound}, not {spell(value)}.")
