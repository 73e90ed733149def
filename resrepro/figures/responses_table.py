"""Figure 7 in numbers: the paper's responses beside ours, and how evenly gradients reach the layers.

The runs are those that the figure draws. Nothing here imports torch.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from resrepro.comparison.groups import Protocol
from resrepro.comparison.table import DASH, Row, Table
from resrepro.figures.captions import departures_told, lead
from resrepro.figures.choice import Groups
from resrepro.figures.responses import EXHIBIT, measured_on, plan, select
from resrepro.paper import published
from resrepro.records import Run
from resrepro.records.evaluations import Responses
from resrepro.spec import catalogue
from resrepro.spec.experiment import command_for, net_label

TITLE = "Figure 7. Standard deviations of layer responses; the paper's read off its curves (±0.01)"
STD: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "layer 1": ("response_std_layer1", lambda std: std[0]),
    "last": ("response_std_last", lambda std: std[-1]),
    "smallest": ("response_std_min", min),
    "mean": ("response_std_mean_over_layers", statistics.fmean),
    "median": ("response_std_median", statistics.median),
}  # by column: the name that the paper's number has in published.csv, and ours from the layers' std
RATIOS = "ratio: start", "ratio: end"
ROWS = "Of each net the first row is the paper's, ↳ ours: mean ± standard deviation over runs (n−1)."
GRADIENT = (
    "Ratio: the largest of the layers' gradient norms over the smallest, mean over runs, at initialisation "
    "and of the trained net; near 1 all layers get an equally strong gradient. The norm is that of the "
    "gradient of the mean loss with respect to the response, over the first training batch, BN with the "
    "statistics of the batch. The paper gives no numbers."
)


def build(runs: Iterable[Run]) -> Table:
    """The table from runs that were read already."""
    groups, left_out = select(runs)
    nets = [(depth, bool(group["plain"])) for group in plan()["nets"] for depth in group["depths"]]
    ours = {
        net_label(*net): [run.responses for run in _runs(groups, net_label(*net)) if run.responses]
        for net in nets
    }
    told = [measured_on(groups), lead(plan(), groups), departures_told(groups)] if groups else []
    return Table(
        name=EXHIBIT,
        title=TITLE,
        columns=("net", *STD, *RATIOS),
        rows=tuple(row for label, found in ours.items() for row in _rows(label, found)),
        missing=tuple((net_label(*net), _command(*net, groups)) for net in nets if not ours[net_label(*net)]),
        remarks=(ROWS, *filter(None, told), GRADIENT, *left_out),
        records=tuple(_record(label, found) for label, found in ours.items()),
    )


def _rows(label: str, ours: Sequence[Responses]) -> Iterator[Row]:
    """The paper's row and ours."""
    yield Row((label, *(f"{_paper(label, key):.2f}" for key, _ in STD.values()), "", ""))
    std = [_mean([of(each.std) for each in ours]) for _, of in STD.values()]
    yield Row(("↳ ours", *std, *(_whole(ratio) if ours else DASH for ratio in _ratios(ours))))


def _mean(values: Sequence[float]) -> str:
    if not values:
        return DASH
    return f"{statistics.fmean(values):.2f}" + (f"±{statistics.stdev(values):.2f}" if values[1:] else "")


def _whole(ratio: float) -> str:
    """A ratio with a decimal as long as that says something."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def _paper(label: str, metric: str) -> float:
    return published()[EXHIBIT, label, metric].value


def _ratios(ours: Sequence[Responses]) -> tuple[float, float]:
    """The largest over the smallest gradient norm of the layers, at start and end; mean over runs."""
    norms = [[each.gradient_norm_start for each in ours], [each.gradient_norm_end for each in ours]]
    start, end = (statistics.fmean([_ratio(one) for one in group] or [0.0]) for group in norms)
    return start, end


def _ratio(norms: Sequence[float]) -> float:
    """The largest of some norms over the smallest; infinite if one layer gets no gradient at all."""
    return max(norms) / min(norms) if min(norms) > 0 else float("inf")


def _runs(groups: Groups, label: str) -> tuple[Run, ...]:
    return groups[label].runs if label in groups else ()


def _command(depth: int, plain: bool, groups: Groups) -> str:
    """What trains and measures a net as those shown were; as the paper did if there are none."""
    experiment = catalogue.experiment_for("cifar10", depth, plain, None)
    seeds = min((len(group.runs) for group in groups.values()), default=1)
    shown = Protocol(groups)
    spec = shown.spec_for(experiment.name, {}) if groups else experiment.spec()
    train = shown.command(experiment.name, {}, seeds) if groups else command_for(spec)
    folders = " ".join(f"runs/{spec.name}/seed{seed}" for seed in range(seeds))
    return f"{train} && resrepro eval {folders} --responses"


def _record(label: str, ours: Sequence[Responses]) -> dict[str, object]:
    """One net as raw numbers, empty where there is none."""
    row: dict[str, object] = {"net": label}
    for key, of in STD.values():
        row[f"{key}_paper"] = _paper(label, key)
        row[f"{key}_ours"] = round(statistics.fmean(of(each.std) for each in ours), 6) if ours else ""
    for when, ratio_of in zip(("start", "end"), _ratios(ours), strict=True):
        row[f"gradient_ratio_{when}"] = float(f"{ratio_of:.6g}") if ours else ""
    row["n"] = len(ours)
    row["set"] = ours[0].part if ours else ""
    row["images"] = ours[0].images if ours else ""
    return row
