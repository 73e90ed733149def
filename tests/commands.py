"""Commands as a person types them, in this process, for the tests of the command line."""

from typer.testing import CliRunner

from resrepro.cli import app


def call(*words):
    """(exit code, stdout, stderr with line breaks folded) of one command."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())
