"""Writing run records: one folder per run, `runs/<name>/seed<k>/`, of small text files and checkpoints.

Order matters: rows reach the disk before the result or the checkpoint that counts on them. Rows that
neither tells of are those of a crash. What env.json says of the machine has no paths, host or user names.
"""

import datetime
import importlib.metadata
import itertools
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resrepro.errors import RecordError, UsageError
from resrepro.records.reading import (
    CHECKPOINT,
    ENV,
    FORMAT,
    METRICS,
    METRICS_COLUMNS,
    PREVIOUS,
    RESULT,
    SPEC,
    describe_curve,
    read_bytes,
    read_json,
)
from resrepro.records.storage import PART, append, make_folder, seal_of, write_json, write_whole
from resrepro.spec import Spec, digest_of

LATER = "later_sessions"
HEADER = (",".join(METRICS_COLUMNS) + "\n").encode()


class RunWriter:
    """The record of one run while it is being made."""

    def __init__(self, folder: Path, aside: Path | None = None) -> None:
        self.folder = folder
        self.aside = aside  # where an earlier record was moved, if there was one
        self.env: dict[str, Any] = {}  # the content of env.json
        self.curve = HEADER  # the content of metrics.csv
        self._of: dict[str, Any] = {}  # what binds the result to its run: digest and seed

    @property
    def checkpoint(self) -> Path:
        """Where the newest checkpoint lies."""
        return self.folder / CHECKPOINT

    def begin(self, spec: Spec, seed: int, env: Mapping[str, Any]) -> None:
        """Write what is known before the first iteration."""
        self.env = dict(env)
        self._of = {"digest": spec.digest, "seed": seed}
        write_json(self.folder / SPEC, describe_spec(spec, seed))
        write_json(self.folder / ENV, self.env)
        write_whole(self.folder / METRICS, self.curve)

    def go_on(
        self, spec: Spec, seed: int, env: Mapping[str, Any], curve: bytes, result: Mapping[str, Any]
    ) -> list[str]:
        """Bring the record to the state of a checkpoint; returns the files that had to be restored."""
        self.env, self.curve = dict(env), curve
        self._of = {"digest": spec.digest, "seed": seed}
        self.result(result)  # first: it must never vouch for rows that are cut off
        restored = []
        recorded = _whole(self.folder / ENV)
        if recorded is not None and seal_of({**recorded, LATER: 0}) == seal_of({**env, LATER: 0}):
            self.env = recorded  # it may tell of a session that wrote no checkpoint
        for name, content in ((SPEC, describe_spec(spec, seed)), (ENV, self.env)):
            recorded = _whole(self.folder / name)
            if recorded is None or seal_of(recorded) != seal_of(content):
                write_json(self.folder / name, content)
                restored.append(name)
        path, rows = self.folder / METRICS, b""
        with suppress(RecordError):
            rows = read_bytes(path)
        if rows != self.curve or path.stat().st_size != len(rows):
            write_whole(path, self.curve)
        return restored + ([] if rows.startswith(self.curve) else [METRICS])

    def add_session(self, iteration: int, env: Mapping[str, Any]) -> None:
        """Note in env.json that another session, perhaps elsewhere, went on from `iteration`."""
        session = {key: env[key] for key in env if self.env.get(key) != env[key] and key != "started"}
        later = [*self.env.get(LATER, []), {"from_iteration": iteration, **session}]
        self.env |= {LATER: later}
        write_json(self.folder / ENV, self.env)

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows to metrics.csv and force them to disk."""
        added = "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
        append(self.folder / METRICS, added, len(self.curve))
        self.curve += added

    def result(self, content: Mapping[str, Any]) -> None:
        """Replace result.json; it vouches for the rows so far."""
        vouching = {"format": FORMAT, **self._of, **content, "metrics": describe_curve(self.curve)}
        write_json(self.folder / RESULT, vouching)


class Onlooker(RunWriter):
    """The record as a further process of the run sees it: the first one writes, this one does not."""

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Leave it to the first process."""

    def result(self, content: Mapping[str, Any]) -> None:
        """Leave it to the first process."""


def describe_spec(spec: Spec, seed: int) -> dict[str, Any]:
    """The content of spec.json."""
    named = {"format": FORMAT, "name": spec.name, "digest": spec.digest, "seed": seed}
    return {**named, "spec": spec.to_json()}


def _whole(path: Path) -> dict[str, Any] | None:
    """A JSON record, None if it is missing or broken."""
    with suppress(RecordError):
        return read_json(path)
    return None


def run_folder(runs: Path, spec: Spec, seed: int) -> Path:
    """Where a run's record lies: `runs/<name>/seed<k>`."""
    return runs / spec.name / f"seed{seed}"


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from, newest or before."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def open_run(runs: Path, spec: Spec, seed: int, *, fresh: bool = False) -> RunWriter:
    """The folder of a run, made if missing (RecordError if it cannot be); with `fresh` an existing one is set
    aside first, and so is one that holds curves but no checkpoint to go on from. UsageError if it holds a run
    of another specification.
    """
    folder = run_folder(runs, spec, seed)
    aside = None
    try:
        curve = folder / METRICS  # without a checkpoint they cannot be continued, but are somebody's hours
        lost = not has_checkpoint(folder) and curve.exists() and curve.stat().st_size > len(HEADER)
        if lost or (fresh and folder.exists()):
            aside = set_aside(folder)
        make_folder(folder)
    except OSError as error:
        raise RecordError(
            f"cannot write to the runs folder {runs}: {error.strerror}. Choose another with --runs."
        ) from None
    for left in folder.glob(f".*{PART}"):  # by a process that was killed in the midst of writing
        left.unlink(missing_ok=True)
    recorded = _whole(folder / SPEC)  # None: none yet, or restored from the checkpoint
    if recorded is not None and digest_of(recorded.get("spec", {})) != spec.digest:
        raise UsageError(f"{folder} holds a run of another specification: set it aside with --fresh.")
    return RunWriter(folder, aside)


def set_aside(folder: Path) -> Path:
    """Rename a run folder so that nothing reads it any more, and nothing is lost."""
    names = (folder.with_name(f"{folder.name}.aside{number}") for number in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine, without paths, host or user names."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("resrepro", "torch", "torchvision", "numpy", "scikit-learn"):
        versions[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    here = Path(__file__).parents[1]  # the package
    commit, modified = None, None  # outside a git checkout

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return call.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, modified = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(here)))
    return {
        "format": FORMAT,
        "versions": versions,
        "commit": commit,
        "modified": modified,  # since that commit
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "started": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """The model name of the processor, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where what can be made anew is kept between runs: `resrepro` in XDG_CACHE_HOME, else in ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resrepro"
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull)
