"""The paper's rows beside ours: run records in, tables out.

Errors are those of the last iteration; "best run" and "best sample" stand in columns of their own, and so do
the paper's ensembles and ours: its errors are of the ILSVRC test set, whose labels are not public, ours of
validation images.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison import groups, table
from resrepro.comparison.groups import Protocol, Quantity, SeedGroup
from resrepro.comparison.table import DASH, NONE, Notes, Row, Table, train_command
from resrepro.paper import Number, layouts, published
from resrepro.records import FINISHED, Run
from resrepro.records.reading import Ensemble
from resrepro.spec import catalogue

PAPER, OURS, DIFFERENCE = "paper", "ours", "difference"
MEAN = "Ours: mean ± standard deviation (n runs; n−1 in the deviation) of the last-iteration error."
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
ENSEMBLE_COMMAND = "resrepro eval RUN RUN ... --ensemble --protocol multi_scale --data DIR"
SET = "val"  # of ensembles
NO_ENSEMBLE: dict[str, object] = {
    "ensemble": "", "members": "", "n": NONE, "protocol": "", "bn_stats": "", "top-5_error_paper_test": NONE,
    "top-5_error_ours_val": NONE, "top-1_error_ours_val": NONE, "departures": "",
}  # fmt: skip
Plan = Mapping[str, Any]  # an exhibit's entry in layouts.toml, with its `name`
Line = Mapping[str, Any]  # one of its rows


def build(
    exhibit: str, runs: Sequence[Run], ensembles: Sequence[Ensemble] = (), *, every: bool = False
) -> Table:
    """The table of an exhibit of layouts.toml from runs (and for Table 5 ensembles) that were read already.
    Of the runs the one protocol is shown that `groups.RULE` chooses; with `every` those of all protocols,
    each in rows of its own below the net's.
    """
    plan = {"name": exhibit, **layouts()[exhibit]}
    if "members" in plan:
        return _table_5(plan, runs, ensembles)
    nets = {line["label"]: line["experiment"] for line in plan["rows"] if "experiment" in line}
    members = {label: [run for run in runs if run.experiment == name] for label, name in nets.items()}
    protocols = groups.protocols_of(members)
    shown = protocols[0] if protocols else None
    notes, rows, records = Notes(), [], []
    for line in plan["rows"]:
        label = line["label"]
        own = [shown.groups.get(label) if shown else None]
        for one in protocols if every else ():
            others = [one.groups[label], *one.doubles[label]] if label in one.groups else []
            own += [group for group in others if group is not own[0]]
        for number, group in enumerate(own):
            told = group.caveats(plan["quantities"]) if group else []
            told += [line["note"]] if number == 0 and "note" in line else []
            section = line.get("section") if number == 0 else None
            cells = tuple(cell for _, cell in _fields(plan, line, group, number))
            rows.append(Row(cells, notes.number(told), section))
            records.append(_record(plan, line, group))
    gaps = tuple(_missing(plan, nets, shown))
    whole = {net for one in protocols for net, own in one.groups.items() if own.first.status != "shortened"}
    shortened = [label for label in (shown.groups if shown else ()) if label not in whole]
    left_out = groups.unfinished(run for run in runs if run.experiment in nets.values())
    return Table(
        name=exhibit,
        title=plan["title"].format(data=groups.data_told(shown.first if shown else None)),
        columns=tuple(heading for heading, _ in _fields(plan, plan["rows"][0], None)),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=gaps or tuple((label, train_command(nets[label])) for label in shortened),
        lead=table.GAPS if gaps or not shortened else SHORTENED,
        remarks=tuple(_remarks(plan, left_out, protocols, every)),
        records=tuple(records),
    )


def _fields(plan: Plan, line: Line, group: SeedGroup | None, number: int = 0) -> list[tuple[str, str]]:
    """A row by its headings: the paper's numbers and our shown group, or (`number` above 0) another one."""
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
    absent = DASH if "experiment" in line else ""
    figures = []
    for quantity in plan["quantities"]:
        name, values = quantity["name"], group.values(quantity) if group else []
        there = not group or group.set_of(quantity) in group.first.env["data"]["images"]
        ours = table.spell_mean(values) if values else absent if there else ""
        if "value" not in quantity:
            figures.append((name, ours))
            continue
        comparable = values if group and group.comparable else []
        paper, gap = _paper_and_difference(*_published(plan, line, quantity), comparable)
        figures.append((PAPER if single else f"{name}: {PAPER}", "" if number else paper))
        figures += [(name if single else OURS, ours), (DIFFERENCE, gap)]
    if single:
        figures.sort(key=lambda field: (field[0] == DIFFERENCE, field[0] != PAPER))
    if plan.get("best"):
        lowest = min(group.values(_headline(plan, group)), default=None) if group else None
        sample = group.best_sample if group else None
        figures.append(("best run", absent if lowest is None else f"{lowest:.2f}"))
        figures.append(("best sample", f"{sample:.2f}" if sample is not None else "" if group else absent))
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
    value: Number | None, mean: Number | None, ours: Sequence[float]
) -> tuple[str, str]:
    """`6.43 (6.61±0.16)` and `+0.01`, ours less the paper's mean (its value where it gives no mean)."""
    if value is None or value.std == math.inf:
        return "" if value is None else f">{value.value:g}", ""
    paper = f"{value.value:.2f}" + (f" ({mean.value:.2f}±{mean.std:.2f})" if mean and mean.std else "")
    if not ours:
        return paper, ""
    gap = round(statistics.fmean(ours) - (mean or value).value, 2) + 0.0
    return paper, f"{gap:+.2f}".replace("-", "−")


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
            wanted = [table.eval_command(runs, name) for runs, name in lacking if runs]
            # Published records have no checkpoint: who has none makes one.
            published = group.first.folder.parents[1].name == "results"
            train = [shown.command(experiment, {}, len(group.runs))] * published
            yield from ((label, " && ".join([*train, command])) for command in dict.fromkeys(wanted))


def _remarks(
    plan: Plan, left_out: Sequence[str], protocols: Sequence[Protocol[str]], every: bool
) -> Iterable[str]:
    quantities = plan["quantities"]
    drawn = [group for one in protocols[: None if every else 1] for group in one.groups.values()]
    if protocols:
        shown, *others = protocols
        yield f"Runs shown: {shown.name} ({shown.size}). Rule: {groups.RULE}."
        if others:
            told = "; ".join(f"{other.name} ({other.size})" for other in others)
            settings = ((key, one.first.setting(key)) for key in APART for one in others)
            differing = (f"{key}={own}" for key, own in settings if own not in ("", shown.first.setting(key)))
            more = "" if every else " `--all` shows every run."
            yield f"Not shown: {told}. `--settings {next(differing, 'KEY=VALUE')}` shows such runs.{more}"
    if left_out:
        yield f"Not in the table: {', '.join(left_out)}."
    if any(quantity["set"] == "train" for quantity in quantities):
        yield TRAINING_ERROR
    if any("value" in each for each in quantities) and not all(group.comparable for group in drawn):
        yield NO_DIFFERENCE
    yield from plan.get("remarks", ())
    for name in dict.fromkeys(quantity["protocol"] for quantity in quantities if "protocol" in quantity):
        yield catalogue.protocols()[name].assumptions()
    if plan.get("best") and drawn:
        name, part = _headline(plan, drawn[0])["name"], groups.SET_NAMES[drawn[0].first.headline_split]
        yield (
            f"{MEAN} Best run: the lowest {name} of a run. Best sample: the lowest {part} error at any "
            "sampling point, chosen on the very set it is measured on, hence optimistic."
        )
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


def _table_5(plan: Plan, runs: Sequence[Run], ensembles: Iterable[Ensemble]) -> Table:
    """The paper's ensembles and those of ours in which every net was trained to its end."""
    dataset = plan["members"][0].partition("-")[0]
    reasons = [(ensemble, _why_left_out(ensemble, dataset)) for ensemble in ensembles]
    ours = [ensemble for ensemble, reason in reasons if not reason]
    left_out = [f"the ensemble of {_spell_members(one)} ({reason})" for one, reason in reasons if reason]
    left_out += groups.unfinished(run for run in runs if run.experiment in plan["members"])
    exact = {run.experiment for run in runs if run.finished and run.paper_exact}
    lacking = [name for name in plan["members"] if name not in exact]
    untrained = [(catalogue.find(name).label, train_command(name)) for name in lacking]
    notes, rows, records = Notes(), [], []
    for line in plan["rows"]:
        paper = published()["table5", line["label"], "top5_err"].value
        gap = DASH if line.get("ours") and not ours else ""
        rows.append(Row((line["label"], "", "", f"{paper:.2f}", gap)))
        records.append(NO_ENSEMBLE | {"ensemble": line["label"], "top-5_error_paper_test": paper})
        for ensemble in ours if line.get("ours") else ():
            errors, size, told = ensemble.errors[SET], len(ensemble.members), _ensemble_caveats(ensemble)
            label, error = f"↳ ensemble of {size}", errors["top5_err"]
            rows.append(Row((label, str(size), ensemble.protocol, "", f"{error:.2f}"), notes.number(told)))
            own = {
                "ensemble": label, "members": told[0], "n": size, "protocol": ensemble.protocol,
                "bn_stats": ensemble.bn_stats, "top-5_error_ours_val": error,
                "top-1_error_ours_val": errors["top1_err"], "departures": "; ".join(told),
            }  # fmt: skip
            records.append(NO_ENSEMBLE | own)
    return Table(
        name=plan["name"],
        title=plan["title"].format(data=groups.data_told(ours[0] if ours else None)),
        columns=("ensemble", "nets", "protocol", "top-5 error: paper (test)", "ours (val)"),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=() if ours else (*untrained, ("ensemble", ENSEMBLE_COMMAND)),
        remarks=(*((f"Not in the table: {', '.join(left_out)}.",) if left_out else ()), *plan["remarks"]),
        records=tuple(records),
    )


def _why_left_out(ensemble: Ensemble, dataset: str) -> str:
    if ensemble.data.name != dataset or SET not in ensemble.errors:
        return f"measured on {ensemble.data.name}"
    for member in ensemble.members:
        if member.status not in FINISHED:
            return f"{member.label} is {member.status} at iteration {member.iteration:,}"
    return ""


def _spell_members(ensemble: Ensemble) -> str:
    """`ResNet-34 (B) seed 0, ResNet-152 seeds 0 and 1`."""
    seeds: dict[str, list[str]] = {}
    for member in ensemble.members:
        seeds.setdefault(member.label, []).append(str(member.seed))
    return ", ".join(
        f"{label} seed{'s' * (len(own) > 1)} {' and '.join(own)}" for label, own in seeds.items()
    )


def _ensemble_caveats(ensemble: Ensemble) -> list[str]:
    """The members, and everything that must be said of them and of the data."""
    sentences = [_spell_members(ensemble)]
    for text in dict.fromkeys(text for member in ensemble.members for text in member.told):
        labels = [member.label for member in ensemble.members if text in member.told]
        every = len(labels) == len(ensemble.members)
        sentences.append(text if every else f"{', '.join(dict.fromkeys(labels))}: {text}")
    sentences += groups.not_said_yet(ensemble.data.notices, sentences)
    if ensemble.bn_stats == "precise":
        sentences.append("BN statistics averaged over training batches")
    return list(dict.fromkeys(sentences))
