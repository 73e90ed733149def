"""Options that several commands share, and the parsing of their small notations."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resrepro.errors import UsageError
from resrepro.specs import Value, parse

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder of CIFAR-10, official python or binary layout "
        "(default: $RESREPRO_DATA, else ./data, downloaded if missing)", show_default=False,
    ),
]  # fmt: skip
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of run records.")]
RunFoldersOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--runs", metavar="DIR", help="Folder of run records; may be repeated. (default: runs, results)",
        show_default=False,
    ),
]  # fmt: skip
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads. (default: one per core)", show_default=False),
]


def _recipe(text: str, *names: str, metavar: str | None = None) -> Any:
    """An option that changes the recipe; left out, the experiment's own value stands."""
    panel = "Recipe (the paper's by default)"
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


IterationsOption = Annotated[int | None, _recipe("Shorter (or longer) schedule of the same shape.")]
BatchSizeOption = Annotated[int | None, _recipe("Images per batch.")]
SplitOption = Annotated[str | None, _recipe("45k5k: train on 45,000, validate on 5,000.")]
BnGroupOption = Annotated[
    int | None, _recipe("Images that share BN statistics; 64 as on the paper's two GPUs.")
]
PrecisionOption = Annotated[str | None, _recipe("float32, tf32 or bf16.")]
EvalEveryOption = Annotated[int | None, _recipe("Iterations between samples.")]
SettingsOption = Annotated[
    list[str] | None,
    _recipe("Any setting that `resrepro protocol` lists; may be repeated.", "--set", metavar="KEY=VALUE"),
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
        span = range(int(first), int(last or first) + 1)
        if not span or len(span) > 10_000:
            raise UsageError(f"--seeds {text}: {part.strip()} is not a range from low to high.")
        seeds += span
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
