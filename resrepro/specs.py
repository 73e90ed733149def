"""What a run is: a net, a dataset and a recipe, as frozen values with a name and a digest.

A `Spec` that differs from its catalogue experiment in any setting carries that difference in its
name, so that a run with other settings is never filed under the paper-exact one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from resrepro.errors import UsageError

Shortcut = Literal["A", "B", "C"]
Value = bool | int | float | str | tuple[int, ...]

MAX_NAME = 120  # characters of a run folder; file systems stop at 255


@dataclass(frozen=True)
class Recipe:
    """Every setting that decides what is computed (paper Section 4.2; meanings in settings.toml).

    Iterations count updates from 0; `lr_drops` are the numbers of updates made at the rate before.
    """

    iterations: int
    batch_size: int
    sampling: str
    split: str
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
    pad: int
    pad_order: str
    pad_value: float
    flip: bool
    precision: str
    eval_every: int
    test_view: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of a record or checkpoint (TypeError if a setting is missing or unknown)."""
        typed: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**typed)

    def shortened_to(self, iterations: int) -> "Recipe":
        """The same schedule in another number of iterations: drops keep their place in the run.

        Samples fall every min(1000, ceil(iterations / 32)) iterations.
        """
        drops = tuple(math.ceil(drop * iterations / self.iterations) for drop in self.lr_drops)
        every = min(1000, math.ceil(iterations / 32))
        return replace(self, iterations=iterations, lr_drops=drops, eval_every=every)


SETTINGS = tuple(field.name for field in fields(Recipe))
SETTING_TYPES: Mapping[str, Any] = get_type_hints(Recipe)


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


def check_depth(depth: int) -> int:
    """The n of a CIFAR net of 6n+2 layers.

    Raises:
        UsageError: (a ValueError) if `depth` is not 6n+2 with n >= 1; names the nearest that are.
    """
    if depth >= 8 and (depth - 2) % 6 == 0:
        return (depth - 2) // 6
    below = (depth - 2) // 6 * 6 + 2
    near = " or ".join(str(d) for d in (below, below + 6) if d >= 8) or "8"
    raise UsageError(f"a CIFAR net has 6n+2 layers, and {depth} is not of that form: the nearest is {near}.")


def check_shortcut(plain: bool, shortcut: str | None) -> Shortcut | None:
    """The shortcut option of a net: None for plain, A unless another is named (Section 4.2).

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
    option = "A" if shortcut is None else shortcut.upper()
    if option not in get_args(Shortcut):
        raise UsageError(f"no shortcut option {shortcut!r}: the paper has A, B and C.")
    return option  # type: ignore[return-value]


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
        raise UsageError(f"no setting {key!r}: `resrepro protocol cifar10-resnet20` lists the settings.")
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
