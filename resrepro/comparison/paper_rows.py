"""The paper's rows beside ours: run records in, tables out. Nothing here imports torch.

Runs share a cell, a mean or a standard deviation only if they are identical but for the seed. Errors
are those of the last iteration; "best run" and "best sample" stand in columns of their own.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison.cells import (
    Cell,
    cells_of,
    eval_command,
    measured_otherwise,
    spell_mean,
    train_command,
    unused,
)
from resrepro.comparison.ensembling import table_of_ensembles
from resrepro.comparison.tables import DASH, Row, Table
from resrepro.paper import Number, layout, published
from resrepro.records import Run
from resrepro.records.measurements import Ensemble
from resrepro.spec import catalogue

BEST_RUN, BEST_SAMPLE = "best run", "best sample"
MEAN = "Ours: mean ± standard deviation (n runs; n−1 in the deviation) of the last-iteration error."
SAMPLE = (
    "Best sample: the lowest error at any sampling point, chosen on the very set it is measured on, hence "
    "optimistic."
)
ASSUMED = (
    "Where the paper is silent we assume: `resrepro protocol <experiment>` marks each setting as stated, "
    "derived or assumed."
)
TRAINING_ERROR = "Training error: on the batches trained on since the sample before."
NOT_IMAGENET = (
    "No difference is given for errors on other images than ImageNet's 50,000 for validation, or on crops of "
    "another size: they do not compare with the paper's."
)


class _Notes:
    """Sentences, numbered in the order in which they are first needed."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, sentences: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(self.numbers.setdefault(text, len(self.numbers) + 1) for text in sentences))


def build(exhibit: str, runs: Sequence[Run], ensembles: Sequence[Ensemble] = ()) -> Table:
    """The table of an exhibit from runs (and for Table 5 ensembles) that were read already.

    Raises:
        UsageError: for an unknown exhibit.
    """
    plan = layout(exhibit)
    if "members" in plan:
        return table_of_ensembles(exhibit, plan, runs, ensembles)
    lines = [
        (line, cells_of(line["experiment"], runs) if "experiment" in line else []) for line in plan["rows"]
    ]
    best = _best_columns(plan, [cell for _, cells in lines for cell in cells])
    notes = _Notes()
    rows: list[Row] = []
    missing: list[tuple[str, str]] = []
    records: list[dict[str, object]] = []
    for line, cells in lines:
        exact = cells[0] if cells and cells[0].exact else None
        missing += _missing(plan, line, cells, exact)
        for number, cell in enumerate([exact, *(cell for cell in cells if cell is not exact)]):
            told = cell.told(plan["quantities"]) if cell else []
            told += [line["note"]] if number == 0 and "note" in line else []
            section = line.get("section") if number == 0 else None
            rows.append(Row(_texts(exhibit, plan, line, cell, number, best), notes.number(told), section))
            records.append(_record(exhibit, plan, line, cell))
    return Table(
        name=exhibit,
        title=plan["title"],
        columns=_columns(plan, best),
        rows=tuple(rows),
        notes=tuple(notes.numbers),
        missing=tuple(missing),
        remarks=_remarks(plan, runs, [cell for _, cells in lines for cell in cells], best),
        records=tuple(records),
    )


def _published(
    exhibit: str, line: Mapping[str, Any], quantity: Mapping[str, Any]
) -> tuple[Number | None, Number | None]:
    """The paper's single value and its mean, where it gives them."""
    numbers = published()
    source = line.get("published_in", exhibit)
    found = (numbers.get((source, line["label"], metric)) for metric in quantity.get("value", ()))
    value = next((number for number in found if number is not None), None)
    if value is None and (bound := numbers.get(("sec4.2-text", line["label"], "err_lower_bound"))):
        return Number(bound.value, float("inf")), None  # the paper only says "higher than"
    return value, numbers.get((source, line["label"], quantity.get("mean", "")))


def _spell_paper(value: Number | None, mean: Number | None) -> str:
    if value is None:
        return ""
    if value.std == float("inf"):
        return f">{value.value:g}"
    spread = f" ({mean.value:.2f}±{mean.std:.2f})" if mean and mean.std is not None else ""
    return f"{value.value:.2f}{spread}"


def _best_columns(plan: Mapping[str, Any], cells: Sequence[Cell]) -> tuple[str, ...]:
    """Best run and best sample; under another test protocol than training's the best of several seeds."""
    if not _has_protocol(plan):
        return BEST_RUN, BEST_SAMPLE
    return (BEST_RUN,) if any(len(cell.runs) > 1 for cell in cells) else ()


def _has_protocol(plan: Mapping[str, Any]) -> bool:
    return any("protocol" in quantity for quantity in plan["quantities"])


def _columns(plan: Mapping[str, Any], best: Sequence[str]) -> tuple[str, ...]:
    quantities = plan["quantities"]
    with_paper = any("value" in quantity for quantity in quantities)
    columns = ["net", *(fact.replace("params_M", "params (M)") for fact in plan["facts"])]
    for quantity in quantities:
        title = quantity["name"]
        columns += [f"{title}: paper", "ours", "difference"] if with_paper else [title]
    return (*columns, *best)


def _missing(
    plan: Mapping[str, Any], line: Mapping[str, Any], cells: Sequence[Cell], exact: Cell | None
) -> list[tuple[str, str]]:
    """What fills the gaps of a net: its training, and the evaluation of runs that lack one."""
    gaps: list[tuple[str, str]] = []
    if "experiment" in line and exact is None:
        gaps.append((line["label"], train_command(line["experiment"])))
    for cell in cells:
        lacking = {quantity.get("protocol"): cell.lacking(quantity) for quantity in plan["quantities"]}
        gaps += [(line["label"], eval_command(runs, name)) for name, runs in lacking.items() if name and runs]
    return gaps


def _remarks(
    plan: Mapping[str, Any], runs: Sequence[Run], cells: Sequence[Cell], best: Sequence[str]
) -> tuple[str, ...]:
    """The sentences below the notes."""
    quantities = plan["quantities"]
    told = []
    experiments = [line["experiment"] for line in plan["rows"] if "experiment" in line]
    if left_out := unused(experiments, runs):
        told.append(f"Not in the table: {', '.join(left_out)}.")
    if others := measured_otherwise(experiments, runs, quantities):
        told.append(f"Measured as well: {'; '.join(others)}.")
    if any(quantity["set"] == "train" for quantity in quantities):
        told.append(TRAINING_ERROR)
    if any(not cell.comparable for cell in cells):
        told.append(NOT_IMAGENET)
    described = [MEAN]
    if BEST_RUN in best:
        what = quantities[0]["name"] if _has_protocol(plan) else "last-iteration error"
        described.append(f"Best run: the lowest {what} of a run.")
    if BEST_SAMPLE in best:
        described.append(SAMPLE)
    return (*told, *plan.get("remarks", ()), *_protocols_told(quantities), " ".join(described), ASSUMED)


def _protocols_told(quantities: Iterable[Mapping[str, Any]]) -> list[str]:
    """What we assume of the test protocols of some quantities."""
    names = dict.fromkeys(quantity["protocol"] for quantity in quantities if "protocol" in quantity)
    return [catalogue.protocols()[name].assumptions() for name in names]


def _texts(
    exhibit: str,
    plan: Mapping[str, Any],
    line: Mapping[str, Any],
    cell: Cell | None,
    number: int,
    best: Sequence[str],
) -> tuple[str, ...]:
    """The cells of a row: the paper's numbers stand in the first row of a net (`number` 0)."""
    ours = "experiment" in line
    label = line["label"] if number == 0 else f"↳ {cell.label() if cell else ''}"
    facts = [_fact(line["label"], fact) if number == 0 else "" for fact in plan["facts"]]
    figures = [_figures(exhibit, line, q, cell, ours, number) for q in plan["quantities"]]
    return (label, *facts, *itertools.chain(*figures), *_best(plan, cell, ours, best))


def _figures(
    exhibit: str,
    line: Mapping[str, Any],
    quantity: Mapping[str, Any],
    cell: Cell | None,
    ours: bool,
    number: int,
) -> list[str]:
    """Paper, ours and difference of one quantity (ours alone where the paper has no such exhibit)."""
    value, mean = _published(exhibit, line, quantity)
    measured = cell.values(quantity) if cell else []
    told = spell_mean(measured) if measured else (DASH if ours else "")
    if "value" not in quantity:
        return [told]
    reference = mean or value
    known = cell and cell.comparable and measured and reference and reference.std != float("inf")
    gap = (
        f"{statistics.fmean(measured) - reference.value:+.2f}".replace("-", "−")
        if known and reference
        else ""
    )
    return [_spell_paper(value, mean) if number == 0 else "", told, gap]


def _best(plan: Mapping[str, Any], cell: Cell | None, ours: bool, columns: Sequence[str]) -> list[str]:
    if cell is None:
        return [DASH if ours else ""] * len(columns)
    run = cell.best_run(_headline(plan))
    values = {BEST_RUN: DASH if run is None else f"{run:.2f}"}
    values[BEST_SAMPLE] = "" if cell.best_sample is None else f"{cell.best_sample:.2f}"
    return [values[column] for column in columns]


def _headline(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantity that the best run is told by: the first on the held-out set."""
    found: Mapping[str, Any] = next(q for q in plan["quantities"] if q["set"] == "held_out")
    return found


def _fact(label: str, fact: str) -> str:
    number = published().get(("table6", label, fact))
    return "" if number is None else f"{number.value:g}"


def _record(
    exhibit: str, plan: Mapping[str, Any], line: Mapping[str, Any], cell: Cell | None
) -> dict[str, object]:
    """One line of the CSV: raw numbers, empty where there is none."""
    row: dict[str, object] = {"net": line["label"], "run": cell.first.name if cell else ""}
    for quantity in plan["quantities"]:
        key = quantity["name"].replace(" ", "_")
        measured = cell.values(quantity) if cell else []
        if "value" in quantity:
            value, mean = _published(exhibit, line, quantity)
            row[f"{key}_paper"] = "" if value is None or value.std == float("inf") else value.value
            if "mean" in quantity:
                row[f"{key}_paper_mean"] = mean.value if mean else ""
                row[f"{key}_paper_std"] = mean.std if mean else ""
        row[f"{key}_ours"] = round(statistics.fmean(measured), 4) if measured else ""
        row[f"{key}_ours_std"] = round(statistics.stdev(measured), 4) if len(measured) > 1 else ""
        row[f"{key}_measured_on"] = cell.measured_on(quantity) if cell else ""
        if "protocol" in quantity:
            row[f"{key}_protocol"] = quantity["protocol"]
    headline = _headline(plan)
    runs = [run for run, _ in cell.measured(headline)] if cell else []
    row["n"] = len(runs)
    row["seeds"] = " ".join(str(run.seed) for run in runs)
    row["best_run"] = cell.best_run(headline) if cell and runs else ""
    if not _has_protocol(plan):
        row["best_sample"] = cell.best_sample if cell else ""
    row["iterations"] = cell.first.result["iterations"] if cell else ""
    row["departures"] = "; ".join(cell.told(plan["quantities"])) if cell else ""
    return row
