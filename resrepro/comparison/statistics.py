"""What a few seeds can tell, and the ways to give a net's error as one number, side by side.

Student's t for a mean, Welch's for a difference, and how many seeds it takes; all intervals are two-sided.
A `resolution` is the step in which a quantity is measured: seeds that agree may still differ by less than
one step, so their variance counts as at least that of a number rounded to it, a twelfth of its square.
Nothing here imports torch.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resrepro.comparison.groups import SET_NAMES, SeedGroup, iterations_of, runs_of, seed_groups
from resrepro.comparison.table import DASH, Notes, Row, Table, spell_mean
from resrepro.errors import UsageError
from resrepro.paper import layout, layouts
from resrepro.records import Run
from resrepro.records.collection import Collection

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 10_000
COLUMNS = ("net", "set", "last", "best run", "best sample", "chosen on validation")
REMARKS = (
    "Last: mean ± standard deviation (n runs) of the last-iteration error, the headline of all other "
    "tables. Best run: the lowest of these. Best sample: the lowest error of any sample of any run. "
    "Both are chosen on the set that they are measured on, hence optimistic.",
    "Chosen on validation: mean ± standard deviation (n runs) of the test error at the sample with the "
    "lowest validation error (the first one of several), for runs that measured both sets (`--split "
    "45k5k`).",
)


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two: its value, standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided interval of a level, e.g. 0.95."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.value - reach, self.value + reach


def variance_of(values: Sequence[float], resolution: float = 0.0) -> float:
    """The variance of two seeds or more, never below what their resolution leaves open."""
    return max(statistics.variance(values), resolution**2 / 12)


def mean_of(values: Sequence[float], resolution: float = 0.0) -> Estimate | None:
    """The mean of some seeds by Student's t; None for fewer than two, or without spread and resolution."""
    if len(values) < 2 or not (variance := variance_of(values, resolution)):
        return None
    return Estimate(statistics.fmean(values), math.sqrt(variance / len(values)), len(values) - 1)


def difference_of(
    first: Sequence[float], second: Sequence[float], resolution: float = 0.0
) -> Estimate | None:
    """The mean of the first less that of the second by Welch's t, which takes no spreads for equal.

    None if one has fewer than two values, or if there is neither a spread nor a resolution: then there is no
    test.
    """
    if min(len(first), len(second)) < 2:
        return None
    shares = [variance_of(values, resolution) / len(values) for values in (first, second)]
    total = sum(shares)
    if not total:
        return None
    # Welch and Satterthwaite
    parts = [share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)]
    gap = statistics.fmean(first) - statistics.fmean(second)
    return Estimate(gap, math.sqrt(total), total**2 / sum(parts))


def pooled_std(first: Sequence[float], second: Sequence[float], resolution: float = 0.0) -> float | None:
    """The standard deviation of two nets' seeds taken together; None if one has fewer than two."""
    if min(len(first), len(second)) < 2:
        return None
    freedom = len(first) + len(second) - 2
    squares = sum((len(values) - 1) * variance_of(values, resolution) for values in (first, second))
    return math.sqrt(squares / freedom)


def power_of(effect: float, seeds: int, level: float = LEVEL) -> float:
    """How often a two-sided two-sample t test with so many seeds per net tells two nets apart.

    `effect` is their difference in standard deviations (Cohen's d).
    """
    from scipy.special import nctdtr, stdtrit

    freedom = 2 * (seeds - 1)
    shift = abs(effect) * math.sqrt(seeds / 2)
    bound = float(stdtrit(freedom, (1 + level) / 2))
    below = (float(nctdtr(freedom, shift, end)) for end in (bound, -bound))
    missed, reversed_ = (share if math.isfinite(share) else 0.0 for share in below)  # too small: scipy's nan
    return 1 - missed + reversed_


def seeds_needed(gap: float, std: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Seeds per net with which a gap is told from chance (two-sided, at a level) with the given power.

    None if that would take more than `MOST_SEEDS`; a spread of 0 cannot be told from an unknown one.
    """
    if not gap or not std:
        return None
    effect = abs(gap) / std
    low, high = 1, 2  # power rises with seeds: low never suffices, high is doubled until it does
    while power_of(effect, high, level) < power:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, level) >= power else (middle, high)
    return high


def build_statistics(exhibit: str, found: Collection) -> Table:
    """The statistics of all nets of an exhibit that have finished runs, one row per group and set.

    They differ by what was chosen on which set; errors are those that training recorded.

    Raises:
        UsageError: for an exhibit that is not of single nets.
    """
    notes = Notes()
    rows, records = [], []
    for label, group in _groups(exhibit, found.runs):
        for part in _sets(group):
            told = group.caveats([{"set": part}], as_trained=True)
            cells, numbers = _figures(group, part)
            rows.append(Row((label, _set_name(group, part), *cells), notes.number(told)))
            records.append({"net": label, "run": group.first.name, "set": part, **numbers})
    return Table(
        name=f"{exhibit}-statistics",
        title=f"Statistics of {exhibit}: error (%) as measured while training, by what is chosen",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        remarks=(*found.sources, *(REMARKS if rows else ("There are no finished runs of these nets.",))),
        records=tuple(records),
    )


def _groups(exhibit: str, runs: Sequence[Run]) -> Iterator[tuple[str, SeedGroup]]:
    """The groups of an exhibit's nets with their label, in its order, the longest first."""
    rows = layout(exhibit)["rows"] if exhibit in layouts() else ()
    nets = {str(row["label"]): str(row["experiment"]) for row in rows if "experiment" in row}
    if not nets:
        known = [name for name, plan in layouts().items() if any("experiment" in row for row in plan["rows"])]
        raise UsageError(f"{exhibit} is not made of runs of single nets; there are {', '.join(known)}.")
    for label, experiment in nets.items():
        groups = seed_groups(run for run in runs_of([experiment], runs) if run.finished)
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


def chosen_on_validation(run: Run) -> float | None:
    """The test error (percent) at the sample with the lowest validation error, the first of equal ones.

    None for a run that did not measure both sets.
    """
    validation, test = run.top1_errors("val"), run.top1_errors("test")
    common = sorted(validation.keys() & test.keys())
    return test[min(common, key=lambda at: validation[at])] if common else None


def _figures(group: SeedGroup, part: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The cells of a row and its raw numbers: the errors of each seed that are last, lowest, and chosen."""
    last = [error for run in group.runs if (error := run.last(part)) is not None]
    samples = [min(curve.values()) for run in group.runs if (curve := run.top1_errors(part))]
    chosen = [
        error for run in group.runs if part == "test" and (error := chosen_on_validation(run)) is not None
    ]
    cells = (
        spell_mean(last) if last else DASH,
        f"{min(last):.2f}" if last else DASH,
        f"{min(samples):.2f}" if samples else DASH,
        spell_mean(chosen) if chosen else DASH,
    )
    return cells, {
        "n": len(group.runs),
        "seeds": " ".join(str(run.seed) for run in group.runs),
        **_mean_and_std("last", last),
        "best_run": min(last, default=""),
        "best_sample": min(samples, default=""),
        **_mean_and_std("chosen_on_validation", chosen),
        "last_of_each_seed": " ".join(f"{error:g}" for error in last),
        "departures": "; ".join(group.caveats([{"set": group.first.headline_split}])),
    }


def _mean_and_std(name: str, values: Sequence[float]) -> Mapping[str, Any]:
    return {
        name: round(statistics.fmean(values), 4) if values else "",
        f"{name}_std": round(statistics.stdev(values), 4) if len(values) > 1 else "",
    }
