"""Which runs a figure draws: one seed group per net, all of one protocol. Nothing here imports torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resrepro.comparison.groups import SeedGroup, protocols_of
from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.experiment import net_label
from resrepro.spec.recipe import FAMILIES

ANOTHER = "Not drawn, another protocol"
Groups = Mapping[str, SeedGroup]  # by net label, plain nets first, by depth


def choose(layout: Mapping[str, Any], runs: Iterable[Run]) -> tuple[Groups, tuple[str, ...]]:
    """The runs that a figure draws, by net, and a sentence on each kind of run that it leaves out.

    Drawn are finished runs with option-A shortcuts of the one protocol that `comparison.groups.RULE` chooses.
    """
    known = [run for run in runs if run.spec["dataset"] in layout["datasets"] and _has_place(layout, run)]
    shortcuts = [run for run in known if run.spec["shortcut"] not in (None, "A")]
    members: dict[str, list[Run]] = {}
    for run in sorted(known, key=lambda run: (not run.spec["plain"], run.spec["depth"])):
        if run not in shortcuts:
            members.setdefault(net_label(run.spec["depth"], run.spec["plain"]), []).append(run)
    protocols = protocols_of(members)
    shown, others = (protocols[0], protocols[1:]) if protocols else (None, [])
    doubles = [run for groups in shown.doubles.values() for g in groups for run in g.runs] if shown else []
    notes = [
        _note("Not drawn, unfinished", [run for run in known if not run.finished], with_status=True),
        _note("Not drawn, shortcut option B or C (the figure shows A)", shortcuts),
        *(f"{ANOTHER}: {other.name} ({other.size})." for other in others),
        _note("Not drawn, other settings than the runs drawn of the same net", doubles),
    ]
    groups = {net: shown.groups[net] for net in members if net in shown.groups} if shown else {}
    return groups, tuple(note for note in notes if note)


def paper_iterations(layout: Mapping[str, Any]) -> int:
    """The iterations of the paper's recipe for the nets of a figure."""
    return catalogue.paper_recipe(FAMILIES[layout["datasets"][0]]).recipe.iterations


def first_of(groups: Groups) -> Run:
    """Any of the runs drawn, for what they share."""
    return next(iter(groups.values())).first


def _has_place(layout: Mapping[str, Any], run: Run) -> bool:
    """Whether some panel shows the run's net."""
    return any(
        run.spec["plain"] == panel["plain"] and run.spec["depth"] in panel.get("depths", [run.spec["depth"]])
        for panel in layout["panels"]
    )


def _note(told: str, runs: Sequence[Run], *, with_status: bool = False) -> str:
    names = [
        f"{run.name} seed {run.seed}"
        + (f" ({run.status} at iteration {run.result['iteration']:,})" if with_status else "")
        for run in runs
    ]
    return f"{told}: {', '.join(names)}." if names else ""
