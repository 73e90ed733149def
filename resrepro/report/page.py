"""The page: one HTML file with its style, scripts, data and pictures in it.

Records may be strangers' files. What they say reaches the page only as escaped text (jinja2) or as escaped
JSON, and a content security policy lets nothing run but the page's own scripts, known by their hashes.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from resrepro.claims.listing import decided_elsewhere
from resrepro.records.collection import Collection
from resrepro.report import background
from resrepro.report.exhibit_sections import Picture, Section, is_ours, sections, shown_exhibits
from resrepro.report.verdicts import Judged, counted, kind_of, kinds_of_others

GENERATOR = "resrepro report"  # by which a report of ours is known
STYLES = ("uplot/uPlot.min.css", "style.css", "tables.css")
LEAD_COLUMNS = ("net", "paper", "test error", "validation error", "difference")
SCRIPTS = ("uplot/uPlot.iife.min.js", "charts.js", "page.js")


def build_report(
    found: Collection, verdicts: Sequence[Judged] = (), exhibits: Iterable[str] | None = None
) -> str:
    """The report as one HTML page. Equal records give equal text.

    Args:
        found: the runs and ensembles that it is made from.
        verdicts: on the paper's claims, in its order.
        exhibits: what is shown, in this order; `shown_exhibits` by default.

    Raises:
        UsageError: for an unknown exhibit.
    """
    shown = sections(found, shown_exhibits() if exhibits is None else exhibits)
    style, scripts = "\n".join(map(_file, STYLES)), [_file(name) for name in SCRIPTS]
    finished = [run for run in found.runs if run.finished]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            generator=GENERATOR,
            policy=_policy(style, scripts),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=_data(shown),
            verdicts=[(verdict, kind_of(verdict), kinds_of_others(verdict)) for verdict in verdicts],
            counts=counted(verdicts),
            elsewhere=decided_elsewhere(verdicts),
            sections=shown,
            lead=lead_of(shown),
            runs=len(finished),
            unfinished=len(found.runs) - len(finished),
            broken=len(found.broken),
            datasets=background.datasets_told(finished),
            departures=background.departures(finished),
            surroundings=background.surroundings(finished),
            protocols=background.protocols(),
        )
    )


@dataclass(frozen=True)
class Lead:
    """The first screen: a picture, and the paper's numbers beside ours as a table."""

    picture: Picture
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def lead_of(shown: Sequence[Section]) -> Lead | None:
    """Figure 6 and those rows of Table 6 that have numbers of ours; None where they are not shown."""
    by_name = {section.name: section for section in shown}
    figure, table = by_name.get("figure6"), by_name.get("table6")
    if not (figure and figure.picture and table and table.table):
        return None
    places = [table.table.columns.index(name) for name in LEAD_COLUMNS]
    rows = tuple(tuple(row.cells[place] for place in places) for row in table.table.rows if is_ours(row))
    caption = next((text for text in table.table.remarks if text.startswith("Runs shown")), "")
    return Lead(figure.picture, LEAD_COLUMNS, rows, caption)


def _file(name: str) -> str:
    return resources.files("resrepro.report").joinpath(name).read_text(encoding="utf-8").strip()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resrepro", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prose"] = prose
    return environment


def prose(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _data(shown: Iterable[Section]) -> Markup:
    """The curves as JSON that no text in it can end."""
    charts = {section.name: section.chart.data for section in shown if section.chart}
    return htmlsafe_json_dumps(charts, dumps=json.dumps, sort_keys=True, separators=(",", ":"))


def _policy(style: str, scripts: Iterable[str]) -> str:
    """The content security policy: nothing is loaded, and only our own scripts and style count."""
    known = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {known}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
