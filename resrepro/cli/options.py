"""Options that several commands share, and the parsing of their small notations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resrepro.errors import UsageError
from resrepro.spec.recipe import Value, parse

if TYPE_CHECKING:
    from resrepro.data.loader import Loading

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", show_default=False,
        help="Folder of CIFAR-10 (default: $RESREPRO_DATA, else ./data, downloaded if missing), or of "
        "photographs: train/<class>/* and val/<class>/*.",
    ),
]  # fmt: skip
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of run records.")]
RunFoldersOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--runs", metavar="DIR", help="Folder of run records; may be repeated. (default: runs)",
        show_default=False,
    ),
]  # fmt: skip
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads. (default: one per core)", show_default=False),
]
SPEED = "Speed"
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast", rich_help_panel=SPEED,
        help="bf16 arithmetic where the hardware has it (fp16 on older GPUs); told beside every number.",
    ),
]  # fmt: skip
CompileOption = Annotated[
    str,
    typer.Option(
        "--compile", metavar="auto|on|off", rich_help_panel=SPEED,
        help="Compile what a step computes: auto does so on a CPU with a C compiler, on also on a GPU.",
    ),
]  # fmt: skip
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs", show_default=False,
        help="Runs at once, each with --threads, or its share of the cores. (default: by cores, memory, GPU)",
    ),
]  # fmt: skip


MOST_SEEDS = 10_000
PHOTOS = "Reading photographs"


def _photos(text: str, *names: str) -> Any:
    """An option on how image files are read."""
    return typer.Option(*names, help=text, rich_help_panel=PHOTOS, show_default=False)


WorkersOption = Annotated[
    int | None, _photos("Processes that decode ahead; 0 for none. (default: by the machine's cores)")
]
MaxBadOption = Annotated[
    int | None,
    _photos("Files that may be no readable image, and are left out. (default: 0)", "--max-bad-images"),
]


def loading_of(workers: int | None, max_bad: int | None) -> "Loading":
    """How image files are read, from the options.

    Raises:
        UsageError: if a number is out of range.
    """
    from resrepro.data.loader import Loading

    return Loading(workers, max_bad or 0)


def _recipe(text: str, *names: str, metavar: str | None = None) -> Any:
    """An option that changes the recipe; left out, the experiment's own value stands."""
    panel = "Recipe (the paper's by default)"
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


IterationsOption = Annotated[int | None, _recipe("Shorter (or longer) schedule of the same shape.")]
BatchSizeOption = Annotated[int | None, _recipe("Images per batch.")]
SplitOption = Annotated[str | None, _recipe("CIFAR-10, 45k5k: train on 45,000, validate on 5,000.")]
ImageSizeOption = Annotated[
    int | None, _recipe("Photographs: side of a crop instead of 224; scales in proportion.")
]
Stride3x3Option = Annotated[
    bool, _recipe("A bottleneck's stride on its 3x3 instead of its first 1x1.", "--stride-3x3")
]
BnStatsOption = Annotated[
    str | None, _recipe("Photographs, BN at test: running, or precise (plain averages over batches).")
]
BnGroupOption = Annotated[int | None, _recipe("Images that share BN statistics; 0: the whole batch.")]
PrecisionOption = Annotated[str | None, _recipe("float32, tf32, bf16 or fp16.")]
EvalEveryOption = Annotated[int | None, _recipe("Iterations between samples.")]
SettingsOption = Annotated[
    list[str] | None,
    _recipe(
        "Any setting that `resrepro list EXPERIMENT` shows; may be repeated.", "--set", metavar="KEY=VALUE"
    ),
]


def parse_settings(pairs: list[str]) -> dict[str, Value]:
    """`["lr=0.05", "flip=off"]` -> `{"lr": 0.05, "flip": False}`.

    Raises:
        UsageError: if one is not key=value, unknown, or of the wrong type.
    """
    settings: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, not {pair!r}.")
        settings[key.strip()] = parse(key.strip(), text)
    return settings


def parse_seeds(text: str) -> list[int]:
    """`0-4` -> [0, 1, 2, 3, 4]; `0,3,7` -> [0, 3, 7]; both may be mixed.

    Raises:
        UsageError: if it is neither.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes 0-4 or 0,1,2, not {text!r}.")
        low, high = int(first), int(last or first)
        if low > high:
            raise UsageError(f"--seeds {text}: {part.strip()} is not a range from low to high.")
        if high - low >= MOST_SEEDS:
            raise UsageError(f"--seeds {text}: that is more than {MOST_SEEDS:,} seeds.")
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))


def parse_channels(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45` -> (0.49, 0.48, 0.45); None stays None.

    Raises:
        UsageError: if it is not three numbers.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UsageError(
            f"{option} takes three numbers, one per channel, such as 0.49,0.48,0.45, not {text!r}."
        )
    return values
