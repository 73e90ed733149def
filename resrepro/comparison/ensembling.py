"""Table 5: the paper's ensembles, and a row for each of ours. Nothing here imports torch.

The paper's errors are of the ILSVRC test set, whose labels are not public; ours are of validation images.
The two therefore stand in columns of their own, without a difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison.tables import DASH, Row, Table
from resrepro.comparison.wording import about_images, not_said_yet, train_command, unused
from resrepro.paper import published
from resrepro.records import FINISHED, Run
from resrepro.records.evaluations import Ensemble, Member
from resrepro.spec import catalogue
from resrepro.spec.recipe import FAMILIES

COLUMNS = ("ensemble", "nets", "protocol", "top-5 error: paper (test)", "ours (val)")
COMMAND = "resrepro eval RUN RUN ... --ensemble --protocol multi_scale --data DIR"
SET = "val"


def table_of_ensembles(
    exhibit: str, plan: Mapping[str, Any], runs: Sequence[Run], ensembles: Iterable[Ensemble]
) -> Table:
    """The table of the paper's ensembles and of those of ours in which every net was trained to its end."""
    ours, reasons = _sorted_out(ensembles, runs)
    notes: dict[str, int] = {}
    rows: list[Row] = []
    records: list[dict[str, object]] = []
    for line in plan["rows"]:
        number = published()[exhibit, line["label"], "top5_err"]
        gap = DASH if line.get("ours") and not ours else ""
        rows.append(Row((line["label"], "", "", f"{number.value:.2f}", gap)))
        records.append(_record(line["label"], number.value, None))
        for ensemble in ours if line.get("ours") else ():
            told = tuple(notes.setdefault(text, len(notes) + 1) for text in _told(ensemble))
            error = f"{ensemble.errors[SET]['top5_err']:.2f}"
            nets = str(len(ensemble.members))
            rows.append(Row((f"↳ ensemble of {nets}", nets, ensemble.protocol, "", error), told))
            records.append(_record(f"↳ ensemble of {nets}", None, ensemble))
    left_out = [*reasons, *unused(plan["members"], runs)]
    return Table(
        name=exhibit,
        title=plan["title"],
        columns=COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        missing=() if ours else tuple(_missing(plan, runs)),
        remarks=(*((f"Not in the table: {', '.join(left_out)}.",) if left_out else ()), *plan["remarks"]),
        records=tuple(records),
    )


def _sorted_out(ensembles: Iterable[Ensemble], runs: Sequence[Run]) -> tuple[list[Ensemble], list[str]]:
    """The ensembles that belong in the table, and what to call the others."""
    ours: list[Ensemble] = []
    reasons: list[str] = []
    for ensemble in ensembles:
        reason = why_left_out(ensemble, runs)
        if reason:
            reasons.append(f"the ensemble of {members_told(ensemble)} ({reason})")
        else:
            ours.append(ensemble)
    return ours, reasons


def why_left_out(ensemble: Ensemble, runs: Sequence[Run]) -> str:
    """Why an ensemble has no place in the table of ensembles; empty if it has one."""
    if FAMILIES.get(ensemble.data.name) != "imagenet" or SET not in ensemble.errors:
        return f"measured on {ensemble.data.name}"
    partial = [member for member in ensemble.members if member.status not in FINISHED]
    if partial:
        return f"{partial[0].label} is {partial[0].status} at iteration {partial[0].iteration:,}"
    different = {(member.name, member.seed, member.digest) for member in ensemble.members}
    if len(different) < len(ensemble.members):
        return "a net is in it twice"
    strange = [member for member in ensemble.members if not _same_data(member, ensemble, runs)]
    return f"measured on other data than those of {strange[0].label}" if strange else ""


def _same_data(member: Member, ensemble: Ensemble, runs: Sequence[Run]) -> bool:
    """Whether it was measured on the validation images of the member's run, where its record is at hand."""
    wanted = member.name, member.seed, member.digest
    known = [run for run in runs if (run.name, run.seed, run.digest) == wanted]
    return not known or any(ensemble.data.same_set(SET, run.env["data"]) for run in known)


def members_told(ensemble: Ensemble) -> str:
    """`ResNet-34 (B) seed 0, ResNet-152 seeds 0 and 1`."""
    seeds: dict[str, list[str]] = {}
    for member in ensemble.members:
        seeds.setdefault(member.label, []).append(str(member.seed))
    return ", ".join(
        f"{label} seed{'s' if len(found) > 1 else ''} {' and '.join(found)}" for label, found in seeds.items()
    )


def _told(ensemble: Ensemble) -> list[str]:
    """The members, and everything that must be said of them and of the data."""
    sentences = [members_told(ensemble)]
    for text in dict.fromkeys(text for member in ensemble.members for text in member.told):
        labels = list(dict.fromkeys(m.label for m in ensemble.members if text in m.told))
        every = all(text in member.told for member in ensemble.members)
        sentences.append(text if every else f"{', '.join(labels)}: {text}")
    data, size = ensemble.data, {SET: ensemble.data.images[SET]}
    sentences += not_said_yet(data.notices, data.classes, size, sentences)
    sentences += about_images(data.classes, size, sentences)
    if ensemble.bn_stats == "precise":
        sentences.append("BN statistics averaged over training batches")
    return list(dict.fromkeys(sentences))


def _missing(plan: Mapping[str, Any], runs: Sequence[Run]) -> Iterable[tuple[str, str]]:
    """What trains the members that have no paper-exact run yet, and what makes an ensemble of them."""
    for name in plan["members"]:
        if not any(run.experiment == name and run.finished and run.paper_exact for run in runs):
            yield catalogue.find(name).label, train_command(name)
    yield "ensemble", COMMAND


def _record(label: str, paper: float | None, ensemble: Ensemble | None) -> dict[str, object]:
    """One line of the CSV: raw numbers, empty where there is none."""
    errors = ensemble.errors[SET] if ensemble else {}
    return {
        "ensemble": label,
        "members": members_told(ensemble) if ensemble else "",
        "n": len(ensemble.members) if ensemble else "",
        "protocol": ensemble.protocol if ensemble else "",
        "bn_stats": ensemble.bn_stats if ensemble else "",
        "top-5_error_paper_test": "" if paper is None else paper,
        "top-5_error_ours_val": errors.get("top5_err", ""),
        "top-1_error_ours_val": errors.get("top1_err", ""),
        "departures": "; ".join(_told(ensemble)) if ensemble else "",
    }
