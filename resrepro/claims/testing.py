"""How one test of a claim comes out under one protocol.

Every test asks whether a number lies in a region: a mean in the claimed range, a difference of means above 0,
or within a margin of it. Over seeds the number is known up to an interval (Student's t, Welch's for a
difference, two-sided). The test holds if the 95 % interval lies in the region, fails if the interval lies
outside of it, and is undecided otherwise, as it is for fewer than two seeds, and where a seed is missing
because it diverged or was not measured. Where some seeds did not get as far as the measure asks (a level that
a run never reached), theirs is a lower bound, so the interval is open to that side.

A claim holds only if all of its comparisons do, which makes no error more likely than each alone; but it
fails if a single one does, so the level of the failing interval is raised by Bonferroni's rule.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from resrepro.claims import Check, Net, Region
from resrepro.claims.measures import (
    MEASURES,
    Measure,
    Seeds,
    counted,
    projection_ratios,
    smoothed,
    spell_ratio,
)
from resrepro.comparison.groups import FREE_SETTINGS, SET_NAMES, Protocol, iterations_of
from resrepro.comparison.statistics import LEVEL, Estimate, difference_of, mean_of, pooled_std, seeds_needed
from resrepro.records import Run
from resrepro.spec.architecture import architectures

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"
ABOVE: Region = (0.0, math.inf)
SEEDS = 5  # as many as the paper trained of ResNet-110
MOST_SEEDS_ASKED = 100
LACKING = NO_RUNS, UNMEASURED, ONE_SEED = "no runs of", "not measured yet of", "needs more than one seed of"
MOST_DIGITS = 8
PARTS = 10  # of a run, in each of which "throughout" wants a sample


@dataclass(frozen=True)
class Outcome:
    """How a test came out.

    Attributes:
        state: "held", "failed" or "undecided".
        ours: our values in words, one by one.
        told: its comparisons with their intervals, and what keeps them from deciding.
        lacking: one of LACKING, and the net or the seeds of it that it is said of.
        commands: what would decide it.
    """

    state: str
    ours: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    lacking: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A mean, or the difference of two, that is to lie in a region."""

    seeds: Mapping[Net, Seeds]
    region: Region

    @property
    def name(self) -> str:
        """`plain-56`, or `plain-56 less plain-20`."""
        return " less ".join(net.label for net in self.seeds)

    @property
    def values(self) -> list[tuple[float, ...]]:
        """The values of the net, or of the two in their order."""
        return [seeds.values for seeds in self.seeds.values()]

    @property
    def open(self) -> bool:
        """Whether seeds are missing whose values could turn a verdict."""
        return any(seeds.open for seeds in self.seeds.values())

    @property
    def value(self) -> float:
        """The mean, or the first one's less the second one's."""
        first, *second = map(statistics.fmean, self.values)
        return first - sum(second)

    @property
    def step(self) -> float:
        """The resolution of the values, the coarser one of two nets."""
        return max(seeds.resolution for seeds in self.seeds.values())

    @property
    def estimate(self) -> Estimate | None:
        """The value with its error; None if that is not known."""
        first, *second = self.values
        return difference_of(first, second[0], self.step) if second else mean_of(first, self.step)

    @property
    def unbounded(self) -> tuple[bool, bool]:
        """Whether the value may lie below, and above, any interval: as runs of one net never got there."""
        first, *second = (seeds.never > 0 for seeds in self.seeds.values())
        return any(second), first

    def state(self, comparisons: int) -> str:
        """Whether it lies in the region, as one of so many comparisons of a claim."""
        if self.open:
            return UNDECIDED
        return state_of(self.estimate, self.region, comparisons, self.unbounded)


def state_of(
    estimate: Estimate | None, region: Region, comparisons: int, unbounded: tuple[bool, bool] = (False, False)
) -> str:
    """Whether a number lies in a region, as far as its interval tells; `unbounded` ends of it are open."""
    if estimate is None:
        return UNDECIDED
    low, high = _interval(estimate, LEVEL, unbounded)
    if (region[0] < low or region[0] == -math.inf) and (high < region[1] or region[1] == math.inf):
        return HELD
    low, high = _interval(estimate, strict_level(comparisons), unbounded)
    return FAILED if high < region[0] or region[1] < low else UNDECIDED


def _interval(estimate: Estimate, level: float, unbounded: tuple[bool, bool]) -> Region:
    low, high = estimate.interval(level)
    return -math.inf if unbounded[0] else low, math.inf if unbounded[1] else high


def strict_level(comparisons: int) -> float:
    """The level of the interval by which one of several comparisons fails (Bonferroni)."""
    return 1 - (1 - LEVEL) / comparisons


def together(states: Sequence[str]) -> str:
    """Failed if one is, held if all are; nothing at all is undecided."""
    if FAILED in states:
        return FAILED
    return HELD if set(states) == {HELD} else UNDECIDED


def count(test: Check) -> Outcome:
    """The outcome of a test of kind `count`: exact, so it either holds or fails."""
    low, high = test.region
    if test.measure == "work_with_projection":
        net = architectures()[test.of]
        ratios = projection_ratios(net)
        ends = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
        told = f"{net.label} {' to '.join(ends)}"
    else:
        both = counted(test.measure, test.of), counted(test.measure, test.over)
        ratios = [both[0][1] / both[1][1]]
        told = spell_ratio(*both)
    state = HELD if all(low <= ratio <= high for ratio in ratios) else FAILED
    return Outcome(state, ours=(told,), told=("counted on the nets as built",))


def try_out(test: Check, protocol: Protocol[Net] | None, comparisons: int) -> Outcome:
    """The outcome of a test on the runs of a protocol, None if there are none.

    `comparisons` is how many its claim makes in all.
    """
    as_the_paper = tuple(net.command(SEEDS) for net in test.nets)
    if protocol is None:
        no_runs = tuple((NO_RUNS, net.label) for net in test.nets)
        return Outcome(UNDECIDED, lacking=no_runs, commands=as_the_paper)
    if why := _what_it_needs(test, protocol):
        return Outcome(UNDECIDED, told=(why,), commands=as_the_paper)
    measure = MEASURES[test.measure]
    present = {net: measure.read_seeds(net, protocol) for net in test.nets if net in protocol.groups}
    measured = {net: seeds for net, seeds in present.items() if seeds.values}
    judge = _throughout if test.kind == "throughout" else _by_means
    tried = judge(test, protocol, measured, comparisons)
    lacking, commands = [], []
    for net in test.nets:
        if net not in present:
            lacking.append((NO_RUNS, net.label))
            commands.append(net.command(SEEDS, protocol))
    for net, seeds in present.items():
        if runs := seeds.lacking:
            lacking.append((UNMEASURED, _seeds_told(net, runs) if seeds.values else net.label))
            # what training records, these runs have none of
            commands.append(measure.command(runs) if measure.command else net.command(SEEDS, protocol))
    return replace(
        tried,
        state=together([tried.state, *(UNDECIDED for net in test.nets if net not in measured)]),
        ours=tuple(
            f"{net.label} {measure.spell(seeds.values)}" + (f", {seeds.never} never" if seeds.never else "")
            for net, seeds in measured.items()
        ),
        lacking=(*lacking, *tried.lacking),
        commands=tuple(dict.fromkeys((*commands, *tried.commands))),
    )


def _seeds_told(net: Net, runs: Sequence[Run]) -> str:
    """`plain-34 seeds 2, 3, 4`."""
    return f"{net.label} seed{'s' if len(runs) > 1 else ''} {', '.join(str(run.seed) for run in runs)}"


def _what_it_needs(test: Check, protocol: Protocol[Net]) -> str:
    """Why runs of a protocol cannot decide a test, whatever they say."""
    if "data" in test.needs and not protocol.own_data:
        return "an absolute level of the paper's data: other images do not decide it"
    if "data" in test.needs and not protocol.whole_data:
        sizes = protocol.first.env["data"]["images"].items()
        images = ", ".join(f"{size:,} {SET_NAMES[part]} images" for part, size in sizes)
        here = "; ".join(protocol.first.result["notices"]) or images
        return f"an absolute level of the paper's whole sets, which is not decided here ({here})"
    if "length" in test.needs and not protocol.full_length:
        return "an absolute level at the end of the paper's schedule: a shortened one does not decide it"
    return ""


def _by_means(
    test: Check, protocol: Protocol[Net], measured: Mapping[Net, Seeds], comparisons: int
) -> Outcome:
    """A test of means: each comparison told, and what more seeds would decide."""
    measure = MEASURES[test.measure]
    width = 1 if test.kind == "within" else 2
    region = {"within": test.region, "alike": (-test.margin, test.margin)}.get(test.kind, ABOVE)
    nets = list(measured)  # where nets of an order are missing, that of those at hand must hold too
    states, told, commands, lacking = [], [], [], []
    for start in range(len(nets) - width + 1):
        each = Comparison({net: measured[net] for net in nets[start : start + width]}, region)
        state = each.state(comparisons)
        words = _told(each, state, measure)
        if state == UNDECIDED:
            why, wanted = _undecided(each, measure, comparisons)
            words += why
            for net, seeds in each.seeds.items():
                if len(seeds.values) < 2 and not seeds.open:
                    lacking.append((ONE_SEED, net.label))
                if wanted > len(seeds.values):
                    commands.append(net.command(wanted, protocol))
        states.append(state)
        told.append(words)
    return Outcome(together(states), told=tuple(told), lacking=tuple(lacking), commands=tuple(commands))


def _told(each: Comparison, state: str, measure: Measure) -> str:
    """A comparison in words, with its interval: `plain-56 less plain-20 41.70 [39.14, 44.26]`."""
    if each.estimate is None:
        return f"{each.name} {measure.number(each.value)}"
    low, high = _interval(each.estimate, LEVEL, each.unbounded)
    digits = _digits((low, high), each.region, measure)
    first = "(−∞" if math.isinf(low) else f"[{measure.number(low, digits)}"
    last = "∞)" if math.isinf(high) else f"{measure.number(high, digits)}]"
    told = f"{each.name} {measure.number(each.value, digits)} {first}, {last}"
    if state == UNDECIDED or (each.region, state) == (ABOVE, HELD):
        return told
    if each.region == ABOVE:  # of a claimed direction only what contradicts it is told
        return f"{told}, the other way"
    where = _range(each.region, measure, digits)
    if state == FAILED:
        where = where.replace("within", "outside") if where.startswith("within") else f"not {where}"
    return f"{told}, {where}"


def _digits(ends: Region, region: Region, measure: Measure) -> int:
    """Decimals that show on which side of its region's bounds an interval ends."""
    pairs = [pair for pair in itertools.product(ends, region) if all(map(math.isfinite, pair))]
    for digits in range(measure.digits, MOST_DIGITS):
        if all(round(end, digits) != round(bound, digits) for end, bound in pairs):
            return digits
    return measure.digits


def _range(region: Region, measure: Measure, digits: int) -> str:
    """`below 7.54`, `above 60.00` or `within −0.50 to 0.50`."""
    low, high = (measure.number(end, digits) for end in region)
    if math.isinf(region[1]):
        return f"above {low}"
    return f"below {high}" if math.isinf(region[0]) else f"within {low} to {high}"


def _undecided(each: Comparison, measure: Measure, comparisons: int) -> tuple[str, int]:
    """Why a comparison is undecided, and how many seeds per net would help; 0 if none can be named."""
    if each.open:
        diverged = [_seeds_told(net, seeds.diverged) for net, seeds in each.seeds.items() if seeds.diverged]
        return f": undecided without {', '.join(diverged)}, which diverged" if diverged else "", 0
    counts = [len(values) for values in each.values]
    if min(counts) < 2:
        return "", SEEDS  # one sentence tells it of all nets
    if each.estimate is None:
        return ": the seeds show no spread, so there is no test", 0
    level = strict_level(comparisons)
    stricter = f", but not beyond the stricter interval of {100 * level:.4g} %"
    other_way = state_of(each.estimate, each.region, 1, each.unbounded) == FAILED
    if each.region != ABOVE:
        told = _range(each.region, measure, measure.digits)
        if other_way:
            return f": not {told}{stricter}", max(SEEDS, 2 * max(counts))
        if any(each.unbounded):
            return f": not {told} while runs never get there", 0
        return f": the interval does not decide whether it is {told}", max(SEEDS, 2 * max(counts))
    if each.unbounded[0]:
        return ": runs of the net that should be earlier never get there", 0
    told = f": the other way{stricter}" if other_way else ": within the spread over seeds"
    first, *second = each.values
    std = pooled_std(first, second[0] if second else first, each.step) or 0.0
    wanted = seeds_needed(each.value, std, level=level if other_way else LEVEL)
    if wanted is None or wanted > MOST_SEEDS_ASKED:
        return f"{told}; such a gap takes more than {MOST_SEEDS_ASKED} seeds per net", 0
    wanted = max(wanted, max(counts) + 1)
    return f"{told}; such a gap takes about {wanted} seeds per net", wanted


def _throughout(
    test: Check, protocol: Protocol[Net], measured: Mapping[Net, Seeds], comparisons: int
) -> Outcome:
    """A test of two curves: their means over the whole run by Welch's test, and no stretch the other way.

    A stretch is the mean of `window` samples in a row that all runs have. It speaks against the claim where
    it is the other way round, and refutes it where that is more than chance would do among so many.
    """
    tried = _by_means(test, protocol, measured, comparisons)
    if len(measured) < len(test.nets) or any(seeds.open for seeds in measured.values()):
        return tried
    curves = [[run.top1_errors("train") for run in protocol.groups[net].runs] for net in test.nets]
    common = sorted(set.intersection(*(set(curve) for runs in curves for curve in runs)))
    iterations = iterations_of(protocol.first)
    longest_gap = max(end - start for start, end in itertools.pairwise([0, *common, iterations]))
    if len(common) < test.window or longest_gap > math.ceil(iterations / PARTS):
        told = f"sampled too rarely for stretches of {test.window} samples throughout the run"
        densely = replace(protocol, free=FREE_SETTINGS)
        return replace(
            tried,
            state=together([tried.state, UNDECIDED]),
            told=(*tried.told, told),
            commands=tuple(net.command(SEEDS, densely) for net in test.nets),
        )
    upper, lower = (
        [smoothed({at: curve[at] for at in common}, test.window) for curve in runs] for runs in curves
    )
    step = max(seeds.resolution for seeds in measured.values())
    above, states = [], []
    for at in upper[0]:
        first, second = [curve[at] for curve in upper], [curve[at] for curve in lower]
        above.append(statistics.fmean(first) > statistics.fmean(second))
        gap = difference_of(first, second, step)
        states.append(state_of(gap, ABOVE, comparisons * len(upper[0])))
    other_way = FAILED if FAILED in states else HELD if all(above) else UNDECIDED
    told = f"above at {sum(above)} of {len(above)} stretches of {test.window} samples"
    return replace(tried, state=together([tried.state, other_way]), told=(*tried.told, told))
