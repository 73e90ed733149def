"""The paper's rows beside ours: run records in, tables out. Nothing here imports torch.

Runs share a cell only if they are identical but for the seed, and a table only if they follow one protocol
(`comparison.groups`). Errors are those of the last iteration; "best run" and "best sample" stand in columns
of their own.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison.groups import RULE, SET_NAMES, Protocol, Quantity, SeedGroup, protocols_of, runs_of
from resrepro.comparison.table import DASH, GAPS, Notes, Row, Table, eval_command, spell_mean, train_command
from resrepro.comparison.tables_1_and_5 import table_5, unused
from resrepro.paper import Number, layout, published
from resrepro.records import Run
from resrepro.records.evaluations import Ensemble
from resrepro.spec import catalogue

PAPER, OURS, DIFFERENCE = "paper", "ours", "difference"
BEST_RUN, BEST_SAMPLE = "best run", "best sample"
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
Plan = Mapping[str, Any]
"""An exhibit's entry in layouts.toml."""
Line = Mapping[str, Any]
"""One of its rows."""


def build(
    exhibit: str, runs: Sequence[Run], ensembles: Sequence[Ensemble] = (), *, every: bool = False
) -> Table:
    """The table of an exhibit from runs (and for Table 5 ensembles) that were read already.

    Args:
        exhibit: its name in layouts.toml.
        runs: those read; of them the one protocol is shown that RULE chooses.
        ensembles: those read.
        every: show the runs of all protocols, each in rows of its own below the net's.

    Raises:
        UsageError: for an unknown exhibit.
    """
    plan = layout(exhibit)
    if "members" in plan:
        return table_5(plan, runs, ensembles)
    protocols = _protocols_in(plan, runs)
    shown = protocols[0] if protocols else None
    others = _other_groups(protocols) if every else {}
    notes = Notes()
    rows: list[Row] = []
    records: list[dict[str, object]] = []
    for line in plan["rows"]:
        group = shown.groups.get(line["label"]) if shown else None
        for number, each in enumerate([group, *others.get(line["label"], ())]):
            told = each.caveats(plan["quantities"]) if each else []
            told += [line["note"]] if number == 0 and "note" in line else []
            section = line.get("section") if number == 0 else None
            rows.append(Row(_cells(exhibit, plan, line, each, number), notes.number(told), section))
            records.append(_record(exhibit, plan, line, each))
    return Table(
        name=exhibit,
        title=plan["title"],
        columns=_columns(plan),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=tuple(_missing(plan, shown)),
        lead=GAPS if shown is None or shown.full_length else SHORTENED,
        remarks=tuple(_remarks(plan, runs, protocols, every)),
        records=tuple(records),
    )


def _protocols_in(plan: Plan, runs: Sequence[Run]) -> list[Protocol[str]]:
    """The protocols of an exhibit's nets, by row label, the one that is shown first."""
    members = {}
    for line in plan["rows"]:
        if "experiment" in line:
            members[line["label"]] = runs_of([line["experiment"]], runs)
    return protocols_of(members)


def _other_groups(protocols: Sequence[Protocol[str]]) -> Mapping[str, list[SeedGroup]]:
    """All groups of each net but the one that is shown."""
    others: dict[str, list[SeedGroup]] = {}
    for number, protocol in enumerate(protocols):
        for label, group in protocol.groups.items():
            more = [*([group] if number else []), *protocol.doubles.get(label, ())]
            others.setdefault(label, []).extend(more)
    return others


def _columns(plan: Plan) -> tuple[str, ...]:
    """Facts, the paper's value, ours by quantity, difference; grouped where several have a paper's value."""
    columns = ["net", *(fact.replace("params_M", "params (M)") for fact in plan["facts"])]
    quantities = plan["quantities"]
    if len(_of_paper(plan)) == 1:
        columns += [PAPER, *(quantity["name"] for quantity in quantities), DIFFERENCE]
    else:
        for quantity in quantities:
            name = quantity["name"]
            columns += [f"{name}: {PAPER}", OURS, DIFFERENCE] if "value" in quantity else [name]
    return (*columns, *((BEST_RUN, BEST_SAMPLE) if plan.get("best") else ()))


def _of_paper(plan: Plan) -> list[Quantity]:
    return [quantity for quantity in plan["quantities"] if "value" in quantity]


def _cells(exhibit: str, plan: Plan, line: Line, group: SeedGroup | None, number: int) -> tuple[str, ...]:
    """A row: the paper's numbers and our shown group (`number` 0), or another group of ours below it."""
    label = line["label"] if number == 0 else f"↳ {_set_apart(group)}"
    known = [published().get(("table6", line["label"], fact)) for fact in plan["facts"]]
    facts = [f"{fact.value:g}" if fact and number == 0 else "" for fact in known]
    figures: list[str] = []
    for quantity in plan["quantities"]:
        paper, gap = _paper_and_difference(exhibit, line, quantity, group)
        ours = _ours(line, quantity, group)
        figures += [paper if number == 0 else "", ours, gap] if "value" in quantity else [ours]
    if len(_of_paper(plan)) == 1:
        place = plan["quantities"].index(_of_paper(plan)[0])
        figures.append(figures.pop(place + 2))  # the difference stands last, the paper's value first
        figures.insert(0, figures.pop(place))
    return (label, *facts, *figures, *(_best(plan, line, group) if plan.get("best") else ()))


def _set_apart(group: SeedGroup | None) -> str:
    """What sets a group apart, in a word or two: `2,000 it. (fast)`."""
    if group is None:
        return ""
    run = group.first
    length = f"{run.result['iterations']:,} it." if run.status == "shortened" else "whole"
    return length if run.env["mode"] == "default" else f"{length} ({run.env['mode']})"


def _published(exhibit: str, line: Line, quantity: Quantity) -> tuple[Number | None, Number | None]:
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


def _paper_and_difference(
    exhibit: str, line: Line, quantity: Quantity, group: SeedGroup | None
) -> tuple[str, str]:
    if "value" not in quantity:
        return "", ""
    value, mean = _published(exhibit, line, quantity)
    reference = mean or value
    measured = group.values(quantity) if group and group.comparable else []
    known = measured and reference and reference.std != float("inf")
    gap = round(statistics.fmean(measured) - reference.value, 2) + 0.0 if known and reference else None
    return _spell_paper(value, mean), "" if gap is None else f"{gap:+.2f}".replace("-", "−")


def _ours(line: Line, quantity: Quantity, group: SeedGroup | None) -> str:
    """Our mean, a dash where it is missing, nothing where there is none to measure."""
    if group is None:
        return DASH if "experiment" in line else ""
    if group.values(quantity):
        return spell_mean(group.values(quantity))
    has_set = group.set_of(quantity) in group.first.env["data"]["images"]
    return DASH if has_set else ""


def _best(plan: Plan, line: Line, group: SeedGroup | None) -> tuple[str, str]:
    if group is None:
        return (DASH, DASH) if "experiment" in line else ("", "")
    lowest = min(group.values(_headline(plan, group)), default=None)
    sample = group.best_sample
    return (DASH if lowest is None else f"{lowest:.2f}"), ("" if sample is None else f"{sample:.2f}")


def _headline(plan: Plan, group: SeedGroup) -> Quantity:
    """The quantity that the best run is told by: the first on a held-out set that was measured."""
    held_out: list[Quantity] = [quantity for quantity in plan["quantities"] if quantity["set"] != "train"]
    return next((quantity for quantity in held_out if group.values(quantity)), held_out[0])


def _missing(plan: Plan, shown: Protocol[str] | None) -> Iterable[tuple[str, str]]:
    """What fills the gaps: training, under the shown protocol if that is of full length, and evaluating."""
    for line in (line for line in plan["rows"] if "experiment" in line):
        label, experiment = line["label"], line["experiment"]
        group = shown.groups.get(label) if shown else None
        if group is None and shown and shown.full_length and shown.own_data:
            seeds = min(len(each.runs) for each in shown.groups.values())
            yield label, shown.command(experiment, {}, seeds)
        elif group is None or not group.comparable:
            yield label, train_command(experiment)
        if group:
            lacking = [(group.lacking(q), q.get("protocol")) for q in plan["quantities"]]
            wanted = [
                eval_command(runs, name) for runs, name in lacking if runs and (group.comparable or name)
            ]
            yield from ((label, command) for command in dict.fromkeys(wanted))


def _remarks(
    plan: Plan, runs: Sequence[Run], protocols: Sequence[Protocol[str]], every: bool
) -> Iterable[str]:
    """The sentences below the notes."""
    quantities = plan["quantities"]
    if protocols:
        yield from _protocols_told(protocols, "" if every else "`--all` shows every run.")
    experiments = [line["experiment"] for line in plan["rows"] if "experiment" in line]
    if left_out := unused(experiments, runs):
        yield f"Not in the table: {', '.join(left_out)}."
    if others := _measured_otherwise(experiments, runs, quantities):
        yield f"Measured as well: {'; '.join(others)}."
    if any(quantity["set"] == "train" for quantity in quantities):
        yield TRAINING_ERROR
    groups = [group for protocol in protocols[: None if every else 1] for group in protocol.groups.values()]
    if _of_paper(plan) and any(not group.comparable for group in groups):
        yield NO_DIFFERENCE
    yield from plan.get("remarks", ())
    names = dict.fromkeys(quantity["protocol"] for quantity in quantities if "protocol" in quantity)
    yield from (catalogue.protocols()[name].assumptions() for name in names)
    yield " ".join([MEAN, *(_best_told(plan, groups[0]) if plan.get("best") and groups else ())])
    yield ASSUMED


def _protocols_told(protocols: Sequence[Protocol[Any]], more: str = "") -> Iterable[str]:
    """Which protocol is shown and by which rule, and which others there are."""
    shown, *others = protocols
    yield f"Runs shown: {shown.name} ({shown.size}). Rule: {RULE}."
    if others:
        told = "; ".join(f"{other.name} ({other.size})" for other in others)
        kinds = [
            (key, other.first.setting(key)) for key in ("iterations", "mode", "split") for other in others
        ]
        differing = [f"{key}={value}" for key, value in kinds if value not in ("", shown.first.setting(key))]
        example = next(iter(differing), "KEY=VALUE")
        yield f"Not shown: {told}. `--settings {example}` shows such runs. {more}".strip()


def _best_told(plan: Plan, group: SeedGroup) -> tuple[str, str]:
    name = _headline(plan, group)["name"]
    part = SET_NAMES[group.first.headline_split]
    return f"Best run: the lowest {name} of a run.", f"Best sample: the lowest {part} error {SAMPLE}."


def _record(exhibit: str, plan: Plan, line: Line, group: SeedGroup | None) -> dict[str, object]:
    """One line of the CSV: raw numbers, empty where there is none."""
    row: dict[str, object] = {"net": line["label"], "run": group.first.name if group else ""}
    for quantity in plan["quantities"]:
        key = quantity["name"].replace(" ", "_")
        measured = group.values(quantity) if group else []
        if "value" in quantity:
            value, mean = _published(exhibit, line, quantity)
            row[f"{key}_paper"] = "" if value is None or value.std == float("inf") else value.value
            if "mean" in quantity:
                row[f"{key}_paper_mean"] = mean.value if mean else ""
                row[f"{key}_paper_std"] = mean.std if mean else ""
        row[f"{key}_ours"] = round(statistics.fmean(measured), 4) if measured else ""
        row[f"{key}_ours_std"] = round(statistics.stdev(measured), 4) if len(measured) > 1 else ""
        row[f"{key}_measured_on"] = group.set_of(quantity) if group and measured else ""
        if "protocol" in quantity:
            row[f"{key}_protocol"] = quantity["protocol"]
    headline = group.measured(_headline(plan, group)) if group else []
    row["n"] = len(headline)
    row["seeds"] = " ".join(str(run.seed) for run, _ in headline)
    row["best_run"] = min((value for _, value in headline), default="")
    if plan.get("best"):
        row["best_sample"] = group.best_sample if group and group.best_sample is not None else ""
    row["iterations"] = group.first.result["iterations"] if group else ""
    row["departures"] = "; ".join(group.caveats(plan["quantities"])) if group else ""
    return row


def _measured_otherwise(
    experiments: Iterable[str], runs: Iterable[Run], quantities: Iterable[Quantity]
) -> list[str]:
    """What finished runs have under a quantity's protocol with other BN statistics than their recipe's."""
    protocols = {quantity["protocol"] for quantity in quantities if "protocol" in quantity}
    told = []
    for run in runs_of(experiments, runs):
        own = run.spec["recipe"].get("bn_stats", "running")
        for found in run.evaluations if run.finished else ():
            whole = (found.digest, found.iteration) == (run.digest, run.spec["recipe"]["iterations"])
            if whole and found.protocol in protocols and found.bn_stats != own:
                errors = found.errors[run.headline_split]
                told.append(
                    f"{run.name} seed {run.seed} with {found.bn_stats} BN statistics: {found.protocol} "
                    f"{errors['top1_err']:.2f} top-1, {errors['top5_err']:.2f} top-5"
                )
    return told
