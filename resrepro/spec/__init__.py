"""What a run is: a net, a dataset and a recipe, as a frozen `Spec` with a name and a digest. What differs
from the catalogue's experiment is part of the name: no run is filed under another's.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from resrepro.errors import UsageError
from resrepro.spec.recipe import FAMILIES, Recipe, Value, spell

Shortcut = Literal["A", "B", "C"]

MAX_NAME = 120  # characters of a run folder; file systems stop at 255
IMAGENET_IMAGES = {"train": 1_281_167, "val": 50_000}  # Section 4.1: 1.28 million and 50k
IMAGENET_CLASSES = 1000
IMAGENET_DEPTHS = (18, 34, 50, 101, 152)  # Table 1
BOTTLENECK_FROM = 50  # layers: from here on blocks of three convolutions, Figure 5 right
OPTIONS = {  # settings with an option of `train` of their own; the others take `--set`
    "shortcut", "iterations", "batch_size", "split", "image_size", "bn_group", "bn_stats", "precision",
    "eval_every",
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """A net on a dataset under a recipe: all that two runs must share to differ by their seed only."""

    experiment: str
    dataset: str
    depth: int
    plain: bool
    shortcut: Shortcut | None
    recipe: Recipe
    changes: tuple[tuple[str, Value], ...] = ()  # from the catalogue's experiment, in the order of settings

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

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; `digest` is computed from exactly this."""
        values: dict[str, Any] = asdict(self)
        del values["changes"]
        recipe = {key: list(v) if isinstance(v, tuple) else v for key, v in values["recipe"].items()}
        return values | {"recipe": recipe}

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


def check_depth(depth: int, family: str = "cifar") -> int:
    """The depth, if it is 6n+2 with n >= 1 (Section 4.2) or one of Table 1; UsageError if not."""
    if family == "imagenet":
        if depth in IMAGENET_DEPTHS:
            return depth
        raise UsageError(f"an ImageNet net has 18, 34, 50, 101 or 152 layers (Table 1), not {depth}.")
    if depth >= 8 and depth % 6 == 2:
        return depth
    below = (depth - 2) // 6 * 6 + 2
    near = f"{below} or {below + 6}" if below >= 8 else "8"
    other = " (ImageNet's nets: --dataset imagenet)" if depth in IMAGENET_DEPTHS else ""
    raise UsageError(
        f"a CIFAR net has 6n+2 layers, and {depth} is not of that form: the nearest is {near}{other}."
    )


def check_shortcut(plain: bool, shortcut: str | None, default: Shortcut = "A") -> Shortcut | None:
    """A net's shortcut option, the default unless another is named (UsageError if it has no such option)."""
    if plain and shortcut is not None:
        raise UsageError(
            f"a plain net has no shortcuts, so --plain and --shortcut {shortcut} exclude each other: "
            "drop one of the two."
        )
    option = default if shortcut is None else shortcut.upper()
    if option not in get_args(Shortcut):
        raise UsageError(f"no shortcut option {shortcut!r}: the paper has A, B and C.")
    return None if plain else option  # type: ignore[return-value]


def default_shortcut(dataset: str, depth: int) -> Shortcut:
    """The paper's option: B for the bottleneck nets (Section 4.1), else A (Table 2, Section 4.2)."""
    return "B" if FAMILIES[dataset] == "imagenet" and depth >= BOTTLENECK_FROM else "A"


def command_for(spec: Spec, seed: int = 0) -> str:
    """The command line that runs this spec with this seed; a folder of images is told as DIR."""
    words = ["resrepro train"] + ([] if spec.dataset == "cifar10" else [f"--dataset {spec.dataset}"])
    words.append(f"--depth {spec.depth}" + (" --plain" if spec.plain else ""))
    usual = None if spec.plain else default_shortcut(spec.dataset, spec.depth)
    if spec.shortcut != usual and "shortcut" not in dict(spec.changes):
        words.append(f"--shortcut {spec.shortcut}")
    for key, value in spec.changes:
        option = f"--{key.replace('_', '-')} {spell(value)}"
        if key == "stride_3x3" and value:
            option = "--stride-3x3"
        elif key not in OPTIONS:
            option = f"--set {key}={spell(value)}"
        words.append(option)
    if spec.recipe.densely_by_hand:
        words.append(f"--eval-every {spec.recipe.eval_every}")
    if FAMILIES[spec.dataset] == "imagenet":
        words.append("--data DIR")
    return " ".join(words + ([f"--seed {seed}"] if seed else []))


def in_folder(command: str, runs: str | Path) -> str:
    """A command, told which runs folder it is about, where that is not the default."""
    return command if Path(runs) == Path("runs") else f"{command} --runs {shlex.quote(str(runs))}"
