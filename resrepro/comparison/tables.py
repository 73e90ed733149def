"""The paper's rows beside ours: run records in, tables out.

Runs share a cell only if they are identical but for the seed, and a table only if they follow one protocol
(`comparison.groups`). Errors are those of the last iteration; "best run" and "best sample" stand in columns
of their own.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison.groups import (
    RULE,
    SET_NAMES,
    Protocol,
    Quantity,
    SeedGroup,
    data_told,
    protocols_of,
    runs_of,
    unfinished,
)
from resrepro.comparison.table import (
    DASH,
    GAPS,
    NONE,
    Notes,
    Row,
    Table,
    eval_command,
    spell_mean,
    train_command,
)
from resrepro.comparison.tables_1_and_5 import table_5
from resrepro.paper import Number, layouts, published
from resrepro.records import Run
from resrepro.records.reading import Ensemble
from resrepro.spec import catalogue

PAPER, OURS, DIFFERENCE = "paper", "ours", "difference"
MEAN = "Ours: mean ± standard deviation (n runs; n−1 in the deviation) of the last-iteration error."
SAMPLE = "at any sampling point, chosen on the very set it is measured on, hence optimistic"
ASSUMED = (
    "Where the paper is silent we assume: `resrepro list <experiment>` marks each setting as stated, "
    "derived or assumed."
)
TRAINING_ERROR = "Training error: on the batches trained on since the sample before."
NO_DIFFERENCE = (
    "No difference is given for shortened runs, and for errors on other images, or crops of another size, "
    "than the paper's."
)
SHORTENED = "Runs of the paper's length are made by:"
APART = "iterations", "mode", "split"  # by which protocols are told apart first
Plan = Mapping[str, Any]
"""An exhibit's entry in layouts.toml, with its `name`."""
Line = Mapping[str, Any]
"""One of its rows."""


def build(
    exhibit: str, runs: Sequence[Run], ensembles: Sequence[Ensemble] = (), *, every: bool = False
) -> Table:
    """The table of an exhibit of layouts.toml from runs (and for Table 5 ensembles) that were read already.

    Of the runs the one protocol is shown that RULE chooses; with `every` those of all protocols, each in rows
    of its own below the net's.
    """
    plan = {"name": exhibit, **layouts()[exhibit]}
    if "members" in plan:
        return table_5(plan, runs, ensembles)
    nets = {line["label"]: line["experiment"] for line in plan["rows"] if "experiment" in line}
    protocols = protocols_of({label: runs_of([experiment], runs) for label, experiment in nets.items()})
    shown = protocols[0] if protocols else None
    notes, rows, records = Notes(), [], []
    for line in plan["rows"]:
        for number, group in enumerate(_groups_of(line["label"], protocols, every)):
            told = group.caveats(plan["quantities"]) if group else []
            told += [line["note"]] if number == 0 and "note" in line else []
            section = line.get("section") if number == 0 else None
            cells = tuple(cell for _, cell in _fields(plan, line, group, number))
            rows.append(Row(cells, notes.number(told), section))
            records.append(_record(plan, line, group))
    gaps = tuple(_missing(plan, nets, shown))
    longer: tuple[tuple[str, str], ...] = ()  # of the nets shown without a run of full length
    for label in shown.groups if shown else ():
        groups = [each.groups[label] for each in protocols if label in each.groups]
        if all(group.first.status == "shortened" for group in groups):
            longer += ((label, train_command(nets[label])),)
    left_out = unfinished(runs_of(nets.values(), runs))
    return Table(
        name=exhibit,
        title=plan["title"].format(data=data_told(shown.first if shown else None)),
        columns=tuple(heading for heading, _ in _fields(plan, plan["rows"][0], None)),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=gaps or longer,
        lead=GAPS if gaps or not longer else SHORTENED,
        remarks=tuple(_remarks(plan, left_out, protocols, every)),
        records=tuple(records),
    )


def _groups_of(label: str, protocols: Sequence[Protocol[str]], every: bool) -> list[SeedGroup | None]:
    """The group of a net that is shown, None where it has none, and with `every` all its others."""
    shown = protocols[0].groups.get(label) if protocols else None
    known = [
        group
        for protocol in protocols
        if every and label in protocol.groups
        for group in (protocol.groups[label], *protocol.doubles[label])
    ]
    return [shown, *(group for group in known if group is not shown)]


def _fields(plan: Plan, line: Line, group: SeedGroup | None, number: int = 0) -> list[tuple[str, str]]:
    """A row by its headings: the paper's numbers and our shown group, or (`number` above 0) another one.

    Of several quantities with a paper's value each has its own three columns; of a single one the paper's
    value comes first, and the difference last.
    """
    label = line["label"]
    if group and number:  # what sets it apart, in a word or two: `2,000 it. (fast)`
        run = group.first
        label = f"↳ {run.result['iterations']:,} it." if run.status == "shortened" else "↳ whole"
        label += "" if run.env["mode"] == "default" else f" ({run.env['mode']})"
    fields = [("net", label)]
    for fact in plan["facts"]:
        known = None if number else published().get(("table6", line["label"], fact))
        fields.append((fact.replace("params_M", "params (M)"), f"{known.value:g}" if known else ""))
    single = sum("value" in quantity for quantity in plan["quantities"]) == 1
    figures = []
    for quantity in plan["quantities"]:
        name, ours = quantity["name"], _ours(line, quantity, group)
        if "value" not in quantity:
            figures.append((name, ours))
            continue
        paper, gap = _paper_and_difference(plan, line, quantity, group)
        figures.append((PAPER if single else f"{name}: {PAPER}", "" if number else paper))
        figures += [(name if single else OURS, ours), (DIFFERENCE, gap)]
    if single:
        figures.sort(key=lambda field: (field[0] == DIFFERENCE, field[0] != PAPER))
    if plan.get("best"):
        best = sample = DASH if "experiment" in line else ""
        if group:
            lowest = min(group.values(_headline(plan, group)), default=None)
            best = DASH if lowest is None else f"{lowest:.2f}"
            sample = "" if group.best_sample is None else f"{group.best_sample:.2f}"
        figures += [("best run", best), ("best sample", sample)]
    return fields + figures


def _published(plan: Plan, line: Line, quantity: Quantity) -> tuple[Number | None, Number | None]:
    """The paper's single value (of infinite std where it only says "higher than") and its mean."""
    numbers = published()
    source = line.get("published_in", plan.get("of", plan["name"]))
    found = (numbers.get((source, line["label"], metric)) for metric in quantity.get("value", ()))
    value = next((number for number in found if number is not None), None)
    if value is None and (bound := numbers.get(("sec4.2-text", line["label"], "err_lower_bound"))):
        return Number(bound.value, math.inf), None
    return value, numbers.get((source, line["label"], quantity.get("mean", "")))


def _paper_and_difference(
    plan: Plan, line: Line, quantity: Quantity, group: SeedGroup | None
) -> tuple[str, str]:
    """`6.43 (6.61±0.16)` and `+0.01`, ours less the paper's mean (its value where it gives no mean)."""
    value, mean = _published(plan, line, quantity)
    if value is None or value.std == math.inf:
        return "" if value is None else f">{value.value:g}", ""
    paper = f"{value.value:.2f}" + (f" ({mean.value:.2f}±{mean.std:.2f})" if mean and mean.std else "")
    measured = group.values(quantity) if group and group.comparable else []
    if not measured:
        return paper, ""
    gap = round(statistics.fmean(measured) - (mean or value).value, 2) + 0.0
    return paper, f"{gap:+.2f}".replace("-", "−")


def _ours(line: Line, quantity: Quantity, group: SeedGroup | None) -> str:
    """Our mean, a dash where it is missing, nothing where there is none to measure."""
    if group is None:
        return DASH if "experiment" in line else ""
    if values := group.values(quantity):
        return spell_mean(values)
    return DASH if group.set_of(quantity) in group.first.env["data"]["images"] else ""


def _headline(plan: Plan, group: SeedGroup) -> Quantity:
    """The quantity that the best run is told by: the first on a held-out set that was measured."""
    held_out: list[Quantity] = [quantity for quantity in plan["quantities"] if quantity["set"] != "train"]
    return next((quantity for quantity in held_out if group.values(quantity)), held_out[0])


def _missing(plan: Plan, nets: Mapping[str, str], shown: Protocol[str] | None) -> Iterable[tuple[str, str]]:
    """What fills the gaps: training under the shown protocol, and evaluating."""
    for label, experiment in nets.items():
        group = shown.groups.get(label) if shown else None
        if shown is None:
            yield label, train_command(experiment)
        elif group is None:
            seeds = min(len(each.runs) for each in shown.groups.values())
            yield label, shown.command(experiment, {}, seeds)
        else:
            lacking = [(group.lacking(q), q.get("protocol")) for q in plan["quantities"]]
            wanted = [eval_command(runs, name) for runs, name in lacking if runs]
            # Published records have no checkpoint: who has none makes one.
            published = group.first.folder.parents[1].name == "results"
            train = [shown.command(experiment, {}, len(group.runs))] * published
            yield from ((label, " && ".join([*train, command])) for command in dict.fromkeys(wanted))


def _remarks(
    plan: Plan, left_out: Sequence[str], protocols: Sequence[Protocol[str]], every: bool
) -> Iterable[str]:
    """The sentences below the notes."""
    quantities = plan["quantities"]
    groups = [group for protocol in protocols[: None if every else 1] for group in protocol.groups.values()]
    if protocols:
        shown, *others = protocols
        yield f"Runs shown: {shown.name} ({shown.size}). Rule: {RULE}."
        if others:
            told = "; ".join(f"{other.name} ({other.size})" for other in others)
            settings = [(key, one.first.setting(key)) for key in APART for one in others]
            differing = [f"{key}={own}" for key, own in settings if own not in ("", shown.first.setting(key))]
            example = next(iter(differing), "KEY=VALUE")
            more = "" if every else " `--all` shows every run."
            yield f"Not shown: {told}. `--settings {example}` shows such runs.{more}"
    if left_out:
        yield f"Not in the table: {', '.join(left_out)}."
    if any(quantity["set"] == "train" for quantity in quantities):
        yield TRAINING_ERROR
    has_paper = any("value" in quantity for quantity in quantities)
    if has_paper and any(not group.comparable for group in groups):
        yield NO_DIFFERENCE
    yield from plan.get("remarks", ())
    for name in dict.fromkeys(quantity["protocol"] for quantity in quantities if "protocol" in quantity):
        yield catalogue.protocols()[name].assumptions()
    if plan.get("best") and groups:
        name, part = _headline(plan, groups[0])["name"], SET_NAMES[groups[0].first.headline_split]
        best = f"Best run: the lowest {name} of a run. Best sample: the lowest {part} error {SAMPLE}."
        yield f"{MEAN} {best}"
    else:
        yield MEAN
    yield ASSUMED


def _record(plan: Plan, line: Line, group: SeedGroup | None) -> dict[str, object]:
    """One line of the CSV: raw numbers, NaN where there is none."""
    row: dict[str, object] = {"net": line["label"], "run": group.first.name if group else ""}
    for quantity in plan["quantities"]:
        key = quantity["name"].replace(" ", "_")
        measured = group.values(quantity) if group else []
        if "value" in quantity:
            value, mean = _published(plan, line, quantity)
            row[f"{key}_paper"] = NONE if value is None or value.std == math.inf else value.value
            if "mean" in quantity:
                row[f"{key}_paper_mean"] = mean.value if mean else NONE
                row[f"{key}_paper_std"] = mean.std if mean and mean.std is not None else NONE
        row[f"{key}_ours"] = round(statistics.fmean(measured), 4) if measured else NONE
        row[f"{key}_ours_std"] = round(statistics.stdev(measured), 4) if len(measured) > 1 else NONE
        row[f"{key}_measured_on"] = group.set_of(quantity) if group and measured else ""
        if "protocol" in quantity:
            row[f"{key}_protocol"] = quantity["protocol"]
    headline = group.measured(_headline(plan, group)) if group else []
    row["n"] = len(headline)
    row["seeds"] = " ".join(str(run.seed) for run, _ in headline)
    row["best_run"] = min((value for _, value in headline), default=NONE)
    if plan.get("best"):
        row["best_sample"] = group.best_sample if group and group.best_sample is not None else NONE
    row["iterations"] = group.first.result["iterations"] if group else NONE
    row["departures"] = "; ".join(group.caveats(plan["quantities"])) if group else ""
    return row
