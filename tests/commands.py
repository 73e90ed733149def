"""Commands as a person types them, in this process, for the tests of the command line."""

from pathlib import Path

from conftest import write_run
from typer.testing import CliRunner

from resrepro.cli import app
from resrepro.launch.local import Outcome
from resrepro.spec.recipe import parse


def call(*words):
    """(exit code, stdout, stderr with line breaks folded) of one command; words may hold several."""
    result = CliRunner().invoke(app, [part for word in words for part in str(word).split()])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


class MadeUp(dict):
    """In place of `launch.local.Command`: makes runs up in an instant, or lets them end as it says.

    Its keys are (experiment, seed) of a run, or the name of another command; its values are outcomes.
    """

    def __call__(self, words, tell, threads=None, gpu=""):
        options = dict(zip(words[2::2], words[3::2], strict=False))
        key = (words[1], int(options["--seed"])) if words[0] == "train" else words[0]
        end = self.get(key, Outcome(0))
        if callable(end):
            end = end(words)
        elif words[0] == "train" and end.code == 0:
            pairs = [word.partition("=") for word in words if "=" in word]
            changed = {name: parse(name, value) for name, _, value in pairs}
            folder = write_run(Path(options["--runs"]), *key, data="digits", **changed)
            tell({"event": "finish", "folder": str(folder)})
        tell(end)
        return self

    def end(self):
        pass
