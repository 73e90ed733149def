"""`resrepro eval` and `bench`: error rates and responses of nets, and how fast this machine trains them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from resrepro import cli
from resrepro.cli import argument, option
from resrepro.cli.view import tell
from resrepro.comparison import table
from resrepro.comparison.table import Grid
from resrepro.errors import DataError, RecordError, ResreproError, UsageError
from resrepro.records.storage import write_out
from resrepro.spec import check_depth, check_shortcut, net_label
from resrepro.training import is_first, world_size

if TYPE_CHECKING:
    from resrepro.bench import Speed
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
DEPTHS = (20, 56, 110)
MACHINE = ("date", "cpu", "gpu", "device", "cores", "threads", "torch", "resrepro")  # columns of the CSV
LEGEND = (
    "Medians over rounds (lowest–highest). × usual: ratio within each round to the usual PyTorch loop, eager "
    "in float32 and NCHW, with the better number of DataLoader workers. Modes with fast are in bf16 (fp16 on "
    "older GPUs); usual-fast has autocast and channels-last maps. Images are made up; no data set is needed."
)
LANES = "Nets side by side, of the modes lanes and lanes-fast."
MODES = "Of usual, usual-fast, default, fast, eager, eager-fast, .. (default: by device)"


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


@cli.app.command(rich_help_panel="Run")
def bench(
    depth: cli.DepthOption = None,
    batch_size: Annotated[int, typer.Option(min=2, max=50_000, help="Images per batch.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, max=3600, help="Of a turn. (default: 3, on an NVIDIA GPU 1)")
    ] = None,
    modes: Annotated[str | None, option(MODES, "--modes", "--engine")] = None,
    lanes: Annotated[str, option(LANES, "--lanes", metavar="1,5,10")] = "1,5",
    threads: cli.ThreadsOption = None,
    device: cli.DeviceOption = "auto",
    csv_file: Annotated[Path | None, option("Write the numbers.", "--csv", metavar="FILE")] = None,
) -> None:  # fmt: skip
    """Measure the usual PyTorch loop and ours on this machine, turn by turn, on made-up images."""
    depths = dict.fromkeys(cli.parse_depths(depth) or DEPTHS)
    for one in depths:
        check_depth(one)
    if world_size() > 1:
        raise UsageError("a benchmark starts its own processes: leave torchrun out.")
    console = Console(highlight=False)
    with Console(stderr=True, highlight=False).status("starting") as status:
        from resrepro.bench import defaults_on, loops_of, measure_speeds

        own_modes, own_seconds, workers = defaults_on(device)
        modes, seconds = own_modes if modes is None else modes, seconds or own_seconds
        speeds: list[Speed] = []
        nets = parse_counts(lanes)
        for loops in [loops_of(modes, one, batch_size, workers, nets) for one in depths]:
            reached, machine = measure_speeds(loops, rounds, seconds, device, threads, status.update)
            speeds += reached
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    if copied := machine.get("copied"):
        where += f", {copied / 1e12:.2f} TB/s copied"
    console.print(f"{where}: batches of {batch_size}, {rounds} rounds of {seconds:g} s")
    console.print(speed_table(speeds))
    console.print(Text(LEGEND, style="dim"))
    if csv_file:
        write_out(csv_file, to_csv(speeds, machine, seconds).encode())
        console.print(f"Written: {csv_file}", markup=False, soft_wrap=True)


def parse_counts(text: str) -> list[int]:
    """`1,5,10` -> [1, 5, 10] (UsageError if one is no number above 0)."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"--lanes takes numbers of nets, such as 1,5,10, not {text!r}.")
    return counts


def speed_table(speeds: "Sequence[Speed]") -> Grid:
    """A line for each mode of each net."""
    grid = Grid(("net and mode", "workers", "ms/update", "images/s", "× usual"))
    depth = None
    for speed in speeds:
        loop = speed.loop
        label, new, depth = net_label(loop.depth, plain=False), loop.depth != depth, loop.depth
        per_update = 1000 * loop.batch_size * loop.nets / statistics.median(speed.images_per_s)
        grid.add(
            f"{label} {loop.name}", "" if loop.workers is None else str(loop.workers), f"{per_update:,.1f}",
            _spread(speed.images_per_s, 0 if min(speed.images_per_s) >= 100 else 1), _spread(speed.ratios, 2),
            style="" if speed.counted else "dim", section=new,
        )  # fmt: skip
    return grid


def _spread(values: Sequence[float], places: int) -> str:
    """`1,270 (1,003–1,314)`."""
    if not values:
        return "–"
    median, low, high = (f"{f(values):,.{places}f}" for f in (statistics.median, min, max))
    return f"{median} ({low}–{high})"


def to_csv(speeds: "Sequence[Speed]", machine: Mapping[str, Any], seconds: float) -> str:
    """A row for each loop: the machine, the loop; median, lowest and highest over the rounds."""
    rows = []
    for speed in speeds:
        loop = speed.loop
        row = {key: machine.get(key) for key in MACHINE} | {
            "counted": speed.counted, "net": net_label(loop.depth, plain=False), "depth": loop.depth,
            "plain": False, "batch_size": loop.batch_size, "mode": loop.name, "workers": loop.workers,
            "rounds": len(speed.images_per_s), "turn_s": seconds,
        }  # fmt: skip
        for name, values in (("images_per_s", speed.images_per_s), ("ratio_to_usual", speed.ratios)):
            for kind, function in (("median", statistics.median), ("min", min), ("max", max)):
                row[f"{name}_{kind}"] = function(values) if values else None
        rows.append(row)
    return table.to_csv(table.Table("bench", "", (), (), records=tuple(rows)))
