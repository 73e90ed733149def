"""Changing an experiment's settings, and telling in words how a run departs from the paper."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from resrepro.errors import UsageError
from resrepro.spec.catalogue.entries import (
    Experiment,
    Setting,
    check_setting,
    experiment_for,
    find,
    ordered_settings,
    paper_recipe,
    protocol_for,
    recipes,
)
from resrepro.spec.specs import (
    FAMILIES,
    SETTING_TYPES,
    ImageNetRecipe,
    Recipe,
    Spec,
    Value,
    check_shortcut,
    default_shortcut,
    net_label,
    settings_of,
    spell,
)

STAND_INS = {
    "digits": "dataset digits instead of CIFAR-10",
    "folder": "a folder of other images instead of ImageNet",
}
FOLLOW = {"lr_drops", "eval_every", "scale"}  # follow from `iterations` or `image_size` unless set by hand


def derive(experiment: Experiment, shortcut: str | None = None, **settings: Value | None) -> Spec:
    """The experiment's spec with some settings changed; None leaves a setting as it is.

    `iterations` keeps the schedule's shape (`lr_drops` and `eval_every` follow unless given), and
    `image_size` that of the views (`scale` follows). A shortcut option that has an experiment of its own
    takes that one, and a batch that does not divide into the experiment's BN groups is one group. Returns
    the exact spec if every given value is the experiment's own.

    Raises:
        UsageError: if a setting is unknown, out of range, or does not fit the others.
    """
    if shortcut is not None:
        experiment = experiment_for(experiment.dataset, experiment.depth, experiment.plain, shortcut)
    base = experiment.spec()
    wanted = {key: value for key, value in settings.items() if value is not None}
    for key, value in wanted.items():
        if key in SETTING_TYPES and key not in settings_of(base.recipe):
            raise UsageError(f"{key} is no setting of {experiment.name}: leave it out.")
        if SETTING_TYPES.get(key) is float and type(value) is int:
            wanted[key] = value = float(value)
        check_setting(key, value)
    followed = _followed(base.recipe, wanted)
    recipe = replace(followed, **wanted)  # type: ignore[arg-type]
    if recipe.bn_group and recipe.batch_size % recipe.bn_group and "bn_group" not in wanted:
        recipe = replace(recipe, bn_group=recipe.batch_size)
    own = base.shortcut or default_shortcut(base.dataset, base.depth)
    option = check_shortcut(base.plain, shortcut, own)
    _check_together(recipe, base.dataset)
    changes: list[tuple[str, Value]] = []
    if option != base.shortcut and option is not None:
        changes.append(("shortcut", option))
    for key in ordered_settings(recipe):
        reference = followed if key in FOLLOW else base.recipe
        if getattr(recipe, key) != getattr(reference, key):
            changes.append((key, getattr(recipe, key)))
    return replace(base, shortcut=option, recipe=recipe, changes=tuple(changes))


def _followed(recipe: Recipe, wanted: Mapping[str, Value]) -> Recipe:
    """The recipe in the wanted number of iterations and image size, as far as other settings follow."""
    iterations, image_size = wanted.get("iterations"), wanted.get("image_size")
    if isinstance(iterations, int) and iterations != recipe.iterations:
        recipe = recipe.shortened_to(iterations)
    if isinstance(image_size, int) and image_size != getattr(recipe, "image_size", None):
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
    if isinstance(recipe, ImageNetRecipe):
        if len(recipe.scale) != 2:
            raise UsageError("scale takes the two ends of the range of the shorter side, such as 256,480.")
        if recipe.scale[0] < recipe.image_size:
            raise UsageError(
                f"a shorter side of {recipe.scale[0]} pixels does not hold a crop of {recipe.image_size}: "
                "set a larger scale or a smaller image_size."
            )


FLAGS = {
    "shortcut": "--shortcut",
    "iterations": "--iterations",
    "batch_size": "--batch-size",
    "split": "--split",
    "image_size": "--image-size",
    "bn_group": "--bn-group",
    "bn_stats": "--bn-stats",
    "precision": "--precision",
    "eval_every": "--eval-every",
}


def command_for(spec: Spec, seed: int = 0) -> str:
    """The command line that runs this spec with this seed; a folder of images is told as DIR."""
    words = ["resrepro", "train"]
    if spec.dataset != "cifar10":
        words += ["--dataset", spec.dataset]
    words += ["--depth", str(spec.depth)] + (["--plain"] if spec.plain else [])
    if "shortcut" not in dict(spec.changes) and spec.shortcut not in (
        None,
        default_shortcut(spec.dataset, spec.depth),
    ):
        words += ["--shortcut", str(spec.shortcut)]
    for key, value in spec.changes:
        if key == "stride_3x3" and value:
            words.append("--stride-3x3")
        else:
            words += [FLAGS[key], spell(value)] if key in FLAGS else ["--set", f"{key}={spell(value)}"]
    if FAMILIES[spec.dataset] == "imagenet":
        words += ["--data", "DIR"]
    return " ".join(words + (["--seed", str(seed)] if seed else []))


def in_folder(command: str, runs: str | Path) -> str:
    """A command, told which runs folder it is about, where that is not the default."""
    return command if Path(runs) == Path("runs") else f"{command} --runs {shlex.quote(str(runs))}"


def departures(spec: Spec) -> list[str]:
    """How the spec departs from the paper's recipe, one sentence each; empty for a paper-exact run.

    A changed setting on which the paper is silent is listed too, marked as such.
    """
    experiment = find(spec.experiment)
    named, paper = recipes()[experiment.recipe], paper_recipe(experiment.family)
    told: list[str] = []
    if spec.dataset in STAND_INS:
        told.append(STAND_INS[spec.dataset])
    elif not experiment.exhibits:
        told.append(f"the paper gives no number for {net_label(spec.depth, spec.plain)}")
    own = experiment.spec().shortcut
    if spec.shortcut != own:
        section = "4.2" if experiment.family == "cifar" else "4.1"
        told.append(f"shortcut option {spec.shortcut} instead of {own} (Section {section})")
    settings = {key: getattr(spec.recipe, key) for key in ordered_settings(spec.recipe)}
    followed = _followed(paper.recipe, settings)
    for key, value in settings.items():
        reference = named.settings[key] if key.startswith("warmup") else paper.settings[key]
        expected = getattr(followed, key) if key in FOLLOW else reference.value
        if value != expected:
            told.append(_told(key, value, replace(reference, value=expected)))
    return told


def _told(key: str, value: Value, reference: Setting) -> str:
    if key == "iterations":
        plural = "" if value == 1 else "s"
        return f"{value:,} iteration{plural} instead of {reference.value:,} (the schedule keeps its shape)"
    if key == "split":
        return "trained on 45,000 images and validated on the last 5,000"
    if key == "eval_every":
        return f"sampled every {value} iterations; as densely as the paper's curves: every {reference.value}"
    if key == "image_size":
        return f"crops of {value} pixels instead of {reference.value} (all sizes of the views in proportion)"
    if key == "lr_policy":
        return "rate divided when the error plateaus (Section 3.4), not where Figure 4 drops"
    if key == "bn_stats":
        return "BN statistics at test: plain averages over training batches, as in the authors' README"
    if key == "stride_3x3":
        return "stride on the 3x3 of a bottleneck instead of its first 1x1"
    silent = " (the paper does not say)" if reference.mark == "assumed" else ""
    return f"{key} {spell(value)} instead of {spell(reference.value)}{silent}"
