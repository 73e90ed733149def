"""How one test of a claim comes out under one protocol.

Every test asks whether a number lies in a region: a mean in the claimed range, a difference of means above 0,
or within a margin of it. Over seeds the number is known up to an interval (Student's t, Welch's for a
difference, two-sided). The test holds if the 95 % interval lies in the region, fails if the interval lies
outside of it, and is undecided otherwise, as it is for fewer than two seeds, and where a seed is missing
because it diverged or was not measured.

A claim holds only if all of its comparisons do, which makes no error more likely than each alone; but it
fails if a single one does, so the level of the failing interval is raised by Bonferroni's rule.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from resrepro.claims.comparing import (
    ABOVE,
    FAILED,
    HELD,
    UNDECIDED,
    Comparison,
    Seeds,
    range_told,
    seeds_of,
    state_of,
    strict_level,
    together,
    told_of,
)
from resrepro.claims.entries import Check, Net
from resrepro.claims.measures import MEASURES, Measure
from resrepro.claims.protocols import command_under, paper_command
from resrepro.comparison.groups import FREE_SETTINGS, SET_NAMES, Protocol, iterations_of
from resrepro.comparison.statistics import LEVEL, difference_of, seeds_needed
from resrepro.records import Run

SEEDS = 5  # as many as the paper trained of ResNet-110
MOST_SEEDS_ASKED = 100
PARTS = 10  # of a run, in each of which "throughout" wants a sample
Values = Mapping[Net, Seeds]


@dataclass(frozen=True)
class Outcome:
    """How a test came out.

    Attributes:
        state: "held", "failed" or "undecided".
        ours: our values in words, one by one.
        told: its comparisons with their intervals, and what keeps them from deciding.
        missing: nets without runs.
        unmeasured: nets, or seeds of them, that were not evaluated as the test needs it.
        single: nets of which there is one seed only, so that their spread is not known.
        commands: what would decide it.
    """

    state: str
    ours: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    missing: tuple[Net, ...] = ()
    unmeasured: tuple[str, ...] = ()
    single: tuple[Net, ...] = ()
    commands: tuple[str, ...] = ()


def try_out(test: Check, protocol: Protocol[Net] | None, comparisons: int) -> Outcome:
    """The outcome of a test on the runs of a protocol, None if there are none.

    `comparisons` is how many its claim makes in all.
    """
    by_the_paper = tuple(paper_command(net, SEEDS) for net in test.nets)
    if protocol is None:
        return Outcome(UNDECIDED, missing=test.nets, commands=by_the_paper)
    if why := _what_it_needs(test, protocol):
        return Outcome(UNDECIDED, told=(why,), commands=by_the_paper)
    measure = MEASURES[test.measure]
    present = {
        net: seeds_of(measure, protocol.groups[net], protocol.held_out, protocol.left_out.get(net, ()))
        for net in test.nets
        if net in protocol.groups
    }
    values = {net: seeds for net, seeds in present.items() if seeds.values}
    judge = _throughout if test.kind == "throughout" else _by_means
    tried = judge(test, protocol, values, comparisons)
    missing = tuple(net for net in test.nets if net not in present)
    lacking = {net: seeds.lacking for net, seeds in present.items() if seeds.lacking}
    commands = (
        *(command_under(protocol, net, SEEDS) for net in missing),
        *(_measuring(measure, protocol, net, runs) for net, runs in lacking.items()),
        *tried.commands,
    )
    whole = len(values) == len(test.nets)
    return Outcome(
        state=tried.state if whole or tried.state == FAILED else UNDECIDED,
        ours=tuple(_ours(measure, net, seeds) for net, seeds in values.items()),
        told=tried.told,
        missing=missing,
        unmeasured=tuple(_seeds_told(net, runs, net in values) for net, runs in lacking.items()),
        single=tried.single,
        commands=tuple(dict.fromkeys(commands)),
    )


def _ours(measure: Measure, net: Net, seeds: Seeds) -> str:
    """`ResNet-110 400±20 (3)`, and how many of these runs never got there."""
    return f"{net.label} {measure.spell(seeds.values)}" + (f", {seeds.never} never" if seeds.never else "")


def _seeds_told(net: Net, runs: Sequence[Run], named: bool) -> str:
    """A net, and which of its seeds where not all are meant."""
    if not named:
        return net.label
    plural = "s" if len(runs) > 1 else ""
    return f"{net.label} seed{plural} {', '.join(str(run.seed) for run in runs)}"


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


def _measuring(measure: Measure, protocol: Protocol[Net], net: Net, runs: Sequence[Run]) -> str:
    """The command that measures what some runs of a net lack."""
    if measure.command is None:  # training records it, so these runs have none of it to record
        return command_under(protocol, net, SEEDS)
    return measure.command(runs)


def _comparisons(test: Check, values: Values) -> list[Comparison]:
    if test.kind == "within":
        return [Comparison({net: values[net]}, test.region) for net in test.nets if net in values]
    region = (-test.margin, test.margin) if test.kind == "alike" else ABOVE
    present = [net for net in test.nets if net in values]  # the order of those at hand must hold too
    return [Comparison({net: values[net] for net in pair}, region) for pair in itertools.pairwise(present)]


def _by_means(test: Check, protocol: Protocol[Net], values: Values, comparisons: int) -> Outcome:
    """A test of means: each comparison told, and what more seeds would decide."""
    measure = MEASURES[test.measure]
    states, told, commands, single = [], [], [], []
    for each in _comparisons(test, values):
        state = each.state(comparisons)
        words = told_of(each, state, measure)
        if state == UNDECIDED:
            why, seeds = _undecided(each, measure, comparisons)
            words += why
            pairs = list(zip(each.nets, each.counts, strict=True))
            single += [net for net, count in pairs if count < 2 and not values[net].open]
            commands += [command_under(protocol, net, seeds) for net, count in pairs if seeds > count]
        states.append(state)
        told.append(words)
    return Outcome(
        together(states), told=tuple(told), single=tuple(dict.fromkeys(single)), commands=tuple(commands)
    )


def _undecided(each: Comparison, measure: Measure, comparisons: int) -> tuple[str, int]:
    """Why a comparison is undecided, and how many seeds per net would help; 0 if none can be named."""
    if any(seeds.open for seeds in each.seeds.values()):
        diverged = [
            _seeds_told(net, seeds.diverged, True) for net, seeds in each.seeds.items() if seeds.diverged
        ]
        return f": undecided without {', '.join(diverged)}, which diverged" if diverged else "", 0
    if min(each.counts) < 2:
        return "", SEEDS  # one sentence tells it of all nets
    if each.estimate is None:
        return ": the seeds show no spread, so there is no test", 0
    never = any(each.unbounded)
    stricter = f", but not beyond the stricter interval of {100 * strict_level(comparisons):.4g} %"
    if each.region != ABOVE:
        told = range_told(each.region, measure, measure.digits)
        if each.other_way(comparisons):
            return f": not {told}{stricter}", max(SEEDS, 2 * max(each.counts))
        if never:
            return f": not {told} while runs never get there", 0
        return f": the interval does not decide whether it is {told}", max(SEEDS, 2 * max(each.counts))
    if never and each.unbounded[0]:
        return ": runs of the net that should be earlier never get there", 0
    other = each.other_way(comparisons)
    told = f": the other way{stricter}" if other else ": within the spread over seeds"
    return _seeds_asked(each, told, strict_level(comparisons) if other else LEVEL)


def _seeds_asked(each: Comparison, told: str, level: float) -> tuple[str, int]:
    """The same words with the number of seeds that tell such a gap apart, and that number."""
    wanted = seeds_needed(each.value, each.std, level=level)
    if wanted is None or wanted > MOST_SEEDS_ASKED:
        return f"{told}; such a gap takes more than {MOST_SEEDS_ASKED} seeds per net", 0
    wanted = max(wanted, *(count + 1 for count in each.counts))
    return f"{told}; such a gap takes about {wanted} seeds per net", wanted


def _throughout(test: Check, protocol: Protocol[Net], values: Values, comparisons: int) -> Outcome:
    """A test of two curves: their means over the whole run by Welch's test, and no stretch the other way.

    A stretch is the mean of `window` samples in a row that all runs have. It speaks against the claim where
    it is the other way round, and refutes it where that is more than chance would do among so many.
    """
    tried = _by_means(test, protocol, values, comparisons)
    if len(values) < len(test.nets) or any(seeds.open for seeds in values.values()):
        return tried
    nets = [protocol.groups[net].runs for net in test.nets]
    samples = [[run.top1_errors("train") for run in runs] for runs in nets]
    common = sorted(set.intersection(*(set(curve) for curves in samples for curve in curves)))
    if len(common) < test.window or not _covers(common, iterations_of(protocol.first)):
        told = f"sampled too rarely for stretches of {test.window} samples throughout the run"
        densely = replace(protocol, free=FREE_SETTINGS)
        return replace(
            tried,
            state=FAILED if tried.state == FAILED else UNDECIDED,
            told=(*tried.told, told),
            commands=tuple(command_under(densely, net, SEEDS) for net in test.nets),
        )
    upper, lower = (_stretches(curves, common, test.window) for curves in samples)
    above = [statistics.fmean(upper[at]) > statistics.fmean(lower[at]) for at in upper]
    step = max(seeds.resolution for seeds in values.values())
    refuting = [
        state_of(difference_of(upper[at], lower[at], step), ABOVE, comparisons * len(upper)) for at in upper
    ]
    state = tried.state
    if FAILED in refuting:
        state = FAILED
    elif state == HELD and not all(above):
        state = UNDECIDED
    told = f"above at {sum(above)} of {len(above)} stretches of {test.window} samples"
    return replace(tried, state=state, told=(*tried.told, told))


def _covers(samples: Sequence[int], iterations: int) -> bool:
    """Whether no gap between samples, from the first iteration to the last, is longer than a tenth."""
    marks = [0, *samples, iterations]
    return all(end - start <= math.ceil(iterations / PARTS) for start, end in itertools.pairwise(marks))


def _stretches(
    curves: Sequence[Mapping[int, float]], samples: Sequence[int], window: int
) -> dict[int, list[float]]:
    """Training errors of runs, smoothed over `window` of some samples, by the last one's iteration."""
    smooth = [smoothed({at: curve[at] for at in samples}, window) for curve in curves]
    return {at: [curve[at] for curve in smooth] for at in smooth[0]}


def smoothed(curve: Mapping[int, float], window: int) -> dict[int, float]:
    """The means of `window` samples in a row, by the last iteration of each."""
    marks = sorted(curve)
    return {
        marks[end]: statistics.fmean(curve[at] for at in marks[end - window + 1 : end + 1])
        for end in range(window - 1, len(marks))
    }
