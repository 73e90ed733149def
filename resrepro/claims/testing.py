"""How one test of a claim comes out under one protocol.

Every test asks whether a number lies in a region: a mean in the claimed range, a difference of means above 0,
or within a margin of it. Over seeds the number is known up to an interval (Student's t, Welch's for a
difference, two-sided). The test holds if the 95 % interval lies in the region, fails if the interval lies
outside of it, and is undecided otherwise, as it is for fewer than two seeds.

A claim holds only if all of its comparisons do, which makes no error more likely than each alone; but it
fails if a single one does, so the level of the failing interval is raised by Bonferroni's rule.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from resrepro.cells import Cell
from resrepro.claims.entries import Check, Net, Region
from resrepro.claims.measures import MEASURES, Measure
from resrepro.claims.protocols import Protocol, paper_command
from resrepro.records import Run
from resrepro.significance import LEVEL, Estimate, difference_of, mean_of, pooled_std, seeds_needed

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"
SEEDS = 5  # as many as the paper trained of ResNet-110
MOST_SEEDS_ASKED = 100
ABOVE: Region = (0.0, math.inf)
Values = Mapping[Net, Sequence[float]]


@dataclass(frozen=True)
class Outcome:
    """How a test came out.

    Attributes:
        state: "held", "failed" or "undecided".
        ours: our values in words, one by one.
        told: its comparisons with their intervals, and what keeps them from deciding.
        missing: nets without runs.
        unmeasured: nets whose runs were not evaluated as the test needs it.
        single: nets of which there is one seed only, so that their spread is not known.
        commands: what would decide it.
    """

    state: str
    ours: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    missing: tuple[Net, ...] = ()
    unmeasured: tuple[Net, ...] = ()
    single: tuple[Net, ...] = ()
    commands: tuple[str, ...] = ()


def state_of(estimate: Estimate | None, region: Region, comparisons: int) -> str:
    """Whether a number lies in a region, as far as its interval tells."""
    if estimate is None:
        return UNDECIDED
    low, high = estimate.interval(LEVEL)
    if region[0] < low and high < region[1]:
        return HELD
    low, high = estimate.interval(1 - (1 - LEVEL) / comparisons)
    return FAILED if high < region[0] or region[1] < low else UNDECIDED


def try_out(test: Check, protocol: Protocol | None, comparisons: int) -> Outcome:
    """The outcome of a test on the runs of a protocol, None if there are none.

    `comparisons` is how many its claim makes in all.
    """
    by_the_paper = tuple(paper_command(net, SEEDS) for net in test.nets)
    if protocol is None:
        return Outcome(UNDECIDED, missing=test.nets, commands=by_the_paper)
    if why := _what_it_needs(test, protocol):
        return Outcome(UNDECIDED, told=(why,), commands=by_the_paper)
    measure = MEASURES[test.measure]
    present = {net: protocol.cells[net] for net in test.nets if net in protocol.cells}
    values = {net: found for net, cell in present.items() if (found := _read(measure, cell))}
    judge = _throughout if test.kind == "throughout" else _by_means
    tried = judge(test, protocol, values, comparisons)
    missing = tuple(net for net in test.nets if net not in present)
    unmeasured = tuple(net for net in present if net not in values)
    whole = len(values) == len(test.nets)
    commands = (
        *(protocol.command(net, SEEDS) for net in missing),
        *(_measuring(measure, protocol, net) for net in unmeasured),
        *tried.commands,
    )
    return Outcome(
        state=tried.state if whole or tried.state == FAILED else UNDECIDED,
        ours=tuple(f"{net.label} {measure.spell(found)}" for net, found in values.items()),
        told=tried.told,
        missing=missing,
        unmeasured=unmeasured,
        single=tried.single,
        commands=tuple(dict.fromkeys(commands)),
    )


def _read(measure: Measure, cell: Cell) -> list[float]:
    """The values of the runs of a cell that have one."""
    found = (measure.read(run) for run in cell.runs)
    return [value for value in found if value is not None]


def _what_it_needs(test: Check, protocol: Protocol) -> str:
    """Why runs of a protocol cannot decide a test, whatever they say."""
    if "data" in test.needs and not protocol.own_data:
        return "an absolute level of the paper's data: other images do not decide it"
    if "length" in test.needs and not protocol.full_length:
        return "an absolute level at the end of the paper's schedule: a shortened one does not decide it"
    return ""


def _measuring(measure: Measure, protocol: Protocol, net: Net) -> str:
    """The command that measures what the runs of a net lack."""
    if measure.command is None:  # training records it, so these runs have none of it to record
        return protocol.command(net, SEEDS)
    return measure.command(protocol.cells[net].runs)


@dataclass(frozen=True)
class _Comparison:
    """A mean or a difference that is to lie in a region."""

    nets: tuple[Net, ...]
    estimate: Estimate | None
    region: Region

    @property
    def name(self) -> str:
        return " less ".join(net.label for net in self.nets)


def _comparisons(test: Check, values: Values) -> list[_Comparison]:
    if test.kind == "within":
        return [_Comparison((net,), mean_of(values[net]), test.region) for net in test.nets if net in values]
    region = (-test.margin, test.margin) if test.kind == "alike" else ABOVE
    present = [net for net in test.nets if net in values]  # the order of those at hand must hold too
    return [
        _Comparison(pair, difference_of(*(values[net] for net in pair)), region)
        for pair in itertools.pairwise(present)
    ]


def _by_means(test: Check, protocol: Protocol, values: Values, comparisons: int) -> Outcome:
    """A test of means: each comparison told, and what more seeds would decide."""
    measure = MEASURES[test.measure]
    states, told, commands, single = [], [], [], []
    for each in _comparisons(test, values):
        state = state_of(each.estimate, each.region, comparisons)
        words = _told(each, state, measure, values)
        if state == UNDECIDED:
            why, seeds = _undecided(each, values)
            words += why
            single += [net for net in each.nets if len(values[net]) < 2]
            commands += [protocol.command(net, seeds) for net in each.nets if seeds > len(values[net])]
        states.append(state)
        told.append(words)
    return Outcome(
        together(states), told=tuple(told), single=tuple(dict.fromkeys(single)), commands=tuple(commands)
    )


def together(states: Sequence[str]) -> str:
    """Failed if one is, held if all are; nothing at all is undecided."""
    if FAILED in states:
        return FAILED
    return HELD if states and set(states) == {HELD} else UNDECIDED


def _told(each: _Comparison, state: str, measure: Measure, values: Values) -> str:
    """A comparison in words, with its interval: `plain-56 less plain-20 41.7 [39.1, 44.2]`."""
    if each.estimate is None:
        means = [statistics.fmean(values[net]) for net in each.nets]
        value = means[0] - means[1] if len(means) > 1 else means[0]
        return f"{each.name} {measure.number(value)}"
    low, high = each.estimate.interval()
    span = f"[{measure.number(low)}, {measure.number(high)}]"
    verdict = {HELD: "", FAILED: ", the other way", UNDECIDED: ""}[state]
    if state == FAILED and each.region != ABOVE:
        verdict = f", outside {_range(each.region, measure)}"
    return f"{each.name} {measure.number(each.estimate.value)} {span}{verdict}"


def _range(region: Region, measure: Measure) -> str:
    if math.isinf(region[1]):
        return f"above {measure.number(region[0])}"
    return f"{measure.number(region[0])} to {measure.number(region[1])}"


def _undecided(each: _Comparison, values: Values) -> tuple[str, int]:
    """Why a comparison is undecided, and how many seeds per net would help; 0 if none can be named."""
    counts = [len(values[net]) for net in each.nets]
    if min(counts) < 2:
        return "", SEEDS  # one sentence tells it of all nets
    if each.estimate is None:
        return ": the seeds show no spread, so there is no test", 0
    if each.region != ABOVE:
        return ": the interval does not decide", max(SEEDS, 2 * max(counts))
    wanted = seeds_needed(each.estimate.value, pooled_std(*(values[net] for net in each.nets)) or 0)
    told = ": within the spread over seeds"
    if wanted is None or wanted > MOST_SEEDS_ASKED:
        return f"{told}; such a gap takes more than {MOST_SEEDS_ASKED} seeds per net", 0
    wanted = max(wanted, *(count + 1 for count in counts))
    return f"{told}; such a gap takes about {wanted} seeds per net", wanted


def _throughout(test: Check, protocol: Protocol, values: Values, comparisons: int) -> Outcome:
    """A test of two curves: their means over the whole run by Welch's test, and no stretch the other way.

    A stretch is the mean of `window` samples in a row. It speaks against the claim where it is the other
    way round, and refutes it where that is more than chance would do among so many.
    """
    tried = _by_means(test, protocol, values, comparisons)
    if len(values) < len(test.nets):
        return tried
    upper, lower = (_stretches(protocol.cells[net].runs, test.window) for net in test.nets)
    common = sorted(upper.keys() & lower.keys())
    above = [statistics.fmean(upper[at]) > statistics.fmean(lower[at]) for at in common]
    refuting = [
        state_of(difference_of(upper[at], lower[at]), ABOVE, comparisons * len(common)) for at in common
    ]
    state = tried.state
    if FAILED in refuting:
        state = FAILED
    elif state == HELD and not all(above):
        state = UNDECIDED
    told = f"above at {sum(above)} of {len(above)} stretches of {test.window} samples"
    return replace(tried, state=state, told=(*tried.told, told))


def _stretches(runs: Sequence[Run], window: int) -> dict[int, list[float]]:
    """The training errors of runs, each smoothed over `window` samples, by the last iteration of these."""
    found: dict[int, list[float]] = {}
    for run in runs:
        smooth = smoothed(run.top1_errors("train"), window)
        for at, error in smooth.items():
            found.setdefault(at, []).append(error)
    return {at: errors for at, errors in found.items() if len(errors) == len(runs)}


def smoothed(curve: Mapping[int, float], window: int) -> dict[int, float]:
    """The means of `window` samples in a row, by the last iteration of each."""
    marks = sorted(curve)
    return {
        marks[end]: statistics.fmean(curve[at] for at in marks[end - window + 1 : end + 1])
        for end in range(window - 1, len(marks))
    }
