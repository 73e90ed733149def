"""The command line: Typer options in, one call of the API, rich output. No logic of its own."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from resrepro.errors import Diverged, Interrupted, ResreproError, UsageError, sentence_on
from resrepro.spec.recipe import Value, parse
from resrepro.training import is_first, local_rank, rank

# The order in `--help`.
ORDER = (
    "reproduce", "train", "status", "eval", "compare", "plot", "claims", "report", "demo",
    "bench", "list", "publish",
)  # fmt: skip


class Commands(TyperGroup):
    """Commands whose expected errors become one sentence on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, those that people type most first."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Exits with 2 for usage, 1 for failure and 128 + signal number for an interruption.
        """
        try:
            return super().invoke(ctx)
        except ResreproError as error:
            alike = isinstance(error, UsageError | Interrupted | Diverged) and local_rank() > 0
            if error.told or alike:  # the first process, or the first of this machine, says it
                raise typer.Exit(error.exit_code) from None
            where = "" if is_first() else f"process {rank()}: "
            _fail(f"{where}{error}", error.exit_code, "" if isinstance(error, Interrupted) else "error: ")
        except KeyboardInterrupt:
            _fail("interrupted.", 130)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone: nothing left to say
            raise SystemExit(1) from None
        except OSError as error:
            _fail(sentence_on(error), 1)


def _fail(sentence: str, code: int, lead: str = "error: ") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble((lead, "red"), sentence), soft_wrap=not console.is_terminal)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Commands,
    name="resrepro",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reproduce [i]Deep Residual Learning for Image Recognition[/i] (He, Zhang, Ren, Sun, 2015): "
    "plain against residual nets, the paper's numbers beside yours, every departure told.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"resrepro {version('resrepro')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


# --- options that several commands share, and their small notations ------------------------------------

SPEED, PHOTOS, QUEUE = "Speed", "Reading photographs", "Cluster"
RECIPE = "Recipe (the paper's by default)"
MOST_SEEDS = 10_000


def option(text: str, *names: str, panel: str | None = None, metavar: str | None = None) -> Any:
    """An option whose help names its default itself, if it has one."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


DataOption = Annotated[
    Path | None,
    option(
        "Folder of CIFAR-10 (default: $RESREPRO_DATA, else ./data, downloaded if missing), or of "
        "photographs: train/<class>/* and val/<class>/*.",
        "--data", metavar="DIR",
    ),
]  # fmt: skip
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of run records.")]
TablesOption = Annotated[Path, typer.Option("--tables", metavar="DIR", help="Where the tables are written.")]
FiguresOption = Annotated[
    Path, typer.Option("--figures", metavar="DIR", help="Where the figures are written.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[int | None, option("CPU threads. (default: one per core)", "--threads")]
FastOption = Annotated[
    bool,
    option(
        "bf16 arithmetic where the hardware has it (fp16 on older GPUs); told beside every number.",
        "--fast", panel=SPEED,
    ),
]  # fmt: skip
JobsOption = Annotated[
    int | None,
    option(
        "Runs at once, each with --threads, or its share of the cores. (default: by cores, memory, GPU)",
        "--jobs",
    ),
]  # fmt: skip
WorkersOption = Annotated[
    int | None,
    option("Processes that decode ahead; 0 for none. (default: by the machine's cores)", panel=PHOTOS),
]
MaxBadOption = Annotated[
    int | None,
    option(
        "Files that may be no readable image, and are left out. (default: 0)", "--max-bad-images",
        panel=PHOTOS,
    ),
]  # fmt: skip
IterationsOption = Annotated[
    int | None, option("Shorter (or longer) schedule of the same shape.", panel=RECIPE)
]
SplitOption = Annotated[
    str | None, option("CIFAR-10, 45k5k: train on 45,000, validate on 5,000.", panel=RECIPE)
]
SettingsOption = Annotated[
    list[str] | None,
    option(
        "Any setting that `resrepro list EXPERIMENT` shows; may be repeated.", "--set", panel=RECIPE,
        metavar="KEY=VALUE",
    ),
]  # fmt: skip
LauncherOption = Annotated[
    str,
    typer.Option(
        "--launcher", metavar="local|slurm", rich_help_panel=QUEUE,
        help="Train here, or submit the runs to a Slurm cluster's queue.",
    ),
]  # fmt: skip
SlurmOption = Annotated[
    list[str] | None,
    option(
        "Any long option of sbatch (partition, time, cpus-per-task, gpus, mem, ..); may be repeated.",
        "--slurm", metavar="KEY=VALUE", panel=QUEUE,
    ),
]  # fmt: skip


class WithExhibits(TyperCommand):
    """A command whose help names the exhibits; they are looked up only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, the names in place of the word NAMES."""
        from resrepro.figures import figures, tables
        from resrepro.launch import exhibit_names

        names = {"compare": tables, "plot": figures, "reproduce": exhibit_names}[str(self.name)]()
        parameter: Any = next(parameter for parameter in self.params if parameter.name == "exhibits")
        parameter.help = parameter.help.replace("NAMES", ", ".join(names))
        super().format_help(ctx, formatter)


def parse_pairs(pairs: Iterable[str] | None, option: str, example: str) -> dict[str, str]:
    """`["lr=0.05", "flip=off"]` -> `{"lr": "0.05", "flip": "off"}`.

    Raises:
        UsageError: if one is not key=value.
    """
    values = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} takes {example}, not {pair!r}.")
        values[key.strip()] = text.strip()
    return values


def changed_settings(pairs: list[str] | None, fast: bool, **named: Value | None) -> dict[str, Value]:
    """The settings of the recipe that `--set` and options of their own change, each given once.

    Raises:
        UsageError: if one is given twice, or is no setting.
    """
    own = {key: value for key, value in named.items() if value is not None}
    texts = parse_pairs(pairs, "--set", "key=value")
    extra = {key: parse(key, text) for key, text in texts.items()}
    if twice := own.keys() & extra.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice, by its own option and by --set.")
    if fast and "precision" in own | extra:
        raise UsageError("--fast chooses the precision itself: leave one of the two out.")
    return own | extra


def precision_of_fast(device: str, launcher: str = "local") -> str:
    """What --fast stands for where names of runs are wanted before they begin: here that of this machine.

    In a queue it is bf16, which newer hardware has.

    Raises:
        UsageError: if there is no such device.
    """
    if launcher == "slurm":
        return "bf16"
    from resrepro.training.engine import choose_device, fast_precision

    return fast_precision(choose_device(device))


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


def parse_slurm(pairs: Sequence[str] | None, launcher: str) -> dict[str, str]:
    """`["partition=gpu", "cpus-per-task=4"]` -> `{"partition": "gpu", "cpus_per_task": "4"}`.

    Raises:
        UsageError: if one is not key=value or is given where nothing is submitted; if there is no such
            launcher.
    """
    if launcher not in ("local", "slurm"):
        raise UsageError(f"--launcher takes local or slurm, not {launcher!r}.")
    if pairs and launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm, which submits the runs to a cluster's queue.")
    example = "key=value, such as partition=gpu"
    options = parse_pairs(pairs, "--slurm", example)
    for key, value in options.items():
        if not re.fullmatch(r"\w[\w-]*", key) or not value.isprintable():
            raise UsageError(f"--slurm takes {example}, not {f'{key}={value}'!r}.")
    return {key.replace("-", "_"): value for key, value in options.items()}


def main() -> None:
    """Entry point of the `resrepro` command."""
    app(prog_name="resrepro")


from resrepro.cli import bench, evaluate, reproduce, show, status, train  # noqa: E402, F401
