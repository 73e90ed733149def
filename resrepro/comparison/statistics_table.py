"""The ways to give a net's error as one number, side by side: they differ by what was chosen on which set.

Errors are those that training recorded. Nothing here imports torch.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from resrepro.comparison.groups import SeedGroup, iterations_of, seed_groups
from resrepro.comparison.tables import DASH, Row, Table
from resrepro.comparison.wording import SET_NAMES, spell_mean
from resrepro.errors import UsageError
from resrepro.paper import layout, layouts
from resrepro.records import Run
from resrepro.records.collection import Collection
from resrepro.spec import catalogue

Entry = tuple[tuple[str, ...], Sequence[str], dict[str, Any]]
"""A row's cells, what must be said of it, and its raw numbers."""
COLUMNS = ("net", "set", "last", "best run", "best sample", "chosen on validation")
REMARKS = (
    "Last: mean ± standard deviation (n runs) of the last-iteration error, the headline of all other "
    "tables. Best run: the lowest of these. Best sample: the lowest error of any sample of any run. "
    "Both are chosen on the set that they are measured on, hence optimistic.",
    "Chosen on validation: mean ± standard deviation (n runs) of the test error at the sample with the "
    "lowest validation error (the first one of several), for runs that measured both sets (`--split "
    "45k5k`).",
)


def build_statistics(exhibit: str, found: Collection) -> Table:
    """The statistics of all nets of an exhibit that have finished runs, one row per group and set.

    Raises:
        UsageError: for an exhibit that is not of single nets.
    """
    entries: list[Entry] = []
    for label, group in groups_in(exhibit, found.runs):
        for part in _sets(group):
            told = group.caveats([{"set": part}], as_trained=True)
            figures = _figures(group, part)
            record = {"net": label, "run": group.first.name, "set": part, **_numbers(group, figures)}
            entries.append(((label, _set_name(group, part), *_texts(figures)), told, record))
    return tabulated(
        f"{exhibit}-statistics",
        f"Statistics of {exhibit}: error (%) as measured while training, by what is chosen",
        COLUMNS,
        entries,
        (*found.sources, *(REMARKS if entries else ("There are no finished runs of these nets.",))),
    )


def tabulated(
    name: str, title: str, columns: tuple[str, ...], entries: Iterable[Entry], remarks: tuple[str, ...]
) -> Table:
    """A table from its entries; what is told of several of them stands below it once."""
    notes: dict[str, int] = {}
    rows, records = [], []
    for cells, told, record in entries:
        rows.append(Row(cells, tuple(notes.setdefault(note, len(notes) + 1) for note in told)))
        records.append(record)
    return Table(name, title, columns, tuple(rows), tuple(notes), remarks=remarks, records=tuple(records))


def experiments_in(exhibit: str) -> dict[str, str]:
    """The experiments of an exhibit's rows, by the row's label.

    Raises:
        UsageError: for an exhibit that is not of single nets.
    """
    rows = layout(exhibit)["rows"] if exhibit in layouts() else ()
    found = {str(row["label"]): str(row["experiment"]) for row in rows if "experiment" in row}
    if not found:
        known = [name for name, plan in layouts().items() if any("experiment" in row for row in plan["rows"])]
        raise UsageError(f"{exhibit} is not made of runs of single nets; there are {', '.join(known)}.")
    return found


def groups_in(exhibit: str, runs: Sequence[Run]) -> Iterator[tuple[str, SeedGroup]]:
    """The groups of an exhibit's nets with their label, in its order, the longest first."""
    for label, experiment in experiments_in(exhibit).items():
        names = experiment, catalogue.twin_on_folder(experiment)
        groups = seed_groups(run for run in runs if run.experiment in names and run.finished)
        yield from ((label, group) for group in sorted(groups, key=lambda group: -iterations_of(group.first)))


def _set_name(group: SeedGroup, part: str) -> str:
    """`test`, or `test (1,000)` of a test set that is not whole."""
    size = group.first.env["data"]["images"][part]
    partial = part == "test" and not group.first.own_test_is_whole
    return SET_NAMES[part] + (f" ({size:,})" if partial else "")


def _sets(group: SeedGroup) -> list[str]:
    """The held-out sets that a group was measured on, its headline first."""
    others = [part for part in ("val", "test") if group.first.last(part) is not None]
    return list(dict.fromkeys([group.first.headline_split, *others]))


def _figures(group: SeedGroup, part: str) -> Mapping[str, list[float]]:
    """For each seed its last error, its lowest, and the one where the validation error is lowest."""
    curves = [run.top1_errors(part) for run in group.runs]
    chosen = [chosen_on_validation(run) for run in group.runs] if part == "test" else []
    return {
        "last": [error for run in group.runs if (error := run.last(part)) is not None],
        "best_sample": [min(curve.values()) for curve in curves if curve],
        "chosen_on_validation": [error for error in chosen if error is not None],
    }


def chosen_on_validation(run: Run) -> float | None:
    """The test error (percent) at the sample with the lowest validation error, the first of equal ones.

    None for a run that did not measure both sets.
    """
    validation, test = run.top1_errors("val"), run.top1_errors("test")
    common = sorted(validation.keys() & test.keys())
    return test[min(common, key=lambda at: validation[at])] if common else None


def _texts(figures: Mapping[str, list[float]]) -> tuple[str, ...]:
    last, samples, chosen = figures.values()
    return (
        spell_mean(last) if last else DASH,
        f"{min(last):.2f}" if last else DASH,
        f"{min(samples):.2f}" if samples else DASH,
        spell_mean(chosen) if chosen else DASH,
    )


def _numbers(group: SeedGroup, figures: Mapping[str, list[float]]) -> dict[str, Any]:
    last, samples, chosen = figures.values()
    return {
        "n": len(group.runs),
        "seeds": " ".join(str(run.seed) for run in group.runs),
        **_spread("last", last),
        "best_run": min(last, default=""),
        "best_sample": min(samples, default=""),
        **_spread("chosen_on_validation", chosen),
        "last_of_each_seed": " ".join(f"{error:g}" for error in last),
        "departures": "; ".join(group.caveats([{"set": group.first.headline_split}])),
    }


def _spread(name: str, values: Iterable[float]) -> dict[str, Any]:
    found = list(values)
    return {
        name: round(statistics.fmean(found), 4) if found else "",
        f"{name}_std": round(statistics.stdev(found), 4) if len(found) > 1 else "",
    }
