"""`resrepro eval`: error rates, or responses of the layers."""

import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from resrepro import cli
from resrepro.cli import argument, option
from resrepro.cli.screen import tell
from resrepro.comparison.screen import Grid
from resrepro.errors import DataError, RecordError, ResreproError, UsageError
from resrepro.spec import check_shortcut
from resrepro.training import is_first

if TYPE_CHECKING:
    from resrepro.records.reading import Responses
    from resrepro.training.measure import Errors

theirs = partial(option, panel="Other people's checkpoints")

PROTOCOL = "Photographs: center (default), ten_crop, multi_scale; CIFAR-10: single."
STATISTICS = "running, or precise: plain averages over training batches. (default: the run's own)"
RESPONSES = "Measure each 3x3 layer's response and gradient instead (Figure 7)."
DATASET = "cifar10, digits, imagenet or folder. (default: the run's own)"
MEAN = "Mean it was trained with: of each channel, pixels in 0..1; that of the training images; or a file."
ZEROS = "Place of option A's zeros: trailing or symmetric. (default: both are tried on 1,000 images)"
WEIGHTS = "Which set of weights, where the file has several, such as model_ema."


@cli.app.command("eval", rich_help_panel="Run")
def evaluate(
    targets: Annotated[list[Path], argument("Run folders or checkpoint files.", "RUN_OR_CHECKPOINT...")],
    protocol: Annotated[str | None, option(PROTOCOL)] = None,
    ensemble: Annotated[bool, option("Average the scores of all the checkpoints.", "--ensemble")] = False,
    bn_stats: Annotated[str | None, option(STATISTICS)] = None,
    responses: Annotated[bool, option(RESPONSES, "--responses")] = False,
    dataset: Annotated[str | None, option(DATASET)] = None,
    split: Annotated[str | None, option("all or 45k5k. (default: the run's own)")] = None,
    depth: Annotated[int | None, theirs("Its depth.")] = None,
    plain: Annotated[bool, theirs("It is plain.", "--plain")] = False,
    shortcut: Annotated[str | None, theirs("Its shortcut option. (default: the paper's)")] = None,
    mean: Annotated[str | None, theirs(MEAN, metavar="R,G,B|per_pixel|FILE.npy")] = None,
    std: Annotated[str | None, theirs("Its channel std.", metavar="R,G,B")] = None,
    zeros: Annotated[str | None, theirs(ZEROS)] = None,
    stride_3x3: Annotated[bool, theirs("Its bottlenecks stride on the 3x3.", "--stride-3x3")] = False,
    weights: Annotated[str | None, theirs(WEIGHTS, metavar="KEY")] = None,
    image_size: Annotated[int | None, theirs("Side of the crops it was trained on. (default: 224)")] = None,
    data: cli.DataOption = None,
    device: cli.DeviceOption = "auto",
    threads: cli.ThreadsOption = None,
    workers: cli.WorkersOption = None,
    max_bad_images: cli.MaxBadOption = None,
    runs: cli.RunsOption = Path("runs"),
    quiet: cli.QuietOption = False,
    as_json: cli.JsonOption = False,
) -> None:
    """Measure top-1 and top-5 error of runs or checkpoints under a test protocol, and record it.

    With --responses measure the layers of finished runs.
    """
    check_shortcut(plain, shortcut)
    is_named = mean is not None and (mean == "per_pixel" or mean.endswith(".npy"))
    images = mean if is_named else parse_channels(mean, "--mean"), parse_channels(std, "--std")
    if ensemble and len(targets) < 2:
        raise UsageError("an ensemble takes two checkpoints or more: name them all, or leave --ensemble out.")

    from resrepro import evaluation
    from resrepro.data.loader import Loading
    from resrepro.evaluation.responses import measure_responses
    from resrepro.evaluation.sources import ThirdPartyCheckpoint

    console = Console(highlight=False, quiet=not is_first())
    other = ThirdPartyCheckpoint(depth, plain, shortcut, *images, zeros, stride_3x3, image_size, weights)
    say = partial(console.print, markup=False, soft_wrap=not console.is_terminal)
    options: dict[str, Any] = {"data": data, "device": device, "threads": threads, "say": say}
    options["loading"] = Loading(workers, max_bad_images or 0)
    view: dict[str, Any] = {"protocol": protocol, "bn_stats": bn_stats, "dataset": dataset, "split": split}
    if responses and (ensemble or other != ThirdPartyCheckpoint() or any(view.values())):
        raise UsageError("--responses are of finished runs: leave protocols and other people's nets out.")
    groups, failed = [targets] if ensemble else [[one] for one in targets], dict[str, ResreproError]()
    for group in groups:
        try:
            if responses:
                layers = measure_responses(group[0], **options)
                found, shown = {"responses": asdict(layers)}, responses_table(layers)
            else:
                errors = evaluation.evaluate(group, runs=runs, third_party=other, **view, **options)
                found, shown = {name: asdict(each) for name, each in errors.items()}, errors_table(errors)
            tell(targets=list(map(str, group)), **found)
            console.print(shown)
        except (UsageError, DataError, RecordError) as error:
            if len(groups) == 1:
                raise
            failed[str(group[0])] = error
            say(f"{group[0]} is left out: {error}")
    if len(failed) == len(groups) and all(isinstance(error, UsageError) for error in failed.values()):
        raise next(iter(failed.values()))
    if failed:
        what = "runs" if all(Path(name).is_dir() for name in failed) else "checkpoints"
        left = f"{len(failed)} of {len(groups)} {what} were left out"
        raise RecordError(f"{left}, for the reasons above: {', '.join(failed)}.")


def parse_channels(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45` -> (0.49, 0.48, 0.45), None stays None; raises a UsageError for anything else."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} takes three numbers, one per channel, such as 0.49,0.48,0.45"
            f"{', or per_pixel, or a .npy file' * (option == '--mean')}, not {text!r}."
        ) from None
    return red, green, blue


def errors_table(errors: "dict[str, Errors]") -> Grid:
    """A line for each set of images."""
    grid = Grid(("set", "images", "top-1 error %", "top-5 error %", "loss"))
    for name, error in errors.items():
        figures = (f"{error.top1_err:.2f}", f"{error.top5_err:.2f}", f"{error.loss:.4f}")
        grid.add(name, f"{error.count:,}", *figures)
    return grid


def responses_table(responses: "Responses") -> Grid:
    """First and last layer, extremes with their layers, mean and median of each quantity."""
    heads = ("first", "last", "smallest", "largest", "mean", "median")
    grid = Grid((f"{len(responses.layers)} layers", *heads))
    for name, values in (
        ("std", responses.std),
        ("gradient, start", responses.gradient_norm_start),
        ("gradient, end", responses.gradient_norm_end),
    ):
        low, high = (f"{_short(end)} ({values.index(end) + 1})" for end in (min(values), max(values)))
        mean, median = _short(statistics.fmean(values)), _short(statistics.median(values))
        grid.add(name, _short(values[0]), _short(values[-1]), low, high, mean, median)
    return grid


def _short(value: float) -> str:
    """Three digits; powers of ten only for what is very small or large."""
    return f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.1e}"
