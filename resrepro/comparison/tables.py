"""The paper's rows beside ours: run records in, tables out.

Runs share a cell only if they are identical but for the seed, and a table only if they follow one protocol
(`comparison.groups`). Errors are those of the last iteration; "best run" and "best sample" stand in columns
of their own, and so do the paper's ensembles and ours: its errors are of the ILSVRC test set, whose labels
are not public, ours of validation images.
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
        for number, group in enumerate(_groups_of(line["label"], protocols, every)):
            told = group.caveats(plan["quantities"]) if group else []
            told += [line["note"]] if number == 0 and "note" in line else []
            section = line.get("section") if number == 0 else None
            cells = tuple(cell for _, cell in _fields(plan, line, group, number))
            rows.append(Row(cells, notes.number(told), section))
            records.append(_record(plan, line, group))
    gaps = tuple(_missing(plan, nets, shown))
    longer = []  # of the nets shown without a run of full length
    for label in shown.groups if shown else ():
        firsts = (each.groups[label].first for each in protocols if label in each.groups)
        if all(run.status == "shortened" for run in firsts):
            longer.append((label, train_command(nets[label])))
    left_out = groups.unfinished(run for run in runs if run.experiment in nets.values())
    return Table(
        name=exhibit,
        title=plan["title"].format(data=groups.data_told(shown.first if shown else None)),
        columns=tuple(heading for heading, _ in _fields(plan, plan["rows"][0], None)),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=gaps or tuple(longer),
        lead=table.GAPS if gaps or not longer else SHORTENED,
        remarks=tuple(_remarks(plan, left_out, protocols, every)),
        records=tuple(records),
    )


def _groups_of(label: str, protocols: Sequence[Protocol[str]], every: bool) -> list[SeedGroup | None]:
    """The group of a net that is shown, None where it has none, and with `every` all its others."""
    shown = protocols[0].groups.get(label) if protocols else None
    others = [one for one in protocols if label in one.groups] if every else []
    known = [group for one in others for group in (one.groups[label], *one.doubles[label])]
    return [shown, *(group for group in known if group is not shown)]


def _fields(plan: Plan, line: Line, group: SeedGroup | None, number: int = 0) -> list[tuple[str, str]]:
    """A row by its headings: the paper's numbers and our shown group, or (`number` above 0) another one. Of
    several quantities with a paper's value each has its own three columns; of a single one the paper's value
    comes first, and the difference last.
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
        return table.spell_mean(values)
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
            settings = [(key, one.first.setting(key)) for key in APART for one in others]
            differing = [f"{key}={own}" for key, own in settings if own not in ("", shown.first.setting(key))]
            example = next(iter(differing), "KEY=VALUE")
            more = "" if every else " `--all` shows every run."
            yield f"Not shown: {told}. `--settings {example}` shows such runs.{more}"
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
        records.append(_ensemble_record(line["label"], paper, None))
        for ensemble in ours if line.get("ours") else ():
            error, size = ensemble.errors[SET]["top5_err"], str(len(ensemble.members))
            cells = f"↳ ensemble of {size}", size, ensemble.protocol, "", f"{error:.2f}"
            rows.append(Row(cells, notes.number(_ensemble_caveats(ensemble))))
            records.append(_ensemble_record(cells[0], None, ensemble))
    data = groups.spell_data(ours[0].data.notices, ours[0].data.classes) if ours else groups.spell_data()
    return Table(
        name=plan["name"],
        title=plan["title"].format(data=data),
        columns=("ensemble", "nets", "protocol", "top-5 error: paper (test)", "ours (val)"),
        rows=tuple(rows),
        notes=tuple(notes),
        missing=() if ours else (*untrained, ("ensemble", ENSEMBLE_COMMAND)),
        remarks=(*((f"Not in the table: {', '.join(left_out)}.",) if left_out else ()), *plan["remarks"]),
        records=tuple(records),
    )


def _why_left_out(ensemble: Ensemble, dataset: str) -> str:
    """Why an ensemble has no place in the table of ensembles on a dataset; empty if it has one."""
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
        f"{label} seed{'s' if own[1:] else ''} {' and '.join(own)}" for label, own in seeds.items()
    )


def _ensemble_caveats(ensemble: Ensemble) -> list[str]:
    """The members, and everything that must be said of them and of the data."""
    sentences = [_spell_members(ensemble)]
    for text in dict.fromkeys(text for member in ensemble.members for text in member.told):
        labels = dict.fromkeys(member.label for member in ensemble.members if text in member.told)
        every = all(text in member.told for member in ensemble.members)
        sentences.append(text if every else f"{', '.join(labels)}: {text}")
    data, size = ensemble.data, {SET: ensemble.data.images[SET]}
    sentences += groups.not_said_yet(data.notices, data.classes, size, sentences)
    sentences += groups.about_images(data.classes, size, sentences)
    if ensemble.bn_stats == "precise":
        sentences.append("BN statistics averaged over training batches")
    return list(dict.fromkeys(sentences))


def _ensemble_record(label: str, paper: float | None, ensemble: Ensemble | None) -> dict[str, object]:
    errors = ensemble.errors[SET] if ensemble else {}
    return {
        "ensemble": label,
        "members": _spell_members(ensemble) if ensemble else "",
        "n": len(ensemble.members) if ensemble else NONE,
        "protocol": ensemble.protocol if ensemble else "",
        "bn_stats": ensemble.bn_stats if ensemble else "",
        "top-5_error_paper_test": NONE if paper is None else paper,
        "top-5_error_ours_val": errors.get("top5_err", NONE),
        "top-1_error_ours_val": errors.get("top1_err", NONE),
        "departures": "; ".join(_ensemble_caveats(ensemble)) if ensemble else "",
    }
