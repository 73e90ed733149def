"""The report: one HTML file that holds everything, from the same records as the tables and figures.

uPlot (MIT) lies in `uplot/` as its authors publish it. Records may be strangers' files: what they say reaches
the page only as escaped text (jinja2) or escaped JSON, and a content security policy lets nothing run but the
page's own scripts, known by their hashes. Errors are in percent.
"""

import base64
import hashlib
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from resrepro import figures
from resrepro.claims import FAILED, HELD, UNDECIDED, UNTESTABLE, Verdict, decided_elsewhere
from resrepro.comparison.groups import DATASET_NAMES, SeedGroup, iterations_of
from resrepro.comparison.table import DASH, Row, Table
from resrepro.errors import RecordError
from resrepro.figures import curves
from resrepro.records import Run
from resrepro.records.collection import Collection
from resrepro.spec import catalogue, net_label
from resrepro.spec.recipe import NamedRecipe, setting_rules, spell

GENERATOR = "resrepro report"  # by which a report of ours is known
STYLES = ("uplot/uPlot.min.css", "style.css", "tables.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "charts.js", "page.js")
LEAD_COLUMNS = ("net", "paper", "test error", "validation error", "difference")
DATASETS = {**DATASET_NAMES, "digits": "scikit-learn's digits", "folder": "a folder of other images"}
MARKS = ("stated", "derived", "assumed")
KINDS = {  # how a verdict looks: its word, the sign beside it, and its name in the style sheet
    word: {"word": word, "sign": sign, "style": "untestable" if word == UNTESTABLE else word}
    for word, sign in {HELD: "✓", FAILED: "✗", UNDECIDED: "?", UNTESTABLE: "–"}.items()
}
CODE = re.compile(r"`([^`]+)`")
PHONE = 4.0  # inches: the width of the pictures for narrow screens
SHOWN_NARROW = ("figure6", "figure7")  # beside which no chart or box that scrolls stands
PATH_DATA, LONG_NUMBER = re.compile(rb' d="[^"]*"'), re.compile(rb"\d+\.\d{3,}")
SPACE = re.compile(rb"\s+")
CONTINUED = "↳"  # begins the name of a row that belongs to the one above
OURS_CELL = re.compile(r"\(\d+\)$")  # ends a number of ours: how many runs it is the mean of
OURS, SEED, PAPER = "ours", "seed", "paper"  # whose a line is: our mean, one of our runs, the paper's
DECIMALS = 3  # of an error in percent: the curves of the paper were read to ±0.03


class Chart(NamedTuple):
    """A figure of curves, as the page's script draws it from `data`, and tells it in words."""

    sheet: curves.Sheet
    data: dict[str, Any]
    depths: list[int]  # numbers of layers that can be switched on and off
    lines: tuple[tuple[str, str, bool], ...]  # and kinds of lines: name, words, shown at first
    told: tuple[tuple[str, tuple[str, ...]], ...]  # by panel a sentence on each net


class Picture(NamedTuple):
    """A figure as `plot` draws it: its title, and the SVG file as a data URL, also for narrow screens."""

    title: str
    url: str
    narrow: str | None


class Section(NamedTuple):
    """What the page shows of one exhibit; `lacking` are the rows of nets of which we have nothing."""

    name: str
    title: str
    table: Table | None
    lacking: frozenset[int]
    chart: Chart | None
    picture: Picture | None


def build_report(
    found: Collection, verdicts: Sequence[Verdict] = (), exhibits: Iterable[str] | None = None
) -> str:
    """The report as one HTML page, with verdicts in the order of the claims. Equal records give equal text.
    `exhibits` are shown in this order; by default all but the demo, whose nets stand in Figure 6 on digits,
    and of a folder of images, where there are such runs, Table 2 and Figure 4.
    """
    if exhibits is None:
        folder = any(run.spec["dataset"] == "folder" for run in found.runs)
        own = ("table2-folder", "figure4-folder") if folder else ()
        every = figures.in_order({*figures.tables(), *figures.figures()})
        exhibits = [name for name in every if name in own or not name.endswith(("demo", "-folder"))]
    shown = [section(name, found) for name in exhibits]
    finished = [run for run in found.runs if run.finished]
    counts = Counter(verdict.verdict for verdict in verdicts)
    loader = jinja2.PackageLoader("resrepro", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    files = {name: loader.get_source(environment, name)[0].strip() for name in (*STYLES, *SCRIPTS)}
    style, scripts = "\n".join(files[name] for name in STYLES), [files[name] for name in SCRIPTS]
    environment.filters["prose"] = lambda text: Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))
    environment.globals["kinds"] = KINDS
    return environment.get_template("page.html.j2").render(
        generator=GENERATOR, policy=_policy(style, scripts), style=Markup(style),
        scripts=[Markup(script) for script in scripts], data=curve_data(shown), verdicts=verdicts,
        counts=[(kind, counts[word]) for word, kind in KINDS.items()], elsewhere=decided_elsewhere(verdicts),
        sections=shown, lead=_lead(shown), runs=len(finished), unfinished=len(found.runs) - len(finished),
        broken=len(found.broken), datasets=_datasets(finished), departures=_departures(finished),
        surroundings=surroundings(finished), protocols=protocols(),
    )  # fmt: skip


def curve_data(shown: Iterable[Section]) -> Markup:
    """The curves as JSON that no text in it can end."""
    charts = {section.name: section.chart.data for section in shown if section.chart}
    return htmlsafe_json_dumps(charts, dumps=json.dumps, sort_keys=True, separators=(",", ":"))


def _policy(style: str, scripts: Iterable[str]) -> str:
    """The content security policy: nothing is loaded, and only our own scripts and style count."""
    digests = (hashlib.sha256(text.encode()).digest() for text in (style, *scripts))
    own, *others = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    let_through = f"script-src {' '.join(others)}; style-src {own}; img-src data:"
    return f"default-src 'none'; {let_through}; base-uri 'none'; form-action 'none'"


def _lead(shown: Sequence[Section]) -> dict[str, Any] | None:
    """The first screen: Figure 6 and the rows of Table 6 with numbers of ours; None if they are not shown."""
    by_name = {section.name: section for section in shown}
    figure, exhibit = by_name.get("figure6"), by_name.get("table6")
    if not (figure and figure.picture and exhibit and exhibit.table):
        return None
    table = exhibit.table
    places = [table.columns.index(name) for name in LEAD_COLUMNS]
    rows = [[row.cells[place] for place in places] for row in table.rows if _is_ours(row)]
    caption = next((text for text in table.remarks if text.startswith("Runs shown")), "")
    told = {"footnote": figure.chart.sheet.footnote if figure.chart else (), "caption": caption}
    return {"picture": figure.picture, "columns": LEAD_COLUMNS, "rows": rows, **told}


def _datasets(runs: Iterable[Run]) -> list[str]:
    """`CIFAR-10: 5 runs of 4 nets, shortened to 2,000 of 64,000 iterations.`, by dataset and length."""
    kinds: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((str(run.spec["dataset"]), iterations_of(run), run.status), []).append(run)
    sentences = []
    for (dataset, iterations, status), same in sorted(kinds.items()):
        nets = {net_label(run.spec["depth"], run.spec["plain"], run.spec["shortcut"]) for run in same}
        whole = catalogue.paper_recipe(same[0].family).recipe.iterations
        length = f"{iterations:,} iterations"
        if status == "shortened" and iterations < whole:
            length = f"shortened to {iterations:,} of {whole:,} iterations"
        made = f"{len(same):,} run{'s' * (len(same) > 1)} of {len(nets)} net{'s' * (len(nets) > 1)}"
        sentences.append(f"{DATASETS[dataset]}: {made}, {length}.")
    return sentences


def _departures(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
    """Every departure from the paper and every notice, with the runs that it is true of; widest first."""
    names: dict[str, list[str]] = {}
    for run in runs:
        mode = [f"trained in mode {run.env['mode']}"] if run.env["mode"] != "default" else []
        for sentence in dict.fromkeys([*run.result["departures"], *run.result["notices"], *mode]):
            names.setdefault(sentence, []).append(f"{run.name}, seed {run.seed}")
    return sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))


def surroundings(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Every combination of machine and versions as `facts` by name, with its number of `runs`; most first."""
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    for env in (run.env for run in runs):
        versions = env.get("versions")
        commit = str(env.get("commit") or "")[:12] + (", modified" if env.get("modified") else "")
        facts = {
            "system": env.get("system"), "processor": env.get("cpu"), "cores": env.get("cores"),
            "device": env.get("gpu") or env.get("device"), "threads per run": env.get("threads"),
            "commit": commit, **(versions if isinstance(versions, dict) else {}),
        }  # fmt: skip
        counts[tuple((name, str(value)) for name, value in facts.items() if value not in (None, ""))] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"facts": dict(facts), "runs": number} for facts, number in ordered]


def protocols() -> list[dict[str, Any]]:
    """Recipes (variants by what they change) and test protocols: settings in words, how many of each mark."""
    rules, tables = setting_rules(), []
    known: list[NamedRecipe | catalogue.Protocol] = list(catalogue.recipes().values())
    for each in [*known, *catalogue.protocols().values()]:
        title, own, base = each.title, list(each.settings.values()), catalogue.paper_recipe(each.family)
        if isinstance(each, catalogue.Protocol):
            title = f"Test protocol: {title}"
        elif each is not base:
            title += f": what differs from {base.name}"
            own = [setting for setting in own if setting != base.settings[setting.key]]
        settings = [(one, spell(one.value), str(rules.get(one.key, {}).get("what", ""))) for one in own]
        marks = [one.mark for one in own]
        counts = [(mark, marks.count(mark)) for mark in MARKS if mark in marks]
        tables.append({"name": each.name, "title": title, "settings": settings, "counts": counts})
    return tables


# --- the exhibits


def section(name: str, found: Collection) -> Section:
    """The section of an exhibit."""
    table = figures.build_table(name, found) if name in figures.tables() else None
    chart = chart_of(name, found.runs) if name in curves.exhibits() else None
    picture = _picture_of(name, found.runs) if name in figures.figures() else None
    titled = table or picture
    title = titled.title if titled else f"{name.capitalize()}: nothing to show yet"
    return Section(name, title, table, lacking(table.rows) if table else frozenset(), chart, picture)


def lacking(rows: Sequence[Row]) -> frozenset[int]:
    """The rows of nets of which we have nothing, by their place; none where that is all of them."""
    continued = [row.cells[0].startswith(CONTINUED) for row in (*rows, Row(("",)))]
    filled = [_is_ours(row) or below for row, below in zip(rows, continued, strict=False)]
    empty = [n for n, row in enumerate(rows) if DASH in row.cells and not (filled[n] or continued[n + 1])]
    return frozenset(empty if any(filled) else ())


def _is_ours(row: Row) -> bool:
    return any(map(OURS_CELL.search, row.cells[1:]))


def _picture_of(name: str, runs: Sequence[Run]) -> Picture | None:
    """The figure as `plot --paper` draws it, to a hundredth of a point; None if there is nothing to draw."""

    def rounded(path: re.Match[bytes]) -> bytes:
        return LONG_NUMBER.sub(lambda number: b"%.2f" % float(number[0]), path[0])

    urls, caption = [], name not in curves.exhibits()  # of curves the page writes it
    with tempfile.TemporaryDirectory() as folder:
        for width in [None, PHONE] if name in SHOWN_NARROW else [None]:
            style = figures.Style("safe", caption, width, formats=("svg",))
            try:
                [path], _ = figures.draw_figure(name, runs, Path(folder), paper=True, style=style)
            except RecordError:
                return None
            content = path.read_bytes()
            slim = SPACE.sub(b" ", PATH_DATA.sub(rounded, content))
            urls.append(f"data:image/svg+xml;base64,{base64.b64encode(slim).decode()}")
    title = ElementTree.fromstring(content).findtext(".//{http://purl.org/dc/elements/1.1/}title")
    return Picture(title or name, urls[0], urls[1] if urls[1:] else None)


def chart_of(exhibit: str, runs: Sequence[Run]) -> Chart | None:
    """The chart of a figure, with the paper's curves if it is of the same images; None if there are none."""
    try:
        sheet = curves.make_sheet(exhibit, runs, paper="of" not in curves.exhibits()[exhibit])
    except RecordError:
        return None
    seeds = any(len(group.runs) > 1 for group in sheet.groups.values())
    kinds = {curve.kind for curve in sheet.curves}
    switches = [
        ("train", "training error", "train" in kinds),
        ("held_out", sheet.held_out_told, bool(kinds - {"train"})),
        (OURS, "ours (mean over seeds)" if seeds else "ours", sheet.has_ours),
        (SEED, "ours, each seed", seeds),
        (PAPER, "the paper's", any(curve.paper for curve in sheet.curves)),
    ]
    return Chart(
        sheet=sheet,
        data={"unit": sheet.unit, "panels": [_panel(sheet, panel) for panel in sheet.panels]},
        depths=sorted({curve.depth for curve in sheet.curves}),
        lines=tuple((name, words, name != SEED) for name, words, there in switches if there),
        told=tuple((str(panel.layout["title"]), _in_words(sheet, panel)) for panel in sheet.panels),
    )


def _panel(sheet: curves.Sheet, panel: curves.Panel) -> dict[str, Any]:
    """One panel for the script: its frame, and its lines: the paper's, our means, of several seeds each."""

    def line(curve: curves.Curve, whose: str) -> dict[str, Any]:
        return {
            "net": curve.net, "depth": curve.depth, "kind": "train" if curve.kind == "train" else "held_out",
            "told": _set_name(sheet, curve), "whose": whose, "x": [round(at, 1) for at in curve.x],
            "y": [round(error, DECIMALS) for error in curve.y],
        }  # fmt: skip

    lines = [line(curve, PAPER if curve.paper else OURS) for curve in (*panel.paper, *panel.ours)]
    for mean in panel.ours:
        runs = sheet.groups[mean.net].runs
        for run in runs if len(runs) > 1 else ():
            if curve := curves.mean_curve(SeedGroup((run,)), mean.kind):
                lines.append(line(curve, SEED) | {"seed": run.seed})
    start, share = (float(panel.layout.get(key, usual)) for key, usual in (("start", 0), ("share", 1)))
    floor, top = sheet.frame(panel)
    frame = [start * sheet.iterations, float(sheet.iterations), float(floor), float(top)]
    ylabel = str(panel.layout["ylabel"]).format(held_out=sheet.held_out)
    return {"frame": frame, "lines": lines, "share": share, "ylabel": ylabel}


def _in_words(sheet: curves.Sheet, panel: curves.Panel) -> tuple[str, ...]:
    """By net, `plain-56: ours ends at 5.1 ± 0.2 % training and 10.1 ± 0.2 % test error; the paper's ..`."""
    drawn = sorted(panel.curves, key=lambda curve: (curve.depth, curve.plain))
    sentences = []
    for net, group in itertools.groupby(drawn, lambda curve: curve.net):
        ends: dict[str, list[str]] = {}
        for curve in group:
            spread = f" ± {curve.std[-1]:.1f}" if curve.std else ""
            end = f"{curve.y[-1]:.1f}{spread} % {_set_name(sheet, curve)}"
            ends.setdefault("the paper's" if curve.paper else "ours", []).append(end)
        told = [f"{whose} ends at {' and '.join(parts)} error" for whose, parts in sorted(ends.items())]
        sentences.append(f"{net}: {'; '.join(told)}.")
    return tuple(sentences)


def _set_name(sheet: curves.Sheet, curve: curves.Curve) -> str:
    """The set that a curve was measured on."""
    if curve.kind == "train":
        return "training"
    return str(sheet.layout["paper"]["held_out"]) if curve.paper else sheet.held_out
