"""What there is of a run already: whether it is over, and whether it is of the same images."""

from collections.abc import Mapping
from pathlib import Path

from resrepro.errors import Diverged, RecordError
from resrepro.records import read_run
from resrepro.records.record_files import ENV, RESULT, read_json
from resrepro.records.recording import has_checkpoint
from resrepro.training.watching import Watcher


def already_over(folder: Path, watcher: Watcher) -> bool:
    """Whether the run in this folder is finished and its record whole; says so.

    A broken record is no end: it is restored by going on from the checkpoint, where there is one.

    Raises:
        Diverged: if it ended with a loss that is not finite.
        RecordError: if the record is broken and there is no checkpoint.
    """
    if not (folder / RESULT).exists():
        return False
    try:
        run = read_run(folder)
    except RecordError:
        if has_checkpoint(folder):
            return False
        raise
    if run.status == "diverged":
        raise Diverged(f"{folder} diverged earlier and is kept: start it anew with --fresh.")
    if run.finished:
        watcher.say(f"{folder} is finished already ({run.status}); --fresh would train it anew.")
    return run.finished


def check_same_images(folder: Path, checksums: Mapping[str, str]) -> None:
    """Refuse to offer a finished run as the result for other images.

    Raises:
        RecordError: if the run was trained on images with other checksums.
    """
    if read_json(folder / ENV).get("data", {}).get("sha256") != dict(checksums):
        raise RecordError(
            f"{folder} holds a finished run on other images (checksum differs): "
            "keep the two apart with --runs, or start anew with --fresh."
        )
