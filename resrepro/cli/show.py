"""`compare`, `plot`, `claims`, `report` and `list`: what there is to run and what came out, without torch."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resrepro import claims as judged
from resrepro import cli
from resrepro import figures as known
from resrepro.claims.judging import judge
from resrepro.cli import argument, option
from resrepro.cli.view import print_json, tell, to_stderr
from resrepro.comparison.table import Grid, Table, to_json, to_rich, write_table
from resrepro.errors import UsageError
from resrepro.launch import Exhibit
from resrepro.records.collection import DEFAULT_FOLDERS, Collection, collect
from resrepro.records.reading import LAYER_RESPONSES, is_measured
from resrepro.records.storage import write_out
from resrepro.spec import catalogue, command_for
from resrepro.spec.architecture import architecture_of
from resrepro.spec.recipe import NamedRecipe, setting_rules, spell

TABLES, FIGURES = ", ".join(known.tables()), ", ".join(known.figures())
STYLES = {"stated": "green", "derived": "cyan", "assumed": "yellow"}

PAGE = Path("report.html")
DETAILED = "Claims to show in detail. (default: a line for each)"
FOLDERS = "Folder of run records; may be repeated. (default: runs)"
ONLY = "Only runs with this setting, e.g. iterations=2000; may be repeated."
FORMATS = "png, svg or pdf; may be repeated. (default: png and svg)"
WIDTH = "Inches, or column or text as on the paper's page. (default: the figure's own)"
RunFoldersOption = Annotated[list[Path] | None, option(FOLDERS, "--runs", metavar="DIR")]
SettingsFilter = Annotated[list[str] | None, option(ONLY, "--settings", metavar="KEY=VALUE")]


def read_records(folders: Sequence[Path] | None, settings: Iterable[str] | None) -> Collection:
    """The good records below some folders that have some settings (UsageError if a folder that was named does
    not exist, or there are no such runs); each broken one is named on stderr.
    """
    for folder in folders or ():
        if not folder.exists():
            raise UsageError(f"there is no runs folder {folder}: name one that exists with --runs.")
    found = collect(folders or [Path(name) for name in DEFAULT_FOLDERS])
    for sentence in found.broken:
        to_stderr(f"left out: {sentence}")
    return found.having(cli.parse_pairs(settings, "--settings", "KEY=VALUE, such as iterations=2000"))


def tell_written(paths: Sequence[Path], notes: Iterable[str] = (), table: Table | None = None) -> None:
    """Name the files that were written, after the table in them and what is to be said."""
    console = Console(highlight=False)
    if table:
        console.print(to_rich(table))
    for note in notes:
        console.print(note, markup=False)
    if paths:
        console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


@cli.app.command(rich_help_panel="Read")
def compare(
    exhibits: Annotated[list[str] | None, argument(f"{TABLES}. (default: table6)", "EXHIBIT...")] = None,
    runs: RunFoldersOption = None,
    tables: cli.TablesOption = Path("tables"),
    every: Annotated[bool, option("Runs of all protocols, not of one.", "--all")] = False,
    settings: SettingsFilter = None,
    as_json: cli.JsonOption = False,
    quiet: cli.QuietOption = False,
) -> None:
    """Print and write the paper's rows with ours beside them (Markdown, CSV, LaTeX)."""
    names = exhibits or ["table6"]
    for name in names:
        known.check_table(name)
    found = read_records(runs, settings)
    for table in [known.build_table(name, found, every=every) for name in names]:
        tell(**to_json(table))
        tell_written(write_table(table, tables), table=table)


@cli.app.command(rich_help_panel="Read")
def plot(
    exhibits: Annotated[list[str] | None, argument(f"{FIGURES}. (default: figure6)", "EXHIBIT...")] = None,
    runs: RunFoldersOption = None,
    figures: cli.FiguresOption = Path("figures"),
    paper: Annotated[bool, option("The paper's own curves thin behind ours.", "--paper")] = False,
    palette: Annotated[str, typer.Option(help="paper, or safe for colour-blind readers.")] = "paper",
    caption: Annotated[bool, option("The text below the figure.", "--caption/--no-caption")] = True,
    formats: Annotated[list[str] | None, option(FORMATS, "--format")] = None,
    width: Annotated[str | None, option(WIDTH, "--width")] = None,
    settings: SettingsFilter = None,
) -> None:
    """Draw the paper's figures from run records (PNG, SVG, PDF)."""
    names = exhibits or ["figure6"]
    style = known.Style(palette, caption, width, tuple(formats or ("png", "svg")))
    for name in names:
        known.check_figure(name, style)
    found = read_records(runs, settings)
    for name in names:
        tell_written(*known.draw_figure(name, found.runs, figures, paper=paper, style=style))


def write_exhibit(exhibit: Exhibit, found: Collection, tables: Path, figures: Path) -> None:
    """Write and print the table and the figure of an exhibit from a plan's records alone."""
    own = tuple(run for run in found.runs if run.experiment in exhibit.experiments)
    responses = LAYER_RESPONSES in exhibit.measures
    shown = [is_measured(LAYER_RESPONSES, run) if responses else run.finished for run in own]
    if exhibit.dataset and not any(shown):
        what = "measured" if responses else "finished"
        return tell_written((), [f"No {what} run for {exhibit.stem} yet: nothing is written."])
    paths, notes, table = list[Path](), tuple[str, ...](), None
    if exhibit.name in known.tables():
        table = known.build_table(exhibit.name, Collection(own, (), found.ensembles))
        table = replace(table, name=exhibit.stem)
        paths += write_table(table, tables)
    if exhibit.name in known.figures():
        paper = exhibit.dataset in ("cifar10", "imagenet", "folder")
        drawn, notes = known.draw_figure(exhibit.name, own, figures, paper=paper, stem=exhibit.stem)
        paths += drawn
    tell_written(paths, notes, table)


@cli.app.command(rich_help_panel="Read")
def claims(
    numbers: Annotated[list[int] | None, argument(DETAILED, "NUMBER...")] = None,
    runs: RunFoldersOption = None,
    settings: SettingsFilter = None,
    tables: cli.TablesOption = Path("tables"),
    json: Annotated[bool, option("Print JSON instead.", "--json")] = False,
    quiet: cli.QuietOption = False,
) -> None:
    """Say claim by claim whether the paper's statement held in your runs; by number in detail.

    All are written as Markdown, CSV and LaTeX.
    """
    wanted = {judged.find_claim(number).number for number in numbers or ()}
    found = read_records(runs, settings)
    verdicts = judge(found.runs)
    table = judged.table(verdicts, found.sources)
    paths = write_table(table, tables)
    if json:
        content = to_json(table)
        rows = [row for row in content["rows"] if not wanted or row["claim"] in wanted]
        return print_json(content | {"rows": rows})
    console = Console(highlight=False)
    if wanted:
        shown = [verdict for verdict in verdicts if verdict.claim.number in wanted]
        console.print(judged.to_rich(shown))
    for verdict in () if wanted else verdicts:
        console.print(judged.one_line(verdict))
    notes = [f"All {len(verdicts)} claims: {judged.summary(verdicts)}.", *found.sources]
    notes += [judged.decided_elsewhere(verdicts), "" if wanted else "In detail: resrepro claims NUMBER"]
    tell_written(paths, filter(None, notes))


@cli.app.command(rich_help_panel="Read")
def report(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file that is written.")] = PAGE,
    runs: RunFoldersOption = None,
    settings: SettingsFilter = None,
) -> None:
    """Write one HTML file: verdicts, the paper's numbers beside ours, curves, protocol, departures."""
    from resrepro.report import GENERATOR, build_report

    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise UsageError(f"--out takes the name of an HTML file, such as report.html, not {out}.")
    if out.exists() and GENERATOR not in out.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{out} is no report of ours: give --out another name, nothing is overwritten.")
    found = read_records(runs, settings)
    write_out(out, build_report(found, judge(found.runs)).encode())
    tell_written([out])


@cli.app.command("list", rich_help_panel="Read")
def list_experiments(
    name: Annotated[str | None, argument("Show this experiment's net and recipe.", "EXPERIMENT")] = None,
) -> None:
    """Show the experiments; of one, its layers and each setting: stated by the paper, derived, or assumed."""
    console = Console(highlight=False)
    if name is not None:
        return show_experiment(catalogue.find(name), console)
    grid = Grid(("experiment", "net", "recipe", "seeds", "exhibits"), left=5, wraps=True)
    dataset = None
    for experiment in catalogue.experiments().values():
        new, dataset, seeds = experiment.dataset != dataset, experiment.dataset, experiment.seeds
        span = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        exhibits = ", ".join(each.removesuffix(f"-{dataset}") for each in experiment.exhibits)
        grid.add(experiment.name, experiment.label, experiment.recipe, span, exhibits, section=new)
    console.print(grid)
    console.print("Run one: resrepro train --depth 56 --plain     (any depth 6n+2, not only these)")
    console.print("Photographs of your own: resrepro train --dataset folder --depth 18 --data DIR")
    console.print("Its layers and its recipe: resrepro list cifar10-plain56")


def show_experiment(experiment: catalogue.Experiment, console: Console) -> None:
    """Print an experiment's net and recipe."""
    spec, recipe, net = experiment.spec(), catalogue.recipes()[experiment.recipe], architecture_of(experiment)
    section = "4.2" if experiment.family == "cifar" else "4.1"
    option = f"shortcut option {spec.shortcut} (stated, Section {section})"
    shortcut = "no shortcuts" if experiment.plain else option
    console.print(Text.assemble((experiment.name, "bold"), f": {experiment.label}, {shortcut}"))
    grid = Grid(("part", "output", "layers", "times", "shortcut"), left=5)
    for part in net.parts:
        side, times = part.layers[-1].size, str(part.times) if part.name.endswith("_x") else ""
        kernels = (f"{each.kernel}x{each.kernel}, {each.channels} /{each.stride}" for each in part.layers)
        layers = "; ".join(kernel.removesuffix(" /1") for kernel in kernels)
        grid.add(part.name, f"{side}x{side}", layers, times, part.shortcut.kind if part.shortcut else "")
    console.print(grid)
    size = f"an image of {net.image_size}x{net.image_size}"
    counts = f"{net.parameters:,} parameters, {net.multiply_adds / 1e9:.3f}e9 multiply-adds for {size}"
    console.print(f"{net.layers} layers (projections do not count), {counts}.\n", markup=False)
    console.print(f"Recipe {recipe.name}: {recipe.title}", markup=False)
    grid, rules = Grid(("setting", "value", "known", "what it is"), left=4, wraps=True), setting_rules()
    sources: list[NamedRecipe | catalogue.Protocol] = [recipe, *catalogue.protocols().values()]
    for source in (source for source in sources if source.family == experiment.family):
        if source is not recipe:
            grid.add(source.name, "", "", f"test protocol: {source.title}", section=True)
        for setting in source.settings.values():
            known = Text(f"{setting.mark} {setting.source or ''}".rstrip(), STYLES[setting.mark])
            what = rules[setting.key]["what"] if source is recipe else ""
            told = "\n".join(filter(None, (what, setting.note)))
            grid.add(setting.key, spell(setting.value), known, told)
    console.print(grid)
    marks: list[str] = [setting.mark for setting in recipe.settings.values()]
    console.print(", ".join(f"{marks.count(mark)} {mark}" for mark in STYLES) + ".")
    for departure in catalogue.departures(spec):
        console.print(f"Departs from the paper: {departure}", markup=False)
    console.print(f"Run it: {command_for(spec)}     (change a setting: --set key=value)")
