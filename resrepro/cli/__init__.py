"""The command line: Typer options in, one call of the API, rich output. No logic of its own."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from resrepro.errors import Diverged, Interrupted, ResreproError, UsageError, sentence_on
from resrepro.training.processes import is_first, local_rank, rank

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


def main() -> None:
    """Entry point of the `resrepro` command."""
    app(prog_name="resrepro")


from resrepro.cli import (  # noqa: E402, F401
    bench,
    claims,
    demo,
    evaluate,
    exhibits,
    listing,
    report,
    reproduce,
    status,
    train,
)
