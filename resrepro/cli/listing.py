"""`resrepro list` and `resrepro protocol`: what can be run, and how we know that it is so."""

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrepro.cli import app
from resrepro.spec import catalogue
from resrepro.spec.specs import spell

STYLES = {"stated": "green", "derived": "cyan", "assumed": "yellow"}


@app.command("list", rich_help_panel="Read")
def list_experiments() -> None:
    """Show the experiments and which table or figure each belongs to."""
    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("experiment", "net", "recipe", "seeds", "exhibits"):
        grid.add_column(column, no_wrap=column != "exhibits")
    dataset = None
    for experiment in catalogue.experiments().values():
        if dataset not in (None, experiment.dataset):
            grid.add_section()
        dataset = experiment.dataset
        seeds = experiment.seeds
        span = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        shown = ", ".join(name.removesuffix(f"-{dataset}") for name in experiment.exhibits)
        grid.add_row(experiment.name, experiment.label, experiment.recipe, span, shown)
    console.print(grid)
    console.print("Run one: resrepro train --depth 56 --plain     (any depth 6n+2, not only these)")
    console.print("Photographs of your own: resrepro train --dataset folder --depth 18 --data DIR")
    console.print("Its recipe, setting by setting: resrepro protocol cifar10-plain56")


def _add_setting(grid: Table, setting: catalogue.Setting, meaning: str) -> None:
    """A row: the setting, its value, how it is known, and what is to be said of it."""
    known = Text(setting.mark, STYLES[setting.mark])
    if setting.source:
        known.append(f" {setting.source}", "dim")
    told = [Text(line, style) for line, style in ((meaning, ""), (setting.note, "dim")) if line]
    lines = Text("\n").join(told)
    grid.add_row(setting.key, spell(setting.value), known, lines)


@app.command(rich_help_panel="Read")
def protocol(
    experiment: Annotated[str, typer.Argument(help="A name that `resrepro list` shows.")],
) -> None:
    """Print an experiment's recipe: each setting stated by the paper, derived from it, or assumed."""
    found = catalogue.find(experiment)
    named = catalogue.recipes()[found.recipe]
    console = Console(highlight=False)
    grid = Table("setting", "value", "known", "what it is", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, setting in named.settings.items():
        _add_setting(grid, setting, str(catalogue.setting_rules()[key]["what"]))
    for view in catalogue.protocols().values():
        if view.family == found.family:
            grid.add_section()
            grid.add_row(view.name, "", "", Text(f"test protocol: {view.title}"))
            for setting in view.settings.values():
                _add_setting(grid, setting, "")
    section = "4.2" if found.family == "cifar" else "4.1"
    shortcut = f"shortcut option {found.spec().shortcut} (stated, Section {section})"
    shortcut = "no shortcuts" if found.plain else shortcut
    console.print(Text.assemble((found.name, "bold"), f": {found.label}, {shortcut}"))
    console.print(f"Recipe {named.name}: {named.title}", markup=False)
    console.print(grid)
    marks: list[str] = [setting.mark for setting in named.settings.values()]
    console.print(", ".join(f"{marks.count(mark)} {mark}" for mark in STYLES) + ".")
    for departure in catalogue.departures(found.spec()):
        console.print(f"Departs from the paper: {departure}", markup=False)
    console.print(f"Run it: {catalogue.command_for(found.spec())}     (change a setting: --set key=value)")
