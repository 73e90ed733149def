"""What a claim measures of a run, and of the paper: one number per run, named in claims.toml.

Errors are top-1 in percent and of the last iteration unless said otherwise. Nothing here imports torch.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from resrepro.comparison.groups import SET_NAMES
from resrepro.comparison.table import eval_command, run_folders
from resrepro.paper import Number, curves, layouts, published
from resrepro.records import Run
from resrepro.records.evaluations import Responses

X_UNIT = 10_000  # iterations per unit of the paper's x axes
Reading = Callable[[Run], float | None]
At = TypeVar("At", int, float)


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
        resolution: the step in which it is measured; 0 if it is a number like any other.
        never: of a time until something: whether that did not happen, so that the run's length stands for it.
        sampled: whether it depends on how often the training was sampled.
        level: of a time to an error level: that level in percent, and whether of the training error.
    """

    title: str
    read: Reading
    metrics: tuple[str, ...] = ()
    unit: str = ""
    digits: int = 2
    command: Callable[[Sequence[Run]], str] | None = None
    resolution: Callable[[Run], float] = lambda run: 0.0
    never: Callable[[Run], bool] = lambda run: False
    sampled: bool = False
    level: tuple[float, bool] | None = None

    def value(self, run: Run, held_out: str) -> float | None:
        """Its value for a run; `held_out` is the set of the held-out error, "test" only where it is whole."""
        if self is MEASURES["held_out_err"] and held_out == "test":
            return run.error("test")
        return self.read(run)

    def title_on(self, part: str) -> str:
        """What to call it of runs whose headline set is `part`: a test error may be a validation error."""
        return self.title.replace(SET_NAMES["test"], SET_NAMES[part])

    def spell(self, values: Sequence[float]) -> str:
        """`6.61±0.16 (5)`, or `6.61 (1)` for a single run."""
        spread = f"±{statistics.stdev(values):.{self.digits}f}" if len(values) > 1 else ""
        return f"{self.number(statistics.fmean(values))}{spread} ({len(values)})"

    def number(self, value: float, digits: int | None = None) -> str:
        """A value, or a bound of one, with a proper minus sign."""
        return f"{value:,.{self.digits if digits is None else digits}f}".replace("-", "−")


def _evaluated(protocol: str, metric: str) -> Reading:
    return lambda run: run.evaluated(protocol, metric, run.headline_split)


def _eval(protocol: str) -> Callable[[Sequence[Run]], str]:
    return lambda runs: eval_command(runs, protocol)


def _respond(runs: Sequence[Run]) -> str:
    return f"resrepro eval {run_folders(runs)} --responses"


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


def reached(curve: Mapping[At, float], level: float, *, for_good: bool = False) -> At | None:
    """The first sample that is below a level, or from which on all are; None if there is none.

    Where the level is what a net has by chance (90 % of ten classes), a single dip says nothing.
    """
    if not for_good:
        return next((at for at, error in sorted(curve.items()) if error < level), None)
    found: At | None = None
    for at, error in sorted(curve.items()):
        found = None if error >= level else at if found is None else found
    return found


def _time_to(title: str, level: float, *, training: bool = False, epochs: bool = False) -> Measure:
    """How long until an error is below a level, the training error's for good.

    Of a run that never gets there its whole length, as a lower bound.
    """

    def curve(run: Run) -> dict[int, float]:
        return run.top1_errors("train" if training else run.headline_split)

    def time_of(run: Run) -> int | None:
        return reached(curve(run), level, for_good=training)

    def unit(run: Run) -> float:
        return float(_images(run, "train") / _setting(run, "batch_size")) if epochs else 1.0

    def read(run: Run) -> float | None:
        end = int(run.result["iteration"])
        return (time_of(run) or end) / unit(run) if curve(run) else None

    return Measure(
        title,
        read,
        digits=2 if epochs else 0,
        resolution=lambda run: _setting(run, "eval_every") / unit(run),
        never=lambda run: time_of(run) is None,
        sampled=True,
        level=(level, training),
    )


def _images(run: Run, part: str) -> int:
    return int(run.env["data"]["images"][part])


def _setting(run: Run, key: str) -> int:
    return int(run.spec["recipe"][key])


def _one_held_out(run: Run) -> float:
    """One image of the held-out set, in percent."""
    return 100 / _images(run, run.headline_split)


def _one_trained_on(run: Run) -> float:
    """One image of those that a recorded training error is the mean of, in percent."""
    return 100 / min(_images(run, "train"), _setting(run, "eval_every") * _setting(run, "batch_size"))


def _warmup(run: Run) -> float | None:
    """The iteration at which the warm-up ended, or the whole run if it did not."""
    if _warmup_lasts(run):
        return float(run.result["iteration"])
    switch = run.result.get("warmup_switch")
    return float(switch) if type(switch) is int else None


def _warmup_lasts(run: Run) -> bool:
    return "warmup_switch" in run.result and run.result["warmup_switch"] is None


MEASURES: Mapping[str, Measure] = {
    "train_err": Measure(
        "training error", lambda run: run.last("train"), ("train_err_mean_last5", "train_err_final"),
        unit="%", resolution=_one_trained_on, sampled=True,
    ),
    "held_out_err": Measure(
        "test error",
        lambda run: run.last(run.headline_split),
        ("test_err_mean", "test_err", "test_err_mean_last5"),
        unit="%", resolution=_one_held_out,
    ),
    "ten_crop_top1": Measure(
        "10-crop error", _evaluated("ten_crop", "top1_err"), ("top1_err",), unit="%",
        command=_eval("ten_crop"), resolution=_one_held_out,
    ),
    "multi_scale_top5": Measure(
        "multi-scale top-5 error", _evaluated("multi_scale", "top5_err"), ("top5_err",), unit="%",
        command=_eval("multi_scale"), resolution=_one_held_out,
    ),
    "train_curve": Measure(
        "mean training error of the run", _mean_of_curve, unit="%", resolution=_one_trained_on, sampled=True
    ),
    "iterations_to_50": _time_to("iterations to below 50 % error", 50),
    "iterations_to_90_train": _time_to("iterations to below 90 % training error", 90, training=True),
    "epochs_to_90_train": _time_to("epochs to below 90 % training error", 90, training=True, epochs=True),
    "warmup_iterations": Measure(
        "iterations of the warm-up", _warmup, digits=0,
        resolution=lambda run: _setting(run, "warmup_window"), never=_warmup_lasts,
    ),
    "mean_response": Measure(
        "standard deviation of the responses, mean over layers",
        _of_responses(lambda found: statistics.fmean(found.std)),
        ("response_std_mean_over_layers",), digits=3, command=_respond,
    ),
    "weakest_response": Measure(
        "weakest response over the median layer's",
        _of_responses(lambda found: weakest(found.std)), digits=3, command=_respond,
    ),
    "weakest_gradient_start": Measure(
        "weakest gradient over the median layer's, at initialisation",
        _of_responses(lambda found: weakest(found.gradient_norm_start)), digits=3, command=_respond,
    ),
    "weakest_gradient_end": Measure(
        "weakest gradient over the median layer's, trained",
        _of_responses(lambda found: weakest(found.gradient_norm_end)), digits=3, command=_respond,
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
        first = reached(curve, level, for_good=training)
        return None if first is None else Number(first)
    found = (published().get((exhibit, row, metric)) for metric in measure.metrics)
    return next((number for number in found if number is not None), None)


def paper_curve(exhibit: str, row: str, training: bool = True) -> dict[float, float]:
    """The errors (percent) that a figure draws for a net, by iteration."""
    frame = curves(exhibit)
    own = frame[(frame["series"] == row) & ((frame["kind"] == "train") == training)]
    return dict(zip(round(own["x"] * X_UNIT), own["value"], strict=True))
