"""`resrepro eval` and `bench`: error rates and responses of nets, and how fast this machine trains them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from resrepro import cli
from resrepro.cli import argument, option
from resrepro.cli.show import tell_written
from resrepro.cli.view import tell
from resrepro.comparison import table
from resrepro.comparison.table import Grid
from resrepro.errors import DataError, RecordError, UsageError
from resrepro.records.storage import write_out
from resrepro.spec import check_depth, check_shortcut, net_label
from resrepro.training import is_first, world_size

if TYPE_CHECKING:
    from resrepro.bench import Speed
    from resrepro.evaluation.sources import ThirdPartyCheckpoint

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
SECONDS = "Of a turn. (default: 3, on an NVIDIA GPU 1)"
LANES = "Nets side by side, of the modes lanes and lanes-fast."
MODES = "Of usual, usual-fast, default, fast, eager, eager-fast, .. (default: by device)"


@cli.app.command("eval", rich_help_panel="Run")
def evaluate(
    ctx: typer.Context,
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
    option_a_zeros: Annotated[str | None, theirs(ZEROS, "--zeros")] = None,
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
    if ensemble and len(targets) < 2:
        raise UsageError("an ensemble takes two checkpoints or more: name them all, or leave --ensemble out.")
    theirs = _third_party(ctx.params)
    view = {name: ctx.params[name] for name in ("protocol", "bn_stats", "dataset", "split")}
    if responses and (ensemble or theirs != type(theirs)() or any(view.values())):
        raise UsageError("--responses are of finished runs: leave protocols and other people's nets out.")

    from resrepro.data.loader import Loading

    console = Console(highlight=False, quiet=not is_first())
    say = partial(console.print, markup=False, soft_wrap=not console.is_terminal)
    loading = Loading(workers, max_bad_images or 0)
    options = {"data": data, "device": device, "threads": threads, "loading": loading, "say": say}
    view |= {"runs": runs, "third_party": theirs}
    groups, failed = [targets] if ensemble else [[one] for one in targets], list[Path]()
    for group in groups:
        try:
            found, shown = _responses_of(group, options) if responses else _errors_of(group, options | view)
            tell(targets=list(map(str, group)), **found)
            console.print(shown)
        except (UsageError, DataError, RecordError) as error:
            if len(groups) == 1:
                raise
            failed += group
            say(f"{group[0]} is left out: {error}")
    if failed:
        what = f"{len(failed)} of {len(groups)} {'runs' if all(map(Path.is_dir, failed)) else 'checkpoints'}"
        raise RecordError(f"{what} were left out, for the reasons above: {', '.join(map(str, failed))}.")


def _third_party(given: Mapping[str, Any]) -> "ThirdPartyCheckpoint":
    """What the options say of other people's checkpoints."""
    from resrepro.evaluation.sources import ThirdPartyCheckpoint

    check_shortcut(given["plain"], given["shortcut"])
    told = {field.name: given[field.name] for field in fields(ThirdPartyCheckpoint)}
    told |= {name: parse_channels(told[name], f"--{name}") for name in ("mean", "std")}
    return ThirdPartyCheckpoint(**told)


def parse_channels(text: str | None, option: str) -> tuple[float, ...] | str | None:
    """`0.49,0.48,0.45` -> (0.49, 0.48, 0.45), None and other kinds of means stay; else a UsageError."""
    others = ", or per_pixel, or a .npy file" if option == "--mean" else ""
    if text is None or (others and text.endswith(("per_pixel", ".npy"))):
        return text
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        three = f"{option} takes three numbers, one per channel, such as 0.49,0.48,0.45{others}"
        raise UsageError(f"{three}, not {text!r}.") from None
    return red, green, blue


def _errors_of(group: Sequence[Path], options: Mapping[str, Any]) -> tuple[dict[str, Any], Grid]:
    """The errors of a checkpoint, or an ensemble, as JSON and in a table."""
    from resrepro.evaluation import evaluate

    errors = evaluate(group, **options)
    grid = Grid(("set", "images", "top-1 error %", "top-5 error %", "loss"))
    for name, error in errors.items():
        figures = (f"{error.top1_err:.2f}", f"{error.top5_err:.2f}", f"{error.loss:.4f}")
        grid.add(name, f"{error.count:,}", *figures)
    return {name: asdict(error) for name, error in errors.items()}, grid


def _responses_of(group: Sequence[Path], options: Mapping[str, Any]) -> tuple[dict[str, Any], Grid]:
    """The responses of a run's layers as JSON; in a table first and last, extremes, mean and median."""
    from resrepro.evaluation.responses import measure_responses

    responses = measure_responses(group[0], **options)

    def short(value: float) -> str:
        return f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.1e}"

    grid = Grid((f"{len(responses.layers)} layers", "first", "last", "smallest", "largest", "mean", "median"))
    norms = {"gradient, start": responses.gradient_norm_start, "gradient, end": responses.gradient_norm_end}
    for name, values in {"std": responses.std, **norms}.items():
        low, high = (f"{short(end)} ({values.index(end) + 1})" for end in (min(values), max(values)))
        middle = map(short, (statistics.fmean(values), statistics.median(values)))
        grid.add(name, short(values[0]), short(values[-1]), low, high, *middle)
    return {"responses": asdict(responses)}, grid


@cli.app.command(rich_help_panel="Run")
def bench(
    depth: cli.DepthOption = None,
    batch_size: Annotated[int, typer.Option(min=2, max=50_000, help="Images per batch.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    seconds: Annotated[float | None, option(SECONDS, min=0.01, max=3600)] = None,
    modes: Annotated[str | None, option(MODES, "--modes", "--engine")] = None,
    lanes: Annotated[str, option(LANES, "--lanes", metavar="1,5,10")] = "1,5",
    threads: cli.ThreadsOption = None,
    device: cli.DeviceOption = "auto",
    csv_file: Annotated[Path | None, option("Write the numbers.", "--csv", metavar="FILE")] = None,
) -> None:
    """Measure the usual PyTorch loop and ours on this machine, turn by turn, on made-up images."""
    depths = [check_depth(one) for one in dict.fromkeys(cli.parse_numbers(depth, cli.DEPTHS) or DEPTHS)]
    nets = cli.parse_numbers([lanes], "--lanes takes numbers of nets, such as 1,5,10")
    if world_size() > 1:
        raise UsageError("a benchmark starts its own processes: leave torchrun out.")
    with Console(stderr=True, highlight=False).status("starting") as status:
        from resrepro.bench import defaults_on, loops_of, measure_speeds

        own_modes, own_seconds, workers = defaults_on(device)
        modes, seconds = own_modes if modes is None else modes, seconds or own_seconds
        speeds: list[Speed] = []
        for loops in [loops_of(modes, one, batch_size, workers, nets) for one in depths]:
            reached, machine = measure_speeds(loops, rounds, seconds, device, threads, status.update)
            speeds += reached
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    console = Console(highlight=False)
    console.print(f"{where}: batches of {batch_size}, {rounds} rounds of {seconds:g} s")
    console.print(speed_table(speeds))
    console.print(Text(LEGEND, style="dim"))
    if csv_file:
        write_out(csv_file, to_csv(speeds, machine, seconds).encode())
        tell_written([csv_file])


def speed_table(speeds: "Sequence[Speed]") -> Grid:
    """A line for each mode of each net."""
    grid = Grid(("net and mode", "workers", "ms/update", "images/s", "× usual"))
    depth = None
    for loop, images_per_s, ratios, counted in speeds:
        label, new, depth = net_label(loop.depth, plain=False), loop.depth != depth, loop.depth
        per_update = 1000 * loop.batch_size * loop.nets / statistics.median(images_per_s)
        grid.add(
            f"{label} {loop.name}", "" if loop.workers is None else str(loop.workers), f"{per_update:,.1f}",
            _spread(images_per_s, 0 if min(images_per_s) >= 100 else 1), _spread(ratios, 2),
            style="" if counted else "dim", section=new,
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
    for loop, images_per_s, ratios, counted in speeds:
        row = {key: machine.get(key) for key in MACHINE} | {
            "counted": counted, "net": net_label(loop.depth, plain=False), "depth": loop.depth,
            "plain": False, "batch_size": loop.batch_size, "mode": loop.name, "workers": loop.workers,
            "rounds": len(images_per_s), "turn_s": seconds,
        }  # fmt: skip
        for name, values in (("images_per_s", images_per_s), ("ratio_to_usual", ratios)):
            for kind, function in (("median", statistics.median), ("min", min), ("max", max)):
                row[f"{name}_{kind}"] = function(values) if values else None
        rows.append(row)
    return table.to_csv(table.Table("bench", "", (), (), records=tuple(rows)))
