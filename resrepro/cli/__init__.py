"""The command line: Typer options in, one call of the API, rich output. No logic of its own."""

import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

import resrepro
from resrepro.cli.view import screens, silence, to_stderr
from resrepro.comparison.table import prepare
from resrepro.errors import Diverged, Interrupted, ResreproError, UsageError
from resrepro.spec.recipe import Value, parse, setting_rules, whole_number
from resrepro.training import is_first, local_rank, rank

ORDER = "reproduce, train, status, eval, compare, plot, claims, report, demo, bench, list, publish"


class Commands(TyperGroup):
    """Commands whose expected errors become one sentence on stderr and an exit code."""

    words: list[str]  # that were typed

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, those that people type most first."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the words of a command line, `~` being the home folder in `--runs=~/x` and '~/x' too."""
        self.words = ["=".join(map(os.path.expanduser, word.split("=", 1))) for word in args]
        return super().parse_args(ctx, list(self.words))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exits with 2 for usage, 1 for failure (as a stdout that cannot be written, but not
        one whose reader has ended), 128 + signal number for an interruption.
        """

        def lost(error: OSError) -> None:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if error.errno != errno.EPIPE:
                print(f"error: stdout cannot be written: {error.strerror}.", file=sys.stderr)
            elif getattr(command, "rich_help_panel", "") == "Run":
                print("The reader of the output has ended: the command goes on unseen.", file=sys.stderr)

        def end(sentence: str, code: int, lead: str = "error: ") -> typer.Exit:
            to_stderr(Text.assemble((lead, "red"), sentence))
            return typer.Exit(code)

        with screens(lost) as out:
            try:
                result = super().invoke(ctx)
            except ResreproError as error:
                alike = isinstance(error, UsageError | Interrupted | Diverged) and local_rank() > 0
                if error.told or alike:  # the first process, or the first of this machine, says it
                    raise typer.Exit(error.exit_code) from None
                sentence = f"{error}" if is_first() else f"process {rank()}: {error}"
                lead = "" if isinstance(error, Interrupted) else "error: "
                raise end(sentence, error.exit_code, lead) from None
            except KeyboardInterrupt:
                raise end("interrupted.", 130) from None
            except OSError as error:
                place = f"{error.filename}: " if error.filename else ""
                raise end(f"{place}{error.strerror or error}.", 1) from None
            except Exception as error:  # among others Typer's own
                if answer := self._answer(getattr(error, "option_name", "")):
                    raise end(answer, UsageError.exit_code) from None
                raise
        if out.error and out.error.errno != errno.EPIPE:
            raise typer.Exit(1)
        return result

    def _answer(self, option: str) -> str:
        """How we spell what other tools call so; empty where there is nothing of the kind."""
        key = option.removeprefix("--").replace("-", "_")
        key = {"wd": "weight_decay", "learning_rate": "lr", "bs": "batch_size"}.get(key, key)
        if key in ("resume", "continue"):
            return f"the same command goes on with a run that was stopped: leave {option} out."
        if key in ("epoch", "epochs"):
            epoch = "an epoch of CIFAR-10 is 391 of them, of ImageNet 5,005"
            return f"{option} is told as --iterations: {epoch}."
        if key not in setting_rules():
            return ""
        given = re.search(rf"^{re.escape(option)}(?:=|\n)(.*)$", "\n".join(self.words), re.MULTILINE)
        value = given[1] if given and not given[1].startswith("--") else ".."
        return f"{option} is a setting of the recipe: --set {key}={value}"


app = typer.Typer(
    cls=Commands, name="resrepro", no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
    help="Reproduce [i]Deep Residual Learning for Image Recognition[/i] (He, Zhang, Ren, Sun, 2015): "
    "plain against residual nets, the paper's numbers beside yours, every departure told.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        print("resrepro", resrepro.__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `resrepro` command."""
    prepare()
    app(prog_name="resrepro")


# --- options that several commands share, and their small notations ------------------------------------


def option(text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option whose help names its default itself, if it has one."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


def argument(text: str, metavar: str) -> Any:
    """What a command is about, whose help names its default itself, if it has one."""
    names = _name_exhibits if metavar.startswith("EXHIBIT") else None
    return typer.Argument(metavar=metavar, help=text, show_default=False, callback=names)


def _name_exhibits(ctx: typer.Context, words: list[str] | None) -> list[str] | None:
    """`fig6`, `figure-6`, `Table 6` and `6` -> as exhibits are called; a number alone is a figure to plot."""
    usual, text = "figure" if ctx.info_name == "plot" else "table", " ".join(words or ()).lower()
    pattern = r"(?<!\S)(?:(tab)(?:le)?|(fig)(?:ure)?)?\.?[\s_-]*(\d)"
    kinds = re.sub(pattern, lambda m: ("table" if m[1] else "figure" if m[2] else usual) + m[3], text)
    return kinds.split()


def _whole(text: str) -> int:
    try:
        return whole_number(text)
    except (ValueError, ArithmeticError):
        raise typer.BadParameter(f"a whole number is wanted, such as 64000 or 64e3, not {text!r}.") from None


recipe_option = partial(option, panel="Recipe (the paper's by default)")
whole_option = partial(recipe_option, parser=_whole, metavar="INTEGER")  # also as 64e3 or 64k
folder_option = partial(typer.Option, metavar="DIR")
photo_option = partial(option, panel="Reading photographs")

IMAGES = (
    "Folder of CIFAR-10 (default: $RESREPRO_DATA, else ./data, downloaded if missing), or of photographs: "
    "train/<class>/* and val/<class>/*"
)
DEPTHS = "--depth takes numbers of layers, such as 20 or 20,56"
DEPTH = "Weighted layers: 6n+2, on photographs 18, 34, 50, 101, 152; may be repeated."
SLURM = "Any long option of sbatch (partition, time, cpus-per-task, gpus, mem, ..); may be repeated."
SET = "Any setting that `resrepro list EXPERIMENT` shows; may be repeated."
FAST = "bf16 arithmetic where the hardware has it (fp16 on older GPUs); told beside every number."
WORKERS = "Processes that decode ahead; 0 for none. (default: by the machine's cores)"
BAD = "Files that may be no readable image, and are left out. (default: 0)"
LAUNCHER = "Train here, or submit the runs to a Slurm cluster's queue."
JOBS = "Runs at once, each with --threads, or its share of the cores. (default: by cores, memory, GPU)"

DataOption = Annotated[Path | None, option(f"{IMAGES}.", "--data", metavar="DIR")]
RunsOption = Annotated[Path, folder_option(help="Folder of run records.")]
TablesOption = Annotated[Path, folder_option(help="Where the tables are written.")]
FiguresOption = Annotated[Path, folder_option(help="Where the figures are written.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[int | None, option("CPU threads. (default: one per core)", "--threads")]
FastOption = Annotated[bool, option(FAST, "--fast", panel="Speed")]
JobsOption = Annotated[int | None, option(JOBS, "--jobs")]
WorkersOption = Annotated[int | None, photo_option(WORKERS)]
MaxBadOption = Annotated[int | None, photo_option(BAD, "--max-bad-images")]
DepthOption = Annotated[list[str] | None, option(DEPTH, "--depth", metavar="20,56")]
IterationsOption = Annotated[int | None, whole_option("Shorter (or longer) schedule of the same shape.")]
SplitOption = Annotated[str | None, recipe_option("CIFAR-10, 45k5k: train on 45,000, validate on 5,000.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors alone.", callback=silence)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.", callback=silence)]
SettingsOption = Annotated[list[str] | None, recipe_option(SET, "--set", metavar="KEY=VALUE")]
LauncherOption = Annotated[str, typer.Option(metavar="local|slurm", rich_help_panel="Cluster", help=LAUNCHER)]
SlurmOption = Annotated[list[str] | None, option(SLURM, panel="Cluster", metavar="KEY=VALUE")]


def parse_pairs(pairs: Iterable[str] | None, option: str, example: str) -> dict[str, str]:
    """`["lr=0.05", "flip=off"]` -> `{"lr": "0.05", "flip": "off"}`; raises a UsageError for anything else."""
    values = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} takes {example}, not {pair!r}.")
        values[key.strip()] = text.strip()
    return values


def changed_settings(given: Mapping[str, Any]) -> dict[str, Value]:
    """The settings that given options change, by their own names or by `--set` (a UsageError if by both)."""
    own = {key: given[key] for key in setting_rules() if given.get(key) is not None}
    texts = parse_pairs(given["settings"], "--set", "key=value")
    extra = {key: parse(key, text) for key, text in texts.items()}
    if twice := own.keys() & extra.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice, by its own option and by --set.")
    if given["fast"] and "precision" in own | extra:
        raise UsageError("--fast chooses the precision itself: leave one of the two out.")
    return own | extra


def precision_of_fast(device: str, launcher: str) -> str:
    """What --fast stands for where runs are named before they begin: on this machine; in a queue bf16."""
    if launcher == "slurm":
        return "bf16"
    from resrepro.training.engine import choose_device, fast_precision

    return fast_precision(choose_device(device))


def parse_numbers(texts: Iterable[str] | None, expected: str) -> list[int]:
    """`["20,32", "56"]` -> [20, 32, 56]; raises a UsageError where one is no whole number above 0."""
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise UsageError(f"{expected}, not {wrong[0]!r}.")
    return list(map(int, parts))


def parse_seeds(text: str) -> list[int]:
    """`5`, which is how many, and `0-4` -> [0, 1, 2, 3, 4]; `0,3,7-8` -> [0, 3, 7, 8]; else a UsageError."""
    seeds: list[int] = []
    for part in [f"0-{int(text) - 1}"] if text.strip().isdecimal() else text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if ends is None:
            raise UsageError(f"--seeds takes how many, or which: 5, 0-4 or 0,3; not {text!r}.")
        low, high = int(ends[1]), int(ends[2] or ends[1])
        if not low <= high < low + 10_000:
            raise UsageError(f"--seeds {text}: a range goes up, and has at most 10,000 seeds.")
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))


def parse_slurm(pairs: Sequence[str] | None, launcher: str) -> dict[str, str]:
    """`["cpus-per-task=4"]` -> `{"cpus_per_task": "4"}`; a UsageError if that or the launcher is none."""
    if launcher not in ("local", "slurm"):
        raise UsageError(f"--launcher takes local or slurm, not {launcher!r}.")
    if pairs and launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm, which submits the runs to a cluster's queue.")
    options = parse_pairs(pairs, "--slurm", "key=value, such as partition=gpu")
    return {key.replace("-", "_"): value for key, value in options.items()}


from resrepro.cli import measure, reproduce, show, status, train  # noqa: E402, F401
