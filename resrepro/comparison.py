"""The paper's rows beside ours: run records in, tables out. Nothing here imports torch.

Runs share a cell, a mean or a standard deviation only if they are identical but for the seed. Errors
are those of the last iteration; "best run" and "best sample" stand in columns of their own.
"""

import itertools
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrepro import catalogue
from resrepro.paper import Number, layout, published
from resrepro.records import DEFAULT_FOLDERS, Run, collect
from resrepro.tables import DASH, Row, Table, write_table

REMARKS = (
    "Ours: mean ± standard deviation (n runs; n−1 in the deviation) of the last-iteration error. "
    "Best run: the lowest last-iteration error of a run. Best sample: the lowest error at any "
    "sampling point, chosen on the very set it is measured on, hence optimistic.",
    "Where the paper is silent we assume: `resrepro protocol <experiment>` marks each setting as "
    "stated, derived or assumed.",
)
TRAINING_ERROR = "Training error: on the batches trained on since the sample before."


@dataclass(frozen=True)
class Cell:
    """Runs that are identical but for the seed."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any of them, for what they share."""
        return self.runs[0]

    def values(self, quantity: Mapping[str, Any]) -> list[float]:
        """The last-iteration error of each run, in percent."""
        found = [run.last(self.measured_on(quantity)) for run in self.runs]
        return [value for value in found if value is not None]

    def measured_on(self, quantity: Mapping[str, Any]) -> str:
        """The set of a quantity: "train", or the set of the headline error."""
        return "train" if quantity["set"] == "train" else self.first.headline_split

    @property
    def best_run(self) -> float:
        """The lowest headline error of a run."""
        return min(self.values({"set": "held_out"}))

    @property
    def best_sample(self) -> float | None:
        """The lowest sampled headline error of any run."""
        return min((run.best for run in self.runs if run.best is not None), default=None)

    @property
    def exact(self) -> bool:
        """Whether it may stand in the paper's own cell."""
        return all(run.paper_exact for run in self.runs)

    def label(self) -> str:
        """What sets this cell apart from the experiment, in a word or two."""
        if self.first.exact:
            data = self.first.env["mode"] == "default"
            return (
                "other data"
                if data and self.first.result["notices"]
                else "set apart"
                if data
                else "other mode"
            )
        return "shortened" if self.first.status == "shortened" else "other settings"

    def told(self) -> list[str]:
        """Everything that must be said beside its numbers."""
        sentences = [*self.first.result["departures"], *self.first.result["notices"]]
        sentences += [text for run in self.runs for text in run.result["departures"] if text not in sentences]
        if self.first.headline_split == "val":
            size = self.first.env["data"]["images"]["val"]
            sentences.append(f"error on the {size:,} validation images, not on the test set")
        if self.first.env["mode"] != "default":
            sentences.append(f"trained in mode {self.first.env['mode']}")
        return sentences


def cells_of(experiment: str, runs: Iterable[Run]) -> list[Cell]:
    """The finished runs of an experiment, grouped; paper-exact first, then the longest."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.experiment == experiment and run.finished:
            groups.setdefault(run.cell, []).append(run)
    cells = [Cell(tuple(sorted(group, key=lambda run: run.seed))) for group in groups.values()]
    return sorted(
        cells,
        key=lambda cell: (
            not cell.exact,
            -cell.first.result["iterations"],
            -len(cell.runs),
            cell.first.name,
            cell.first.cell,
        ),
    )


class _Notes:
    """Sentences, numbered in the order in which they are first needed."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, sentences: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.numbers.setdefault(text, len(self.numbers) + 1) for text in sentences)


def build(exhibit: str, runs: Sequence[Run]) -> Table:
    """The table of an exhibit from runs that were read already.

    Raises:
        UsageError: for an unknown exhibit.
    """
    plan = layout(exhibit)
    quantities = plan["quantities"]
    with_paper = any("value" in quantity for quantity in quantities)
    notes = _Notes()
    rows: list[Row] = []
    missing: list[tuple[str, str]] = []
    records: list[dict[str, object]] = []
    for line in plan["rows"]:
        name = line.get("experiment")
        cells = cells_of(name, runs) if name else []
        exact = cells[0] if cells and cells[0].exact else None
        if name and exact is None:
            missing.append((line["label"], _command(name)))
        section = line.get("section")
        for number, cell in enumerate([exact, *(cell for cell in cells if cell is not exact)]):
            told = notes.number(cell.told()) if cell else ()
            label = line["label"] if number == 0 else f"↳ {cell.label() if cell else ''}"
            facts = [_fact(line["label"], fact) if number == 0 else "" for fact in plan["facts"]]
            figures = [_figures(exhibit, line, q, cell, bool(name), number) for q in quantities]
            best = _best(cell, bool(name))
            rows.append(
                Row(
                    (label, *facts, *itertools.chain(*figures), *best), told, section if number == 0 else None
                )
            )
            records.append(_record(exhibit, plan, line, cell))
    training = (TRAINING_ERROR,) if any(quantity["set"] == "train" for quantity in quantities) else ()
    columns = ["net", *(fact.replace("params_M", "params (M)") for fact in plan["facts"])]
    for quantity in quantities:
        title = quantity["name"]
        columns += [f"{title}: paper", "ours", "difference"] if with_paper else [title]
    return Table(
        name=exhibit,
        title=plan["title"],
        columns=(*columns, "best run", "best sample"),
        rows=tuple(rows),
        notes=tuple(notes.numbers),
        missing=tuple(missing),
        remarks=(*_unused(plan, runs), *training, *REMARKS),
        records=tuple(records),
    )


def compare(
    exhibit: str = "table6",
    runs: str | Path | Sequence[str | Path] = DEFAULT_FOLDERS,
    tables: str | Path | None = "tables",
) -> Table:
    """Set our runs beside the paper's numbers.

    Args:
        exhibit: "table6", "figure1", "figure6" or "demo".
        runs: one or several folders of runs; a broken record gives a `UserWarning`.
        tables: folder to which `<exhibit>.md`, `.csv` and `.tex` are written; None writes nothing.

    Returns:
        The table; `.frame` holds its raw numbers.

    Raises:
        UsageError: for an unknown exhibit.
        RecordError: if the tables cannot be written.
    """
    folders = [runs] if isinstance(runs, str | Path) else runs
    collection = collect([Path(folder) for folder in folders])
    for sentence in collection.broken:
        warnings.warn(sentence, stacklevel=2)
    table = build(exhibit, collection.runs)
    if tables is not None:
        write_table(table, Path(tables))
    return table


def _command(experiment: str) -> str:
    found = catalogue.find(experiment)
    seeds = found.seeds
    return catalogue.command_for(found.spec()) + (
        f" --seeds {seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else ""
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
    known = measured and reference and reference.std != float("inf")
    gap = (
        f"{statistics.fmean(measured) - reference.value:+.2f}".replace("-", "−")
        if known and reference
        else ""
    )
    return [_spell_paper(value, mean) if number == 0 else "", told, gap]


def spell_mean(values: Sequence[float]) -> str:
    """`6.61±0.16 (5)`, or `6.61 (1)` for a single run."""
    spread = f"±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def _best(cell: Cell | None, ours: bool) -> list[str]:
    if cell is None:
        return [DASH, DASH] if ours else ["", ""]
    sample = cell.best_sample
    return [f"{cell.best_run:.2f}", "" if sample is None else f"{sample:.2f}"]


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
    row["n"] = len(cell.runs) if cell else 0
    row["seeds"] = " ".join(str(run.seed) for run in cell.runs) if cell else ""
    row["best_run"] = cell.best_run if cell else ""
    row["best_sample"] = cell.best_sample if cell else ""
    row["iterations"] = cell.first.result["iterations"] if cell else ""
    row["departures"] = "; ".join(cell.told()) if cell else ""
    return row


def _unused(plan: Mapping[str, Any], runs: Iterable[Run]) -> tuple[str, ...]:
    """A sentence on runs of this exhibit that are unfinished or diverged."""
    names = {line.get("experiment") for line in plan["rows"]}
    told = [
        f"{run.name} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
        for run in runs
        if run.experiment in names and not run.finished
    ]
    return (f"Not in the table: {', '.join(told)}.",) if told else ()
