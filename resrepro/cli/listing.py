"""`resrepro list`: what can be run; of one experiment its net, its recipe, and how we know that it is so."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrepro.cli import app
from resrepro.spec import catalogue
from resrepro.spec.experiment import command_for
from resrepro.spec.recipe import NamedRecipe, Setting, setting_rules, spell

if TYPE_CHECKING:
    from resrepro.spec.architecture import Architecture, Part

STYLES = {"stated": "green", "derived": "cyan", "assumed": "yellow"}
UNIT = 1e9  # the paper gives multiply-adds in 10^9


@app.command("list", rich_help_panel="Read")
def list_experiments(
    name: Annotated[
        str | None, typer.Argument(help="Show this experiment's net and recipe.", show_default=False)
    ] = None,
) -> None:
    """Show the experiments; of one, its layers and each setting: stated by the paper, derived, or assumed."""
    console = Console(highlight=False)
    if name is not None:
        return show_experiment(catalogue.find(name), console)
    console.print(experiments_table())
    console.print("Run one: resrepro train --depth 56 --plain     (any depth 6n+2, not only these)")
    console.print("Photographs of your own: resrepro train --dataset folder --depth 18 --data DIR")
    console.print("Its layers and its recipe: resrepro list cifar10-plain56")


def experiments_table() -> Table:
    """A line for each experiment, with the table or figure that it belongs to."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("experiment", "net", "recipe", "seeds", "exhibits"):
        grid.add_column(column, no_wrap=column != "exhibits")
    dataset = None
    for experiment in catalogue.experiments().values():
        if dataset not in (None, experiment.dataset):
            grid.add_section()
        dataset, seeds = experiment.dataset, experiment.seeds
        span = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        exhibits = ", ".join(name.removesuffix(f"-{dataset}") for name in experiment.exhibits)
        grid.add_row(experiment.name, experiment.label, experiment.recipe, span, exhibits)
    return grid


def show_experiment(experiment: catalogue.Experiment, console: Console) -> None:
    """Print an experiment's net and recipe."""
    from resrepro.spec.architecture import architecture_of

    spec, recipe, net = experiment.spec(), catalogue.recipes()[experiment.recipe], architecture_of(experiment)
    section = "4.2" if experiment.family == "cifar" else "4.1"
    shortcut = f"shortcut option {spec.shortcut} (stated, Section {section})"
    shortcut = "no shortcuts" if experiment.plain else shortcut
    console.print(Text.assemble((experiment.name, "bold"), f": {experiment.label}, {shortcut}"))
    console.print(layers_table(net))
    console.print(f"{totals(net)}\n", markup=False)
    console.print(f"Recipe {recipe.name}: {recipe.title}", markup=False)
    console.print(settings_table(experiment, recipe))
    marks: list[str] = [setting.mark for setting in recipe.settings.values()]
    console.print(", ".join(f"{marks.count(mark)} {mark}" for mark in STYLES) + ".")
    for departure in catalogue.departures(spec):
        console.print(f"Departs from the paper: {departure}", markup=False)
    console.print(f"Run it: {command_for(spec)}     (change a setting: --set key=value)")


def layers_table(net: "Architecture") -> Table:
    """A line for each part of a net: its layers as in Table 1, its shortcut, the side of its output map."""
    grid = Table("part", "output", "layers", "times", "shortcut", box=box.SIMPLE_HEAD, pad_edge=False)
    for part in net.parts:
        side = part.layers[-1].size
        shortcut = part.shortcut.kind if part.shortcut else ""
        times = str(part.times) if part.name.endswith("_x") else ""
        grid.add_row(part.name, f"{side}x{side}", _layers(part), times, shortcut)
    return grid


def _layers(part: "Part") -> str:
    """`3x3, 32 /2; 3x3, 32`."""
    return "; ".join(
        f"{layer.kernel}x{layer.kernel}, {layer.channels}" + (f" /{layer.stride}" if layer.stride > 1 else "")
        for layer in part.layers
    )


def totals(net: "Architecture") -> str:
    """Layers, parameters, and multiply-adds beside those that the paper prints."""
    from resrepro.comparison.tables_1_and_5 import printed_flops

    counted, printed = net.multiply_adds / UNIT, printed_flops(net)
    sentence = (
        f"{net.layers} layers (projections do not count), {net.parameters:,} parameters, {counted:.3f}e9 "
        f"multiply-adds for an image of {net.image_size}x{net.image_size}"
    )
    if printed is None:
        return f"{sentence}."
    difference = f"{counted - printed / UNIT:+.3f}".replace("-", "−")
    return f"{sentence} (paper: {printed / UNIT:.1f}e9, difference {difference}e9)."


def settings_table(experiment: catalogue.Experiment, recipe: NamedRecipe) -> Table:
    """A line for each setting of the recipe, then those of the test protocols that fit."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("setting", "value", "known", "what it is"):
        grid.add_column(heading, overflow="fold")
    for key, setting in recipe.settings.items():
        _add_setting(grid, setting, str(setting_rules()[key]["what"]))
    for view in catalogue.protocols().values():
        if view.family == experiment.family:
            grid.add_section()
            grid.add_row(view.name, "", "", Text(f"test protocol: {view.title}"))
            for setting in view.settings.values():
                _add_setting(grid, setting, "")
    return grid


def _add_setting(grid: Table, setting: Setting, meaning: str) -> None:
    """A row: the setting, its value, how it is known, and what is to be said of it."""
    known = Text(setting.mark, STYLES[setting.mark])
    if setting.source:
        known.append(f" {setting.source}", "dim")
    lines = [Text(line, style) for line, style in ((meaning, ""), (setting.note, "dim")) if line]
    grid.add_row(setting.key, spell(setting.value), known, Text("\n").join(lines))
