"""Errors meant for people: one sentence that names the trouble and the way out.

The command line prints the sentence and exits with `exit_code`; no traceback is shown.
"""


class ResreproError(Exception):
    """Something went wrong that the user can act on (exit code 1)."""

    exit_code = 1
    told = False  # whether another process of the run tells it


class UsageError(ResreproError, ValueError):
    """The request itself cannot be met: a wrong option, name or value (exit code 2)."""

    exit_code = 2


class DataError(ResreproError):
    """A dataset is missing, damaged or not what it says it is."""


class RecordError(ResreproError):
    """A run folder, record or checkpoint cannot be read or written."""


class Diverged(ResreproError):
    """The loss stopped being finite; the record up to that point is kept."""


class PeerLost(ResreproError):
    """Another process of the run ended, so this one cannot go on."""


class Interrupted(ResreproError):
    """A signal stopped the run after a checkpoint was written (exit code 128 + signal number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, so that another process can be told
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])
