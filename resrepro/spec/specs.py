"""What a run is: a net, a dataset and a recipe, as frozen values with a name and a digest.

A `Spec` that differs from its catalogue experiment in any setting carries that difference in its
name, so that a run with other settings is never filed under the paper-exact one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from resrepro.errors import UsageError

Shortcut = Literal["A", "B", "C"]
Value = bool | int | float | str | tuple[int, ...]

MAX_NAME = 120  # characters of a run folder; file systems stop at 255


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that all recipes share (paper Sections 3.4 and 4.2; meanings in settings.toml).

    Iterations count updates from 0; `lr_drops` are the numbers of updates made at the rate before.
    """

    iterations: int
    batch_size: int
    sampling: str
    lr: float
    lr_drops: tuple[int, ...]
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

    SAMPLE_CAP: ClassVar[int] = 1000
    """Most iterations between samples: as the paper's figure of this family is drawn."""

    def shortened_to(self, iterations: int) -> Self:
        """The same schedule in another number of iterations: drops keep their place in the run.

        Samples fall every min(SAMPLE_CAP, ceil(iterations / 32)) iterations.
        """
        drops = tuple(math.ceil(drop * iterations / self.iterations) for drop in self.lr_drops)
        every = min(self.SAMPLE_CAP, math.ceil(iterations / 32))
        return replace(self, iterations=iterations, lr_drops=drops, eval_every=every)

    def resized_to(self, image_size: int) -> Self:
        """The same views for images of another size; CIFAR images have only their own."""
        return self


@dataclass(frozen=True, kw_only=True)
class CifarRecipe(Recipe):
    """Every setting that decides what is computed on images held in memory (Section 4.2)."""

    split: str
    pad: int
    pad_order: str
    pad_value: float


@dataclass(frozen=True, kw_only=True)
class ImageNetRecipe(Recipe):
    """Every setting that decides what is computed on a folder of photographs (Section 3.4)."""

    lr_policy: str
    plateau_patience: int
    plateau_gain: float
    image_size: int
    scale: tuple[int, ...]
    colour: str
    colour_std: float
    stride_3x3: bool
    bn_stats: str

    SAMPLE_CAP: ClassVar[int] = 5000

    def resized_to(self, image_size: int) -> Self:
        """The same views for another crop: the range of the shorter side keeps its ratio to it."""
        scale = tuple(scaled(side, image_size, self.image_size) for side in self.scale)
        return replace(self, image_size=image_size, scale=scale)


def scaled(side: int, image_size: int, reference: int = 224) -> int:
    """A side that the paper gives for crops of `reference` pixels, for crops of `image_size` pixels."""
    return max(image_size, round(side * image_size / reference))


RECIPES: Mapping[str, type[Recipe]] = {"cifar": CifarRecipe, "imagenet": ImageNetRecipe}
FAMILIES = {"cifar10": "cifar", "digits": "cifar", "imagenet": "imagenet", "folder": "imagenet"}
"""Which nets, recipe and views a dataset takes: those of Section 4.2, or those of Sections 3.3 and 3.4."""
DATASETS = tuple(FAMILIES)
SETTING_TYPES: Mapping[str, Any] = {
    key: kind
    for recipe in RECIPES.values()
    for key, kind in get_type_hints(recipe).items()
    if get_origin(kind) is not ClassVar
}


def settings_of(recipe: Recipe | type[Recipe]) -> tuple[str, ...]:
    """The names of a recipe's settings."""
    return tuple(field.name for field in fields(recipe))


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a record or checkpoint (TypeError if a setting is missing or unknown)."""
    typed: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return RECIPES["imagenet" if "image_size" in typed else "cifar"](**typed)


@dataclass(frozen=True)
class Spec:
    """A net on a dataset under a recipe: all that two runs must share to differ by their seed only."""

    experiment: str
    dataset: str
    depth: int
    plain: bool
    shortcut: Shortcut | None
    recipe: Recipe
    changes: tuple[tuple[str, Value], ...] = ()
    """Settings (and shortcut) that differ from the catalogue experiment, in recipe order."""

    @property
    def name(self) -> str:
        """The folder name: the experiment, then every change, e.g. `cifar10-plain56+iterations=2000`."""
        name = "+".join([self.experiment, *(f"{key}={spell(value)}" for key, value in self.changes)])
        if len(name) <= MAX_NAME:
            return name
        return f"{name[: MAX_NAME - 13]}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    @property
    def label(self) -> str:
        """The net's name, with its shortcut option where that is not the paper's own for the depth."""
        usual = self.shortcut == default_shortcut(self.dataset, self.depth)
        return net_label(self.depth, self.plain, None if usual else self.shortcut)

    @property
    def exact(self) -> bool:
        """Whether this is the catalogue experiment with nothing changed."""
        return not self.changes

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; `digest` is computed from exactly this."""
        return {
            "experiment": self.experiment,
            "dataset": self.dataset,
            "depth": self.depth,
            "plain": self.plain,
            "shortcut": self.shortcut,
            "recipe": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.recipe).items()},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the spec: equal for runs that differ by their seed only."""
        return digest_of(self.to_json())


def digest_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a spec in its JSON form, independent of key order."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def net_label(depth: int, plain: bool, shortcut: str | None = None) -> str:
    """The field's name of a net: `plain-56`, `ResNet-56`, `ResNet-56 (B)`."""
    if plain:
        return f"plain-{depth}"
    return f"ResNet-{depth}" + (f" ({shortcut})" if shortcut in ("B", "C") else "")


IMAGENET_IMAGES = {"train": 1_281_167, "val": 50_000}  # Section 4.1: 1.28 million and 50k
IMAGENET_CLASSES = 1000
IMAGENET_DEPTHS = (18, 34, 50, 101, 152)  # Table 1
BOTTLENECK_FROM = 50  # layers: from here on blocks of three convolutions, Figure 5 right


def check_depth(depth: int, family: str = "cifar") -> int:
    """The depth, if the paper's family of nets has such a net.

    Raises:
        UsageError: (a ValueError) if a CIFAR depth is not 6n+2 with n >= 1 (the nearest are named), or
            an ImageNet depth is not in Table 1.
    """
    if family == "imagenet":
        if depth not in IMAGENET_DEPTHS:
            listed = ", ".join(map(str, IMAGENET_DEPTHS[:-1]))
            raise UsageError(
                f"an ImageNet net has {listed} or {IMAGENET_DEPTHS[-1]} layers (Table 1), not {depth}."
            )
        return depth
    if depth >= 8 and (depth - 2) % 6 == 0:
        return depth
    below = (depth - 2) // 6 * 6 + 2
    near = " or ".join(str(d) for d in (below, below + 6) if d >= 8) or "8"
    other = " (ImageNet's nets: --dataset imagenet)" if depth in IMAGENET_DEPTHS else ""
    raise UsageError(
        f"a CIFAR net has 6n+2 layers, and {depth} is not of that form: the nearest is {near}{other}."
    )


def check_shortcut(plain: bool, shortcut: str | None, default: Shortcut = "A") -> Shortcut | None:
    """The shortcut option of a net: None for plain, the default unless another is named.

    Raises:
        UsageError: if a plain net is given a shortcut, or the option is not A, B or C.
    """
    if plain:
        if shortcut is not None:
            raise UsageError(
                f"a plain net has no shortcuts, so --plain and --shortcut {shortcut} exclude each other: "
                "drop one of the two."
            )
        return None
    option = default if shortcut is None else shortcut.upper()
    if option not in get_args(Shortcut):
        raise UsageError(f"no shortcut option {shortcut!r}: the paper has A, B and C.")
    return option  # type: ignore[return-value]


def default_shortcut(dataset: str, depth: int) -> Shortcut:
    """The paper's option: B for the bottleneck nets (Section 4.1), else A (Table 2, Section 4.2)."""
    return "B" if FAMILIES[dataset] == "imagenet" and depth >= BOTTLENECK_FROM else "A"


def spell(value: Value | None) -> str:
    """A setting's value as one types it after `--set key=`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # exact, so that two values never share a name
    return str(value)


def parse(key: str, text: str) -> Value:
    """A setting's value from its text, in the type that the recipe declares.

    Raises:
        UsageError: if the key is unknown or the text is not of the type.
    """
    if key not in SETTING_TYPES:
        raise UsageError(f"no setting {key!r}: `resrepro list EXPERIMENT` lists the settings.")
    kind = SETTING_TYPES[key]
    try:
        if kind is bool:
            return {"on": True, "true": True, "off": False, "false": False}[text.strip().lower()]
        if kind is int:
            return int(text.replace("_", ""))
        if kind is float:
            return float(text)
        if kind is str:
            return text.strip()
        return tuple(int(part) for part in text.split(",") if part.strip())
    except (KeyError, ValueError):
        wanted = {bool: "on or off", int: "a whole number", float: "a number"}.get(
            kind, "a,b,.. whole numbers"
        )
        raise UsageError(f"{key} takes {wanted}, not {text!r}.") from None
