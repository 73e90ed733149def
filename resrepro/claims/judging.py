"""From run records to a verdict on each claim of the paper.

Every test asks whether a number lies in a region: a mean in the claimed range, a difference of means above 0,
or within a margin of it. It holds or fails as its interval over seeds lies inside or outside, else it is
undecided, as it is where seeds are missing. A claim holds if all its comparisons do, and fails if one does.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resrepro.claims import FAILED, HELD, UNDECIDED, UNTESTABLE, Check, Claim, Net, Ruling, Verdict, claims
from resrepro.claims.measures import MEASURES, Measure, Seeds, paper_values, ratios_of, stretches_above
from resrepro.comparison import LEVEL, MOST_SEEDS, Estimate, estimate, groups, seeds_needed, strict_level
from resrepro.comparison.groups import Protocol
from resrepro.records import Run
from resrepro.spec import IMAGENET_IMAGES, catalogue

ABOVE = (0.0, math.inf)  # the region of a claimed direction
STATES = {True: HELD, False: FAILED, None: UNDECIDED}
WHOLE = {"cifar": {"train": 50_000, "test": 10_000}, "imagenet": IMAGENET_IMAGES}  # images by set
SEEDS = 5  # as many as the paper trained of ResNet-110
LACKING = NO_RUNS, UNMEASURED, ONE_SEED = "no runs of", "not measured yet of", "needs more than one seed of"
MOST_DIGITS = 8
FEWEST_SAMPLES = 10  # of a run, for "throughout"


def judge(runs: Sequence[Run]) -> tuple[Verdict, ...]:
    """A verdict on each claim of the paper, in its order."""
    return tuple(verdict_on(claim, runs) for claim in claims())


def verdict_on(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """The verdict on one claim, by the protocol that comes first whatever it says, and by the others."""
    if claim.untestable:
        rulings = [Ruling("", "", UNTESTABLE, claim.untestable)]
    else:
        sampled = any(MEASURES[test.measure].sampled for test in claim.tests)
        members = {net: [run for run in runs if net.has(run)] for net in claim.nets}
        free = groups.WARM_UP if sampled else groups.FREE_SETTINGS
        protocols = groups.protocols_of(members, len(claim.nets), free)
        rulings = [_ruling(claim, protocol) for protocol in protocols] or [_ruling(claim, None)]
    measures = [MEASURES[test.measure] for test in claim.tests]
    quantities = [each.title + (f" ({each.unit})" if each.unit else "") for each in measures]
    values = _joined(claim.tests, [paper_values(test) for test in claim.tests])
    quantity = claim.quantity or "; ".join(dict.fromkeys(quantities))
    paper = "; ".join(filter(None, [values, claim.beside, claim.said]))
    return Verdict(**vars(rulings[0]), claim=claim, quantity=quantity, paper=paper, others=tuple(rulings[1:]))


class Outcome:
    """What came of the tests of a claim so far."""

    def __init__(self, claim: Claim) -> None:
        self.comparisons = claim.comparisons  # in all: the more, the more it takes for one to fail
        self.states: list[str] = []  # of each comparison: held, failed or undecided
        self.lacking: dict[str, list[str]] = {words: [] for words in LACKING}  # of which nets or seeds
        self.commands: list[str] = []  # what would decide it


def _ruling(claim: Claim, protocol: Protocol[Net] | None) -> Ruling:
    """What the runs of a protocol, or no runs at all, say of all tests of a claim together."""
    found = Outcome(claim)
    ours, told = zip(*(_try_out(test, protocol, found) for test in claim.tests), strict=True)
    state = HELD if set(found.states) == {HELD} else FAILED if FAILED in found.states else UNDECIDED
    exact = all(
        run.digest == net.spec.digest and run.env["mode"] == "default" and not run.result["notices"]
        for net, group in (protocol.groups.items() if protocol else ())
        for run in group.runs
    )
    part = protocol.held_out if protocol else "test"
    why = [_joined(claim.tests, told, part)]
    for words, names in found.lacking.items():
        why += [f"{words} {', '.join(dict.fromkeys(names))}"] if names else []
    commands = tuple(dict.fromkeys(found.commands)) if state == UNDECIDED else ()
    without_runs = "none" if claim.nets else "counted on the nets"
    return Ruling(
        protocol.name if protocol else without_runs, _joined(claim.tests, ours, part), state,
        "; ".join(filter(None, why)), _notes(protocol) if protocol else (), commands, exact,
    )  # fmt: skip


def _notes(protocol: Protocol[Net]) -> tuple[str, ...]:
    """What must be said beside a ruling: every departure, and which seeds have no part in it."""
    headline = [{"set": protocol.held_out}]
    caveats = dict.fromkeys(text for group in protocol.groups.values() for text in group.caveats(headline))
    which = "the shortened" if protocol.first.status == "shortened" else "this"
    left_out = [
        f"{net.label} seed {run.seed} ({run.status} at iteration {run.result['iteration']:,})"
        for net, runs in protocol.left_out.items()
        for run in runs
    ]
    notes = [(f"About {which} protocol ({protocol.name}): ", "; ".join(caveats))]
    notes.append(("Left out: ", ", ".join(left_out)))
    return tuple(f"{about}{told}." for about, told in notes if told)


def _joined(tests: Sequence[Check], told: Sequence[Sequence[str]], part: str = "test") -> str:
    """What is told of each test, each thing once, led by its quantity where that is not clear."""
    parts: dict[str, list[str]] = {}
    for test, words in zip(tests, told, strict=True):
        title = MEASURES[test.measure].title.replace("test", groups.SET_NAMES[part])
        parts.setdefault(title, []).extend(words)
    named = len(parts) > 1 or any(MEASURES[test.measure].title not in parts for test in tests)
    return "; ".join(
        (f"{title}: " if named else "") + ", ".join(dict.fromkeys(words))
        for title, words in parts.items()
        if words
    )


def _try_out(
    test: Check, protocol: Protocol[Net] | None, found: Outcome
) -> tuple[Sequence[str], Sequence[str]]:
    """A test on the runs of a protocol, or on the nets as built: our values and its comparisons in words."""
    if test.kind == "count":
        ratios, ours = ratios_of(test)
        inside = all(test.region[0] <= each <= test.region[1] for each in ratios)
        found.states.append(HELD if inside else FAILED)
        return [ours], ["counted on the nets as built"]
    why = _what_it_needs(test, protocol) if protocol else ""
    if protocol is None or why:
        found.states.append(UNDECIDED)
        found.lacking[NO_RUNS] += [] if why else [net.label for net in test.nets]
        found.commands += [net.command(SEEDS) for net in test.nets]
        return [], [why] if why else []
    measure = MEASURES[test.measure]
    present = {net: measure.read_seeds(net, protocol) for net in test.nets if net in protocol.groups}
    measured = {net: seeds for net, seeds in present.items() if seeds.values}
    found.states += [UNDECIDED for net in test.nets if net not in measured]
    found.lacking[NO_RUNS] += [net.label for net in test.nets if net not in present]
    found.commands += [net.command(SEEDS, protocol) for net in test.nets if net not in present]
    for net, seeds in present.items():
        if runs := seeds.lacking:
            found.lacking[UNMEASURED].append(_seeds_told(net, runs) if seeds.values else net.label)
            # what training records, these runs have none of
            found.commands.append(measure.command(runs) if measure.command else net.command(SEEDS, protocol))
    told = _by_means(test, protocol, measured, found)
    if test.kind == "throughout" and len(measured) == len(test.nets):
        told += _throughout(test, protocol, measured, found)
    return [f"{net.label} {measure.spell(seeds)}" for net, seeds in measured.items()], told


def _seeds_told(net: Net, runs: Sequence[Run]) -> str:
    """`plain-34 seeds 2, 3, 4`."""
    return f"{net.label} seed{'s' if len(runs) > 1 else ''} {', '.join(str(run.seed) for run in runs)}"


def _what_it_needs(test: Check, protocol: Protocol[Net]) -> str:
    """Why runs of a protocol cannot decide a test, whatever they say."""
    run = protocol.first
    notices, images = run.result["notices"], run.env["data"]["images"]
    if "data" in test.needs and not protocol.own_data:
        return "an absolute level of the paper's data: other images do not decide it"
    if "data" in test.needs and (notices or images != WHOLE[run.family]):
        sizes = " and ".join(f"{size:,} {groups.SET_NAMES[part]}" for part, size in images.items())
        here = "; ".join(notices) or f"{sizes} images"
        return f"an absolute level of the paper's whole sets, which is not decided here ({here})"
    whole = catalogue.paper_recipe(run.family).recipe.iterations
    if "length" in test.needs and groups.iterations_of(run) < whole:
        return "an absolute level at the end of the paper's schedule: a shortened one does not decide it"
    return ""


class Comparison(NamedTuple):
    """The mean of one net, or that of a first less a second, that is to lie in a region."""

    seeds: Mapping[Net, Seeds]
    region: tuple[float, float]
    comparisons: int  # of its claim
    estimate: Estimate | None  # None where the error of its value is not known
    state: str


def _by_means(
    test: Check, protocol: Protocol[Net], measured: Mapping[Net, Seeds], found: Outcome
) -> list[str]:
    """A test of means: each comparison in words, and what more seeds would decide."""
    measure, told = MEASURES[test.measure], []
    width = 1 if test.kind == "within" else 2
    region = {"within": test.region, "alike": (-test.margin, test.margin)}.get(test.kind, ABOVE)
    nets = list(measured)  # where nets of an order are missing, that of those at hand must hold too
    for start in range(len(nets) - width + 1):
        pair = {net: measured[net] for net in nets[start : start + width]}
        coarsest = max(seeds.resolution for seeds in pair.values())
        mean = estimate([seeds.values for seeds in pair.values()], coarsest)
        opened = any(seeds.open for seeds in pair.values())
        known = None if mean is None or opened else mean.lies_in(*region, found.comparisons)
        found.states.append(STATES[known])
        each = Comparison(pair, region, found.comparisons, mean, STATES[known])
        words = _told(each, measure)
        if known is None:
            why, wanted = _undecided(each, measure)
            words += why
            for net, seeds in pair.items():
                if len(seeds.values) < 2 and not seeds.open:
                    found.lacking[ONE_SEED].append(net.label)
                if wanted > len(seeds.values):
                    found.commands.append(net.command(wanted, protocol))
        told.append(words)
    return told


def _told(each: Comparison, measure: Measure) -> str:
    """A comparison in words, with its interval: `plain-56 less plain-20 41.70 [39.14, 44.26]`."""
    name = " less ".join(net.label for net in each.seeds)
    if each.estimate is None:
        first, *second = (statistics.fmean(seeds.values) for seeds in each.seeds.values())
        return f"{name} {measure.number(first - sum(second))}"
    ends = each.estimate.interval()
    bounds = [bound for bound in each.region if math.isfinite(bound)]
    telling = (
        digits  # that show on which side of a bound the interval ends
        for digits in range(measure.digits, MOST_DIGITS)
        if all(round(end, digits) != round(bound, digits) for end in ends for bound in bounds)
    )
    digits = next(telling, measure.digits)
    low, value, high = (measure.number(number, digits) for number in (ends[0], each.estimate.value, ends[1]))
    told = f"{name} {value} [{low}, {high}]"
    if each.state == UNDECIDED or (each.region, each.state) == (ABOVE, HELD):
        return told
    if each.region == ABOVE:  # of a claimed direction only what contradicts it is told
        return f"{told}, the other way"
    where = _range(each.region, measure, digits)
    if each.state == FAILED:
        where = where.replace("within", "outside") if where.startswith("within") else f"not {where}"
    return f"{told}, {where}"


def _range(region: tuple[float, float], measure: Measure, digits: int) -> str:
    """`below 7.54`, `above 60.00` or `within −0.50 to 0.50`."""
    low, high = (measure.number(end, digits) for end in region)
    if math.isinf(region[0]):
        return f"below {high}"
    return f"above {low}" if math.isinf(region[1]) else f"within {low} to {high}"


def _undecided(each: Comparison, measure: Measure) -> tuple[str, int]:
    """Why a comparison is undecided, and how many seeds per net would help; 0 if none can be named."""
    if any(seeds.open for seeds in each.seeds.values()):
        diverged = [_seeds_told(net, seeds.diverged) for net, seeds in each.seeds.items() if seeds.diverged]
        return f": undecided without {', '.join(diverged)}, which diverged" if diverged else "", 0
    counts = [len(seeds.values) for seeds in each.seeds.values()]
    if min(counts) < 2:
        return "", SEEDS  # one sentence tells it of all nets
    if each.estimate is None:
        return ": the seeds show no spread, so there is no test", 0
    level = strict_level(each.comparisons)
    stricter = f", but not beyond the stricter interval of {100 * level:.4g} %"
    other_way = each.estimate.lies_in(*each.region) is False
    if each.region != ABOVE:
        told = _range(each.region, measure, measure.digits)
        why = f"not {told}{stricter}" if other_way else f"the interval does not decide whether it is {told}"
        return f": {why}", max(SEEDS, 2 * max(counts))
    told = f": the other way{stricter}" if other_way else ": within the spread over seeds"
    wanted = seeds_needed(each.estimate.value, each.estimate.std, level if other_way else LEVEL)
    if wanted is None:
        return f"{told}; such a gap takes more than {MOST_SEEDS} seeds per net", 0
    wanted = max(wanted, max(counts) + 1)
    return f"{told}; such a gap takes about {wanted} seeds per net", wanted


def _throughout(
    test: Check, protocol: Protocol[Net], measured: Mapping[Net, Seeds], found: Outcome
) -> list[str]:
    """Whether one curve is above another at each mean of `window` samples in a row that all runs have."""
    if any(seeds.open for seeds in measured.values()):
        return []
    training = MEASURES[test.measure].training
    curves = [
        [run.top1_errors("train" if training else run.headline_split) for run in protocol.groups[net].runs]
        for net in test.nets
    ]
    common = set.intersection(*(set(curve) for runs in curves for curve in runs))
    means = [{at: statistics.fmean(curve[at] for curve in runs) for at in common} for runs in curves]
    above = stretches_above(means[0], means[1], test.window)
    enough = len(common) >= FEWEST_SAMPLES
    found.states.append(HELD if enough and all(above) else UNDECIDED)
    if not enough:
        return [f"sampled too rarely for stretches of {test.window} samples throughout the run"]
    return [f"above at {sum(above)} of {len(above)} stretches of {test.window} samples"]
