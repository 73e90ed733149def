"""What stands behind the numbers: the runs, their departures, the protocol with its marks, the machines."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resrepro.comparison.groups import iterations_of
from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.experiment import net_label
from resrepro.spec.recipe import NamedRecipe, Setting, setting_rules, spell

DATASETS = {
    "cifar10": "CIFAR-10",
    "digits": "scikit-learn's digits",
    "imagenet": "ImageNet",
    "folder": "a folder of other images",
}
MARKS = ("stated", "derived", "assumed")


def datasets_told(runs: Sequence[Run]) -> list[str]:
    """Of finished runs, a sentence for each dataset and length: how many runs, nets and iterations."""

    def kind(run: Run) -> tuple[str, int, str]:
        return str(run.spec["dataset"]), iterations_of(run), run.status

    groups = itertools.groupby(sorted(runs, key=kind), kind)
    return [_group_told(list(group)) for _, group in groups]


def _group_told(runs: Sequence[Run]) -> str:
    """`CIFAR-10: 5 runs of 4 nets, shortened to 2,000 of 64,000 iterations.`"""
    first = runs[0]
    nets = Counter(net_label(run.spec["depth"], run.spec["plain"], run.spec["shortcut"]) for run in runs)
    ours, paper = iterations_of(first), catalogue.paper_recipe(first.family).recipe.iterations
    length = f"{ours:,} iterations"
    if first.status == "shortened" and ours < paper:
        length = f"shortened to {ours:,} of {paper:,} iterations"
    dataset = DATASETS.get(str(first.spec["dataset"]), str(first.spec["dataset"]))
    return f"{dataset}: {_count(len(runs), 'run')} of {_count(len(nets), 'net')}, {length}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def departures(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
    """Every departure from the paper and every notice, with the runs that it is true of; widest first."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for sentence in dict.fromkeys([*run.result["departures"], *run.result["notices"], *_mode(run)]):
            found.setdefault(sentence, []).append(f"{run.name}, seed {run.seed}")
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))


def _mode(run: Run) -> list[str]:
    mode = str(run.env["mode"])
    return [] if mode == "default" else [f"trained in mode {mode}"]


@dataclass(frozen=True)
class Surroundings:
    """Where some runs were made: facts (such as the processor) by name, and how many runs."""

    facts: Mapping[str, str]
    runs: int


def surroundings(runs: Iterable[Run]) -> list[Surroundings]:
    """Every combination of machine and versions, that of most runs first."""
    counts = Counter(tuple(_facts(run.env).items()) for run in runs)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Surroundings(dict(facts), number) for facts, number in ordered]


def _facts(env: Mapping[str, Any]) -> dict[str, str]:
    versions = env.get("versions")
    told = versions if isinstance(versions, dict) else {}
    machine = {
        "system": env.get("system"),
        "processor": env.get("cpu"),
        "cores": env.get("cores"),
        "device": env.get("gpu") or env.get("device"),
        "threads per run": env.get("threads"),
        "commit": str(env.get("commit") or "")[:12] + (", modified" if env.get("modified") else ""),
    }
    return {name: str(value) for name, value in {**machine, **told}.items() if value not in (None, "")}


@dataclass(frozen=True)
class Known:
    """A table of settings, each stated, derived or assumed; `counts` says how many of each."""

    title: str
    name: str
    settings: tuple[tuple[Setting, str, str], ...]
    """Each with its value in words and what it is."""
    counts: tuple[tuple[str, int], ...]


def protocols() -> list[Known]:
    """The recipes (variants with what they change only) and the test protocols."""
    known = []
    whole: dict[str, NamedRecipe] = {}
    for recipe in catalogue.recipes().values():
        base = whole.setdefault(recipe.family, recipe)
        changed = [
            setting
            for key, setting in recipe.settings.items()
            if recipe is base or setting != base.settings[key]
        ]
        title = recipe.title if recipe is base else f"{recipe.title}: what differs from {base.name}"
        known.append(_known(title, recipe.name, changed))
    known += [
        _known(f"Test protocol: {view.title}", view.name, view.settings.values())
        for view in catalogue.protocols().values()
    ]
    return known


def _known(title: str, name: str, settings: Iterable[Setting]) -> Known:
    rules = setting_rules()
    rows = tuple(
        (setting, spell(setting.value), str(rules.get(setting.key, {}).get("what", "")))
        for setting in settings
    )
    marks: Counter[str] = Counter(setting.mark for setting, _, _ in rows)
    return Known(title, name, rows, tuple((mark, marks[mark]) for mark in MARKS if marks[mark]))
