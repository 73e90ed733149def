"""How many seeds it takes to tell two neighbouring nets of an exhibit apart, by the spread seen so far."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resrepro.claims.entries import Net
from resrepro.claims.protocols import Protocol, protocols_of
from resrepro.comparison.cells import SET_NAMES
from resrepro.comparison.selection import FREE_SETTINGS, WARM_UP
from resrepro.comparison.significance import MOST_SEEDS, difference_of, pooled_std, seeds_needed
from resrepro.comparison.statistics_table import Entry, experiments_in, tabulated
from resrepro.comparison.tables import DASH, Table
from resrepro.paper import layout
from resrepro.records import Run
from resrepro.spec.catalogue import twin_on_folder

COLUMNS = ("nets", "error", "gap", "std", "n", "interval", "seeds per net")
UNKNOWN = "cannot be estimated: a spread takes two seeds of each net"
NO_SPREAD = "cannot be estimated: the seeds show no gap, or no spread"
REMARKS = (
    "Gap: the first net's mean error less the second's, in points, at the last iteration; std: of both "
    "nets' seeds, pooled; interval: Welch's at 95 %. Seeds per net: as many of each as a two-sided t "
    "test at 5 % needs to tell such a gap at such a spread from chance in 80 of 100 cases. From few "
    "seeds both are rough guesses: with two or three the answer may be off by several times.",
)


def build_power(exhibit: str, runs: Sequence[Run]) -> Table:
    """For each neighbouring pair of an exhibit's nets that have runs under one protocol the seeds needed.

    Raises:
        UsageError: for an exhibit that is not of single nets.
    """
    entries: list[Entry] = []
    for protocol, pair, quantity in _pairs(exhibit, runs):
        values = [protocol.cells[net].values(quantity) for net in pair.values()]
        told = [note for note in (protocol.told, protocol.left_out_told) if note]
        record = _record(*values)
        if record["seeds_needed"] == "":
            told.append(UNKNOWN if min(map(len, values)) < 2 else NO_SPREAD)
        name = _quantity_name(quantity, protocol)
        head = {"nets": ", ".join(pair), "error": name, "runs": protocol.name}
        entries.append(((head["nets"], name, *_texts(record)), told, head | record))
    return tabulated(
        f"{exhibit}-power",
        f"Power in {exhibit}: seeds that tell two neighbouring nets apart",
        COLUMNS,
        entries,
        REMARKS if entries else ("There are no two nets with finished runs under one protocol.",),
    )


def _pairs(exhibit: str, runs: Sequence[Run]) -> Iterator[tuple[Protocol, dict[str, Net], Mapping[str, Any]]]:
    """Neighbours among the plain, or the residual, nets that have values of a quantity, by protocol."""
    nets = {label: Net(name) for label, name in experiments_in(exhibit).items()}
    names = {name for net in nets.values() for name in (net.experiment, twin_on_folder(net.experiment))}
    own = [run for run in runs if run.experiment in names]
    quantities = layout(exhibit)["quantities"]
    sampled = any(quantity["set"] == "train" for quantity in quantities)  # by the sample before
    for protocol in protocols_of(tuple(nets.values()), own, WARM_UP if sampled else FREE_SETTINGS):
        for quantity in quantities:
            measured = {
                label: net
                for label, net in nets.items()
                if net in protocol.cells and protocol.cells[net].values(quantity)
            }
            for pair in itertools.pairwise(measured.items()):
                if len({net.spec.plain for _, net in pair}) == 1:
                    yield protocol, dict(pair), quantity


def _quantity_name(quantity: Mapping[str, Any], protocol: Protocol) -> str:
    """What an error is called; one measured while training by the set that these runs were measured on."""
    if quantity["set"] == "train" or "protocol" in quantity:
        return str(quantity["name"]).removesuffix(" error")
    return SET_NAMES[protocol.first.headline_split]


def _record(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """One pair as raw numbers; empty where there is none."""
    gap, std = statistics.fmean(first) - statistics.fmean(second), pooled_std(first, second)
    estimate = difference_of(first, second)
    low, high = estimate.interval() if estimate else ("", "")
    needed = seeds_needed(gap, std) if std else None
    return {
        "gap": gap,
        "std": "" if std is None else std,
        "n_first": len(first),
        "n_second": len(second),
        "low": low,
        "high": high,
        "seeds_needed": f">{MOST_SEEDS}" if needed is None and gap and std else needed or "",
    }


def _texts(record: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = record["low"], record["high"]
    texts = (
        f"{record['gap']:+.2f}",
        f"{record['std']:.2f}" if record["std"] != "" else DASH,
        f"{record['n_first']}, {record['n_second']}",
        f"{low:.2f} to {high:.2f}" if low != "" else DASH,
        str(record["seeds_needed"]) or DASH,
    )
    return tuple(text.replace("-", "−") for text in texts)
