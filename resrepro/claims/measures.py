"""What a claim measures of a run, and of the paper: one number per run, named in claims.toml.

Errors are top-1 in percent and of the last iteration unless said otherwise. Nothing here imports torch.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resrepro.cells import eval_command, run_folders
from resrepro.paper import Number, curves, layouts, published
from resrepro.records import Run
from resrepro.responses import Responses

RESPONSES_COMMAND = "resrepro responses"
X_UNIT = 10_000  # iterations per unit of the paper's x axes
Reading = Callable[[Run], float | None]


@dataclass(frozen=True)
class Measure:
    """A quantity of a run.

    Attributes:
        title: what to call it.
        read: its value for a run; None if the record does not have it.
        metrics: its names in published.csv, the first that a row has.
        unit: "%" for errors.
        digits: decimals to print.
        command: what fills it in for runs that lack it; None if training always records it.
        level: of a time to an error level: that level in percent, and whether of the training error.
    """

    title: str
    read: Reading
    metrics: tuple[str, ...] = ()
    unit: str = ""
    digits: int = 2
    command: Callable[[Sequence[Run]], str] | None = None
    level: tuple[float, bool] | None = None

    def spell(self, values: Sequence[float]) -> str:
        """`6.61±0.16 (5)`, or `6.61 (1)` for a single run."""
        spread = f"±{statistics.stdev(values):.{self.digits}f}" if len(values) > 1 else ""
        return f"{self.number(statistics.fmean(values))}{spread} ({len(values)})"

    def number(self, value: float) -> str:
        """A value, or a bound of one, with a proper minus sign."""
        return f"{value:,.{self.digits}f}".replace("-", "−")


def _evaluated(protocol: str, metric: str) -> Reading:
    return lambda run: run.evaluated(protocol, metric, run.headline_split)


def _eval(protocol: str) -> Callable[[Sequence[Run]], str]:
    return lambda runs: eval_command(runs, protocol)


def _respond(runs: Sequence[Run]) -> str:
    return f"{RESPONSES_COMMAND} {run_folders(runs)}"


def _of_responses(figure: Callable[[Responses], float]) -> Reading:
    def read(run: Run) -> float | None:
        return None if run.responses is None else figure(run.responses)

    return read


def weakest(values: Sequence[float]) -> float:
    """The smallest of some strengths as a fraction of their median."""
    middle = statistics.median(values)
    return min(values) / middle if middle else 0.0


def _mean_of_curve(run: Run) -> float | None:
    errors = run.top1_errors("train").values()
    return statistics.fmean(errors) if errors else None


def _time_to(level: float, training: bool, unit: Callable[[Run], float]) -> Reading:
    """How long until an error is below a level for the first time; the whole run if it never is."""

    def read(run: Run) -> float:
        errors = run.top1_errors("train" if training else run.headline_split)
        first = next((at for at, error in sorted(errors.items()) if error < level), None)
        return (int(run.result["iteration"]) if first is None else first) / unit(run)

    return read


def _epoch(run: Run) -> float:
    return float(run.env["data"]["images"]["train"] / run.spec["recipe"]["batch_size"])


def _warmup(run: Run) -> float | None:
    switch = run.result.get("warmup_switch")
    return float(switch) if type(switch) is int else None


MEASURES: Mapping[str, Measure] = {
    "train_err": Measure(
        "training error", lambda run: run.last("train"), ("train_err_mean_last5", "train_err_final"), unit="%"
    ),
    "held_out_err": Measure(
        "test error",
        lambda run: run.last(run.headline_split),
        ("test_err_mean", "test_err", "test_err_mean_last5"),
        unit="%",
    ),
    "ten_crop_top1": Measure(
        "10-crop error", _evaluated("ten_crop", "top1_err"), ("top1_err",), unit="%",
        command=_eval("ten_crop"),
    ),
    "multi_scale_top5": Measure(
        "multi-scale top-5 error", _evaluated("multi_scale", "top5_err"), ("top5_err",), unit="%",
        command=_eval("multi_scale"),
    ),
    "train_curve": Measure(
        "mean training error of the run", _mean_of_curve, unit="%"
    ),
    "iterations_to_50": Measure(
        "iterations to below 50 % error", _time_to(50, False, lambda run: 1), digits=0, level=(50, False)
    ),
    "iterations_to_90_train": Measure(
        "iterations to below 90 % training error", _time_to(90, True, lambda run: 1), digits=0
    ),
    "epochs_to_90_train": Measure("epochs to below 90 % training error", _time_to(90, True, _epoch)),
    "warmup_iterations": Measure("iterations of the warm-up", _warmup, digits=0),
    "mean_response": Measure(
        "standard deviation of the responses, mean over layers",
        _of_responses(lambda found: statistics.fmean(found.std)),
        ("response_std_mean_over_layers",), digits=3, command=_respond,
    ),
    "weakest_response": Measure(
        "weakest response over the median layer's",
        _of_responses(lambda found: weakest(found.std)), command=_respond,
    ),
    "weakest_gradient_start": Measure(
        "weakest gradient over the median layer's, at initialisation",
        _of_responses(lambda found: weakest(found.gradient_norm_start)), command=_respond,
    ),
    "weakest_gradient_end": Measure(
        "weakest gradient over the median layer's, trained",
        _of_responses(lambda found: weakest(found.gradient_norm_end)), command=_respond,
    ),
}  # fmt: skip


def paper_row(exhibit: str, experiment: str, label: str) -> str:
    """What an exhibit calls a net: as its layout says, else by the net's label."""
    rows = layouts().get(exhibit, {}).get("rows", ())
    return next((str(row["label"]) for row in rows if row.get("experiment") == experiment), label)


def paper_value(measure: Measure, exhibit: str, row: str) -> Number | None:
    """The paper's own value of a measure, printed or read off its curves; None if it gives none."""
    if measure.level is not None:
        level, training = measure.level
        curve = paper_curve(exhibit, row, training)
        first = next((at for at, error in sorted(curve.items()) if error < level), None)
        return None if first is None else Number(first)
    found = (published().get((exhibit, row, metric)) for metric in measure.metrics)
    return next((number for number in found if number is not None), None)


def paper_curve(exhibit: str, row: str, training: bool = True) -> dict[float, float]:
    """The errors (percent) that a figure draws for a net, by iteration."""
    frame = curves(exhibit)
    own = frame[(frame["series"] == row) & ((frame["kind"] == "train") == training)]
    return dict(zip(round(own["x"] * X_UNIT), own["value"], strict=True))
