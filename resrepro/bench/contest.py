"""A benchmark held: contestants take turns, round after round, so that noise hits all of them alike.

All children of a net are up and warm before the first round; whoever has no turn waits idle. Each round
begins with another contestant. Nothing here imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from resrepro.bench.children import Child
from resrepro.bench.contestants import Contestant, Plan, check_plan
from resrepro.bench.results import Entry, Outcome, Turn
from resrepro.errors import UsageError
from resrepro.processes import world_size
from resrepro.records.environment import describe_environment
from resrepro.spec.specs import net_label

PEAK_SECONDS = 1.0  # at most, of a turn of the matrix peak


def silent(text: str) -> None:
    """Say nothing of how far the benchmark has come."""


@dataclass
class _Peaks:
    """The machine as its peak's child sees it, and the best that it reached in any round."""

    told: dict[str, Any]
    best: dict[str, float]

    def add(self, reached: Mapping[str, float]) -> None:
        for name, value in reached.items():
            self.best[name] = max(value, self.best.get(name, 0.0))


def hold(plan: Plan, say: Callable[[str], None] = silent) -> Outcome:
    """Measure every contestant of a plan.

    Raises:
        UsageError: if the plan cannot be carried out.
        ResreproError: if a contestant fails; all others are then ended.
    """
    check_plan(plan)
    if world_size() > 1:
        raise UsageError("a benchmark starts its own processes: leave torchrun out.")
    peaks = _Peaks({}, {})
    entries = [entry for depth in plan.depths for entry in _measure_net(plan, depth, peaks, say)]
    known = describe_environment(None)
    machine = {key: known[key] for key in ("cpu", "cores", "system", "commit", "modified")}
    machine |= {"date": known["started"], **known["versions"], **peaks.told}
    return Outcome(plan, machine, tuple(entries), peaks.best)


def _measure_net(plan: Plan, depth: int, peaks: _Peaks, say: Callable[[str], None]) -> list[Entry]:
    """All contestants of one net, and the matrix peak beside them."""
    net, contestants = net_label(depth, plan.plain), plan.contestants(depth)
    with ExitStack() as stack:
        peak_seconds = min(PEAK_SECONDS, plan.seconds)
        say(f"{net}: starting the matrix peak")
        asked = {"part": "peak", "seconds": peak_seconds, **_means(plan)}
        peak = stack.enter_context(Child("the matrix peak", asked))
        peaks.told = peak.told
        children = []
        for contestant in contestants:
            say(f"{contestant.label}: starting")
            children.append(stack.enter_context(_start(plan, contestant)))
        turns: list[list[dict[str, Any]]] = [[] for _ in contestants]
        for number in range(plan.rounds):
            for place in _order(len(contestants), number):
                say(f"{contestants[place].label}: round {number + 1} of {plan.rounds}")
                turns[place].append(children[place].turn(plan.seconds))
            peaks.add(peak.turn(peak_seconds))
        facts = [child.told for child in children]
    return [_entry(*each) for each in zip(contestants, facts, turns, strict=True)]


def _means(plan: Plan) -> dict[str, Any]:
    return {"device": plan.device, "threads": plan.threads}


def _start(plan: Plan, contestant: Contestant) -> Child:
    asked = {"part": "contestant", "contestant": contestant.to_json(), "seconds": plan.seconds}
    return Child(contestant.label, asked | _means(plan))


def _order(count: int, number: int) -> list[int]:
    """The contestants of a round by their number, beginning with another one each time."""
    return [(place + number) % count for place in range(count)]


def _entry(contestant: Contestant, facts: Mapping[str, Any], turns: Sequence[Mapping[str, float]]) -> Entry:
    return Entry(
        contestant,
        tuple(Turn(int(turn["images"]), turn["seconds"]) for turn in turns),
        data_seconds=facts["data_seconds"],
        memory_mib=max(turn["memory_mib"] for turn in turns),
        compile_seconds=facts["compile_seconds"],
        engine=str(facts["engine"]),
    )
