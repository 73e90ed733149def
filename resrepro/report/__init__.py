"""The report: one HTML file that holds everything, from the same records as the tables and figures.

The exhibits are gathered in `exhibits`; uPlot (MIT) lies in `uplot/` as its authors publish it. Records may
be strangers' files: what they say reaches the page only as escaped text (jinja2) or escaped JSON, and a
content security policy lets nothing run but the page's own scripts, known by their hashes.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from resrepro.claims import FAILED, HELD, UNDECIDED, UNTESTABLE, Verdict, decided_elsewhere
from resrepro.comparison.groups import DATASET_NAMES, iterations_of
from resrepro.records import Run
from resrepro.records.collection import Collection
from resrepro.report.exhibits import Section, all_exhibits, is_ours, section
from resrepro.spec import catalogue, net_label
from resrepro.spec.recipe import NamedRecipe, setting_rules, spell

GENERATOR = "resrepro report"  # by which a report of ours is known
STYLES = ("uplot/uPlot.min.css", "style.css", "tables.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "charts.js", "page.js")
LEAD_COLUMNS = ("net", "paper", "test error", "validation error", "difference")
DATASETS = {**DATASET_NAMES, "digits": "scikit-learn's digits", "folder": "a folder of other images"}
MARKS = ("stated", "derived", "assumed")
# How a verdict looks: its word, the sign beside it, and its name in the style sheet.
SIGNS = {HELD: "✓", FAILED: "✗", UNDECIDED: "?", UNTESTABLE: "–"}
STYLED = {UNTESTABLE: "untestable"}
KINDS = {word: {"word": word, "sign": SIGNS[word], "style": STYLED.get(word, word)} for word in SIGNS}


def build_report(
    found: Collection, verdicts: Sequence[Verdict] = (), exhibits: Iterable[str] | None = None
) -> str:
    """The report as one HTML page, with verdicts in the order of the claims. Equal records give equal text.
    `exhibits` are shown in this order; by default all but the demo, whose nets stand in Figure 6 on digits,
    and of a folder of images, where there are such runs, Table 2 and Figure 4.
    """
    folder = any(run.spec["dataset"] == "folder" for run in found.runs)
    own = ("table2-folder", "figure4-folder") if folder else ()
    every = [name for name in all_exhibits() if name in own or not name.endswith(("demo", "-folder"))]
    shown = [section(name, found) for name in (every if exhibits is None else exhibits)]
    finished = [run for run in found.runs if run.finished]
    counts = Counter(verdict.verdict for verdict in verdicts)
    loader = jinja2.PackageLoader("resrepro", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    files = {name: loader.get_source(environment, name)[0].strip() for name in (*STYLES, *SCRIPTS)}
    style, scripts = "\n".join(files[name] for name in STYLES), [files[name] for name in SCRIPTS]
    environment.filters["prose"] = prose
    environment.globals["kinds"] = KINDS
    return environment.get_template("page.html.j2").render(
        generator=GENERATOR, policy=_policy(style, scripts), style=Markup(style),
        scripts=[Markup(script) for script in scripts], data=curve_data(shown), verdicts=verdicts,
        counts=[(kind, counts[word]) for word, kind in KINDS.items()], elsewhere=decided_elsewhere(verdicts),
        sections=shown, lead=_lead(shown), runs=len(finished), unfinished=len(found.runs) - len(finished),
        broken=len(found.broken), datasets=_datasets(finished), departures=_departures(finished),
        surroundings=surroundings(finished), protocols=protocols(),
    )  # fmt: skip


def prose(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def curve_data(shown: Iterable[Section]) -> Markup:
    """The curves as JSON that no text in it can end."""
    charts = {section.name: section.chart.data for section in shown if section.chart}
    return htmlsafe_json_dumps(charts, dumps=json.dumps, sort_keys=True, separators=(",", ":"))


def _policy(style: str, scripts: Iterable[str]) -> str:
    """The content security policy: nothing is loaded, and only our own scripts and style count."""
    digests = (hashlib.sha256(text.encode()).digest() for text in (style, *scripts))
    own, *others = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {' '.join(others)}; style-src {own}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _lead(shown: Sequence[Section]) -> dict[str, Any] | None:
    """The first screen: Figure 6 and the rows of Table 6 with numbers of ours; None if they are not shown."""
    by_name = {section.name: section for section in shown}
    figure, exhibit = by_name.get("figure6"), by_name.get("table6")
    if not (figure and figure.picture and exhibit and exhibit.table):
        return None
    table = exhibit.table
    places = [table.columns.index(name) for name in LEAD_COLUMNS]
    rows = [[row.cells[place] for place in places] for row in table.rows if is_ours(row)]
    caption = next((text for text in table.remarks if text.startswith("Runs shown")), "")
    told = {"footnote": figure.chart.footnote if figure.chart else (), "caption": caption}
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
        mode = run.env["mode"]
        sentences = [*run.result["departures"], *run.result["notices"]]
        sentences += [] if mode == "default" else [f"trained in mode {mode}"]
        for sentence in dict.fromkeys(sentences):
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
    """The recipes (variants with what they change only) and the test protocols, with their settings.
    `settings` are each setting with its value in words and what it is, `counts` how many are stated, derived
    and assumed.
    """
    rules, tables = setting_rules(), []
    known: list[NamedRecipe | catalogue.Protocol] = list(catalogue.recipes().values())
    for each in [*known, *catalogue.protocols().values()]:
        title, own = each.title, list(each.settings.values())
        base = catalogue.paper_recipe(each.family)
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
