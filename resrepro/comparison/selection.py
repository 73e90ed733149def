"""Which runs a figure draws.

Runs share a line only if they are identical but for the seed, and a figure only if they follow one
protocol: the same recipe, data and mode. Nothing here imports torch.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from resrepro.records import Run
from resrepro.spec import catalogue
from resrepro.spec.specs import FAMILIES, net_label

# What nets of one protocol may differ in: the warm-up belongs to the net (Section 4.2), and how often
# we sample does not change what is trained. It does change what is recorded as training error, so verdicts
# on that one keep to one interval of sampling.
WARM_UP = ("warmup_lr", "warmup_until_err", "warmup_window")
FREE_SETTINGS = (*WARM_UP, "eval_every")
Cells = Mapping[str, tuple[Run, ...]]  # by net label


def choose(layout: Mapping[str, Any], runs: Iterable[Run]) -> tuple[Cells, tuple[str, ...]]:
    """The runs that a figure draws, by net, and a sentence on each kind of run that it leaves out.

    Drawn are finished runs with option-A shortcuts of a single protocol: that of the paper-exact runs
    if there are any, else of the dataset that the layout names first, then the one that covers most
    nets, then the longest, then one of which each net has several seeds, then that of fewest changes.
    """
    known = [run for run in runs if run.spec["dataset"] in layout["datasets"] and _has_place(layout, run)]
    unfinished = [run for run in known if not run.finished]
    known = [run for run in known if run.finished]
    shortcuts = [run for run in known if run.spec["shortcut"] not in (None, "A")]
    known = [run for run in known if run.spec["shortcut"] in (None, "A")]
    protocols: dict[str, list[Run]] = {}
    for run in known:
        protocols.setdefault(protocol_of(run), []).append(run)
    chosen = max(sorted(protocols), key=lambda key: _merit(layout, protocols[key]), default="")
    others = [run for run in known if protocol_of(run) != chosen]
    cells, doubles = _one_cell_per_net(protocols.get(chosen, []))
    notes = [
        _note("Not drawn, unfinished", unfinished, with_status=True),
        _note("Not drawn, shortcut option B or C (the figure shows A)", shortcuts),
        _note("Not drawn, trained under other settings or on other data than the nets drawn", others),
        _note("Not drawn, other settings than the runs drawn of the same net", doubles),
    ]
    return cells, tuple(note for note in notes if note)


def iterations_of(run: Run) -> int:
    """The iterations that a run was to make."""
    return int(run.spec["recipe"]["iterations"])


def paper_iterations(layout: Mapping[str, Any]) -> int:
    """The iterations of the paper's recipe for the nets of a figure."""
    return catalogue.paper_recipe(FAMILIES[layout["datasets"][0]]).recipe.iterations


def _has_place(layout: Mapping[str, Any], run: Run) -> bool:
    """Whether some panel shows the run's net."""
    return any(
        run.spec["plain"] == panel["plain"] and run.spec["depth"] in panel.get("depths", [run.spec["depth"]])
        for panel in layout["panels"]
    )


def protocol_of(run: Run, free: Collection[str] = FREE_SETTINGS) -> str:
    """What all runs of one figure, or of one comparison, share: recipe, data, mode and dataset.

    `free` are the settings in which they may differ.
    """
    recipe = {key: value for key, value in run.spec["recipe"].items() if key not in free}
    shared = [recipe, run.env["data"]["sha256"], run.env["mode"], run.spec["dataset"]]
    return json.dumps(shared, sort_keys=True)


def _merit(layout: Mapping[str, Any], runs: Sequence[Run]) -> tuple[bool, int, int, int, bool, int, int]:
    """Rank of a protocol: paper-exact, dataset, nets, iterations, several seeds, few changes, runs."""
    nets = Counter((run.spec["plain"], run.spec["depth"]) for run in runs)
    return (
        any(run.paper_exact for run in runs),
        -layout["datasets"].index(runs[0].spec["dataset"]),
        len(nets),
        iterations_of(runs[0]),
        min(nets.values()) > 1,
        -min(run.name.count("+") for run in runs),
        len(runs),
    )


def _one_cell_per_net(runs: Sequence[Run]) -> tuple[Cells, list[Run]]:
    """For each net its cell (the exact one, else that of most seeds), and the runs of other cells."""
    nets: dict[tuple[bool, int], dict[tuple[str, str, str], list[Run]]] = {}
    for run in runs:
        net = not run.spec["plain"], int(run.spec["depth"])
        nets.setdefault(net, {}).setdefault(run.cell, []).append(run)
    cells: dict[str, tuple[Run, ...]] = {}
    doubles: list[Run] = []
    for (residual, depth), groups in sorted(nets.items()):
        best = max(sorted(groups), key=lambda cell: (groups[cell][0].exact, len(groups[cell])))
        cells[net_label(depth, not residual)] = tuple(sorted(groups[best], key=lambda run: run.seed))
        doubles += [run for cell, group in groups.items() if cell != best for run in group]
    return cells, doubles


def _note(told: str, runs: Sequence[Run], *, with_status: bool = False) -> str:
    names = [
        f"{run.name} seed {run.seed}"
        + (f" ({run.status} at iteration {run.result['iteration']:,})" if with_status else "")
        for run in runs
    ]
    return f"{told}: {', '.join(names)}." if names else ""
