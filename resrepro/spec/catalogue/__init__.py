"""The catalogue: experiments, recipes, protocols and settings as data (TOML), loaded and checked.

Every setting of a recipe is marked: stated by the paper, derived from it, or assumed by us.
Adding an experiment is one entry in `experiments.toml`.
"""

from resrepro.spec.catalogue.deriving import command_for, departures, derive, in_folder
from resrepro.spec.catalogue.entries import (
    Experiment,
    NamedRecipe,
    Protocol,
    Setting,
    check_setting,
    experiment_for,
    experiments,
    find,
    ordered_settings,
    paper_recipe,
    protocol_for,
    protocols,
    recipes,
    setting_rules,
    twin_on_folder,
)

__all__ = [
    "Experiment",
    "NamedRecipe",
    "Protocol",
    "Setting",
    "check_setting",
    "command_for",
    "departures",
    "derive",
    "experiment_for",
    "experiments",
    "find",
    "in_folder",
    "ordered_settings",
    "paper_recipe",
    "protocol_for",
    "protocols",
    "recipes",
    "setting_rules",
    "twin_on_folder",
]
