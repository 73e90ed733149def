"""What a claim measures of a run (one number, named in claims.toml), of a net as built, and of the paper.

Errors are top-1 in percent and of the last iteration unless said otherwise.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from resrepro.claims import Check, Net, Source, value_of
from resrepro.comparison.groups import Protocol
from resrepro.comparison.table import eval_command, run_folders, spell_mean
from resrepro.paper import curves, layouts, published
from resrepro.records import Run
from resrepro.spec.architecture import Architecture, architectures, vgg19
from resrepro.spec.recipe import recipe_from_json

At = TypeVar("At", int, float)
OverLayers = Callable[[Sequence[float]], float]


class Seeds(NamedTuple):
    """What a measure says of the seeds of a net; `resolution` is the step of its values."""

    values: tuple[float, ...]  # of each seed that was measured
    never: int  # how many of these are the whole run, as what was waited for did not happen
    lacking: tuple[Run, ...]  # the seeds that were not measured
    diverged: tuple[Run, ...]
    resolution: float

    @property
    def open(self) -> bool:
        """Whether seeds are missing whose values could turn a verdict."""
        return bool(self.lacking or self.diverged)


class Measure(NamedTuple):
    """A quantity of a run; what is counted on a net as built has a title only."""

    title: str
    read: Callable[[Run], float | None] = lambda run: None  # None if the record does not have it
    metrics: tuple[str, ...] = ()  # its names in published.csv, the first that a row has
    unit: str = ""  # "%" for errors
    digits: int = 2
    command: Callable[[Sequence[Run]], str] | None = None  # what measures it, where training does not
    resolution: Callable[[Run], float] = lambda run: 0.0  # its step; 0 if it is a number like any other
    never: Callable[[Run], bool] = lambda run: False  # of a time: whether it is the run's length instead
    sampled: bool = False  # whether it depends on how often the training was sampled
    training: bool = True  # of a whole curve: whether it is the training error's, or the held-out images'

    def read_seeds(self, net: Net, protocol: Protocol[Net]) -> Seeds:
        """What it says of the seeds of a net."""
        group = protocol.groups[net]
        # a held-out error is a test error only where the whole test set was measured
        whole_test = self is MEASURES["held_out_err"] and protocol.held_out == "test"
        values = [(run, run.error("test") if whole_test else self.read(run)) for run in group.runs]
        return Seeds(
            values=tuple(value for _, value in values if value is not None),
            never=sum(self.never(run) for run, value in values if value is not None),
            lacking=tuple(run for run, value in values if value is None),
            diverged=tuple(run for run in protocol.left_out.get(net, ()) if run.status == "diverged"),
            resolution=max(map(self.resolution, group.runs)),
        )

    def spell(self, seeds: Seeds) -> str:
        """`6.61±0.16 (5)`, or `62,000±1,000 (3), 1 never`."""
        return spell_mean(seeds.values, self.digits) + (f", {seeds.never} never" if seeds.never else "")

    def number(self, value: float, digits: int | None = None) -> str:
        """A value, or a bound of one, with a proper minus sign."""
        return f"{value:,.{self.digits if digits is None else digits}f}".replace("-", "−")


def reached(curve: Mapping[int, float], level: float) -> int | None:
    """The first sample from which on all are below a level; None if there is none. The level is what a net
    has by chance (90 % of ten classes), so that a single dip says nothing.
    """
    marks = sorted(curve)
    last_above = max((place for place, at in enumerate(marks) if curve[at] >= level), default=-1)
    return next(iter(marks[last_above + 1 :]), None)


def _setting(run: Run, key: str) -> int:
    return int(run.spec["recipe"][key])


def _sampled_every(run: Run) -> int:
    return recipe_from_json(run.spec["recipe"]).sampled_every(run.env["data"]["images"]["train"])


def _one_held_out(run: Run) -> float:
    """One image of the held-out set, in percent."""
    return 100 / int(run.env["data"]["images"][run.headline_split])


def _one_trained_on(run: Run) -> float:
    """One image of those that a recorded training error is the mean of, in percent."""
    since_the_last = _sampled_every(run) * _setting(run, "batch_size")
    return 100 / min(int(run.env["data"]["images"]["train"]), since_the_last)


def _evaluated(title: str, protocol: str, metric: str) -> Measure:
    return Measure(
        title, lambda run: run.evaluated(protocol, metric, run.headline_split), (metric,), unit="%",
        command=lambda runs: eval_command(runs, protocol), resolution=_one_held_out,
    )  # fmt: skip


def weakest(values: Sequence[float]) -> float:
    """The smallest of some strengths as a fraction of their median."""
    middle = statistics.median(values)
    return min(values) / middle if middle else 0.0


def _responses(title: str, key: str, over_layers: OverLayers = weakest, *metrics: str) -> Measure:
    """A number that `eval --responses` measures: of the layers' std or gradient norms."""
    return Measure(
        title, lambda run: None if run.responses is None else over_layers(getattr(run.responses, key)),
        metrics, digits=3, command=lambda runs: f"resrepro eval {run_folders(runs)} --responses",
    )  # fmt: skip


def _time_to(title: str, level: float, *, epochs: bool = False) -> Measure:
    """Time until the training error stays below a level; of a run where it never does its whole length."""

    def curve(run: Run) -> dict[int, float]:
        return run.top1_errors("train")

    def time_of(run: Run) -> int | None:
        return reached(curve(run), level)

    def unit(run: Run) -> float:
        return float(run.env["data"]["images"]["train"] / _setting(run, "batch_size")) if epochs else 1.0

    return Measure(
        title, lambda run: (time_of(run) or int(run.result["iteration"])) / unit(run) if curve(run) else None,
        digits=2 if epochs else 0, resolution=lambda run: _sampled_every(run) / unit(run),
        never=lambda run: time_of(run) is None, sampled=True,
    )  # fmt: skip


def _mean(curve: Mapping[int, float]) -> float | None:
    return statistics.fmean(curve.values()) if curve else None


def _warmup_lasts(run: Run) -> bool:
    return run.result.get("warmup_switch", 0) is None


MEASURES: Mapping[str, Measure] = {
    "train_err": Measure(
        "training error", lambda run: run.last("train"), ("train_err_mean_last5", "train_err_final"),
        unit="%", resolution=_one_trained_on, sampled=True,
    ),
    "held_out_err": Measure(
        "test error", lambda run: run.last(run.headline_split),
        ("test_err_mean", "test_err", "test_err_mean_last5"), unit="%", resolution=_one_held_out,
        command=eval_command,  # of runs with a part of the test set
    ),
    "ten_crop_top1": _evaluated("10-crop error", "ten_crop", "top1_err"),
    "multi_scale_top5": _evaluated("multi-scale top-5 error", "multi_scale", "top5_err"),
    "train_curve": Measure(
        "mean training error of the run", lambda run: _mean(run.top1_errors("train")),
        unit="%", resolution=_one_trained_on, sampled=True,
    ),
    "held_out_curve": Measure(
        "mean validation error of the run", lambda run: _mean(run.top1_errors(run.headline_split)),
        unit="%", resolution=_one_held_out, sampled=True, training=False,
    ),
    "iterations_to_90_train": _time_to("iterations to below 90 % training error", 90),
    "epochs_to_90_train": _time_to("epochs to below 90 % training error", 90, epochs=True),
    "warmup_iterations": Measure(
        "iterations of the warm-up",  # the whole run, if it did not end
        lambda run: run.result.get("iteration" if _warmup_lasts(run) else "warmup_switch"), digits=0,
        resolution=lambda run: _setting(run, "warmup_window"), never=_warmup_lasts,
    ),
    "mean_response": _responses(
        "standard deviation of the responses, mean over layers", "std", statistics.fmean,
        "response_std_mean_over_layers",
    ),
    "weakest_response": _responses("weakest response over the median layer's", "std"),
    "weakest_gradient_start": _responses(
        "weakest gradient over the median layer's, at initialisation", "gradient_norm_start"
    ),
    "weakest_gradient_end": _responses(
        "weakest gradient over the median layer's, trained", "gradient_norm_end"
    ),
    "parameters": Measure("parameters"),
    "multiply_adds": Measure("multiply-adds"),
    "work_with_projection": Measure(
        "multiply-adds of a bottleneck block with a projection over those without"
    ),
}  # fmt: skip


def ratios_of(test: Check) -> tuple[list[float], str]:
    """What a test of kind `count` counts: the ratios that are to lie in its region, and all in words."""
    if test.measure == "work_with_projection":
        net = architectures()[test.of]
        ratios = projection_ratios(net)
        ends = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
        return ratios, f"{net.label} {' to '.join(ends)}"
    both = _counted(test.measure, test.of), _counted(test.measure, test.over)
    return [both[0][1] / both[1][1]], _spell_ratio(*both)


def _counted(measure: str, net: str | Source) -> tuple[str, float]:
    """The name and the parameters or multiply-adds of a net of ours, of VGG-19, or as published."""
    if not isinstance(net, str):
        return net[1], value_of(net)
    built = vgg19() if net == "VGG-19" else architectures()[net]
    return built.label, built.parameters if measure == "parameters" else built.multiply_adds


def projection_ratios(net: Architecture) -> list[float]:
    """Multiply-adds of each block of identity shortcut, with a projection in its place over those without.
    Such a block has as many channels at its start as at its end, so its projection is a square matrix, and
    its weights grow by the same ratio.
    """
    return [
        1 + block.channels**2 * block.size**2 / sum(layer.multiply_adds for layer in block.layers)
        for block in net.parts
        if block.shortcut and block.shortcut.kind == "identity"
    ]


def _spell_ratio(*pair: tuple[str, float]) -> str:
    """`ResNet-110 1.73 million against FitNet-19 2.50 million (69.2 %)`, counting as the paper does."""
    told = [
        f"{name} {count / 1e9:.2f} billion" if count >= 1e9 else f"{name} {count / 1e6:.2f} million"
        for name, count in pair
    ]
    (_, ours), (_, theirs) = pair
    return f"{' against '.join(told)} ({'equal' if ours == theirs else f'{100 * ours / theirs:.1f} %'})"


def stretches_above(first: Mapping[At, float], second: Mapping[At, float], window: int) -> list[bool]:
    """Whether one curve lies above another, by the means of `window` samples in a row that both have."""
    common = sorted(first.keys() & second.keys())
    stretches = [common[end - window : end] for end in range(window, len(common) + 1)]
    means = ([statistics.fmean(curve[at] for at in own) for own in stretches] for curve in (first, second))
    return [upper > lower for upper, lower in zip(*means, strict=True)]


def paper_values(test: Check) -> list[str]:
    """The paper's own values for a test in words, one by one."""
    if test.ratio:
        return [_spell_ratio(*(_counted(test.measure, source) for source in test.ratio))]
    if not test.paper:
        return []
    rows = layouts().get(test.paper, {}).get("rows", ())
    names = {str(row["experiment"]): str(row["label"]) for row in rows if "experiment" in row}
    calls = {net.label: names.get(net.experiment, net.label) for net in test.nets}  # by the exhibit's rows
    measure, told = MEASURES[test.measure], []
    if test.kind == "throughout":
        drawn = [_paper_curve(test.paper, row, measure.training) for row in calls.values()]
        for window, name in ((1, "samples"), (test.window, f"stretches of {test.window}")):
            above = stretches_above(drawn[0], drawn[1], window)
            told.append(f"{sum(above)} of {len(above)} {name}")
        return [f"{' above '.join(calls.values())} at {', '.join(dict.fromkeys(told))}"]
    for label, row in calls.items():
        found = [published().get((test.paper, row, metric)) for metric in measure.metrics]
        if number := next(filter(None, found), None):
            spread = f"±{number.std:.{measure.digits}f}" if number.std else ""
            told.append(f"{label} {measure.number(number.value)}{spread}")
    return told


def _paper_curve(exhibit: str, row: str, training: bool) -> dict[float, float]:
    """The errors (percent) that a figure draws for a net, by iteration."""
    frame = curves(exhibit)
    own = frame[(frame["series"] == row) & ((frame["kind"] == "train") == training)]
    return dict(zip(round(own["x"] * 10_000), own["value"], strict=True))
