"""Writing run records: one folder per run, small text files, replaced whole or appended to.

Layout: `runs/<name>/seed<k>/` with spec.json, env.json, metrics.csv, result.json, checkpoint.pt and
evals/. `resrepro.records` reads them.
"""

import contextlib
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resrepro.errors import RecordError, UsageError
from resrepro.measurements import ensemble_from
from resrepro.records import (
    CHECKPOINT,
    ENSEMBLES,
    ENV,
    EVALS,
    METRICS,
    METRICS_COLUMNS,
    RECORD_FILES,
    RESULT,
    SPEC,
    Run,
    read_json,
    read_measured,
)
from resrepro.specs import Spec, digest_of

FORMAT = 1
PATH_OPTIONS = ("--data", "--runs", "--tables", "--figures", "--out", "--results")
PATH_STARTS = ("/", "~", "..")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file whole: a reader sees the old content or the new, never a part."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise RecordError(f"cannot write {path}: {error.strerror or error}.") from None


class RunWriter:
    """The record of one run while it is being made; `aside` is where an earlier one was moved, if any."""

    def __init__(self, folder: Path, aside: Path | None = None) -> None:
        self.folder = folder
        self.aside = aside

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / CHECKPOINT

    def begin(self, spec: Spec, seed: int, env: Mapping[str, Any]) -> None:
        """Write what is known before the first iteration."""
        content = {"format": FORMAT, "name": spec.name, "digest": spec.digest, "seed": seed}
        write_json(self.folder / SPEC, content | {"spec": spec.to_json()})
        write_json(self.folder / ENV, env)
        write_whole(self.folder / METRICS, (",".join(METRICS_COLUMNS) + "\n").encode())

    def add_session(self, iteration: int, env: Mapping[str, Any]) -> None:
        """Note in env.json that another session, perhaps elsewhere, went on from `iteration`."""
        record = read_json(self.folder / ENV)
        session = {key: env[key] for key in env if record.get(key) != env[key] and key != "started"}
        later = [*record.get("later_sessions", []), {"from_iteration": iteration, **session}]
        write_json(self.folder / ENV, record | {"later_sessions": later})

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows to metrics.csv and force them to disk."""
        try:
            with (self.folder / METRICS).open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RecordError(f"cannot write {self.folder / METRICS}: {error.strerror or error}.") from None

    def cut_back(self, iteration: int) -> None:
        """Drop the rows of metrics.csv past `iteration`, from which a resumed run goes on.

        Raises:
            RecordError: if the file is missing or broken.
        """
        path = self.folder / METRICS
        try:
            header, *lines = path.read_text(encoding="utf-8").split("\n")
            *whole, _ = lines  # what follows the last line end is nothing, or a row torn by a crash
            kept = [line for line in whole if int(line.split(",")[0]) <= iteration]
        except (OSError, ValueError):
            raise RecordError(
                f"{path} is missing or broken, so the run cannot go on: start it anew with --fresh."
            ) from None
        write_whole(path, ("\n".join([header, *kept]) + "\n").encode())

    def result(self, content: Mapping[str, Any]) -> None:
        """Replace result.json."""
        write_json(self.folder / RESULT, {"format": FORMAT, **content})


class Onlooker(RunWriter):
    """The record as a further process of the run sees it: the first one writes, this one does not."""

    def begin(self, spec: Spec, seed: int, env: Mapping[str, Any]) -> None:
        """Leave it to the first process."""

    def add_session(self, iteration: int, env: Mapping[str, Any]) -> None:
        """Leave it to the first process."""

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Leave it to the first process."""

    def cut_back(self, iteration: int) -> None:
        """Leave it to the first process."""

    def result(self, content: Mapping[str, Any]) -> None:
        """Leave it to the first process."""


def run_folder(runs: Path, spec: Spec, seed: int) -> Path:
    """Where a run's record lies: `runs/<name>/seed<k>`."""
    return runs / spec.name / f"seed{seed}"


def open_run(runs: Path, spec: Spec, seed: int, *, fresh: bool = False) -> RunWriter:
    """The folder of a run, made if missing; with `fresh` an existing one is set aside first.

    So is one that holds curves but no checkpoint to go on from.

    Raises:
        UsageError: if the folder holds a run of another specification.
        RecordError: if the folder cannot be made or written.
    """
    folder = run_folder(runs, spec, seed)
    aside = None
    try:
        if fresh and folder.exists():
            aside = set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecordError(
            f"cannot write to the runs folder {runs}: {error.strerror}. Choose another with --runs."
        ) from None
    if (folder / SPEC).exists() and digest_of(read_json(folder / SPEC).get("spec", {})) != spec.digest:
        raise UsageError(f"{folder} holds a run of another specification: set it aside with --fresh.")
    if (folder / METRICS).exists() and not (folder / CHECKPOINT).exists() and _has_rows(folder / METRICS):
        aside = set_aside(folder)  # its curves cannot be continued, but they are somebody's hours
        folder.mkdir()
    return RunWriter(folder, aside)


def _has_rows(metrics: Path) -> bool:
    return metrics.read_bytes().count(b"\n") > 1


def set_aside(folder: Path) -> Path:
    """Rename a run folder so that nothing reads it any more, and nothing is lost."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.aside{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def publish(run: Run, results: Path) -> Path:
    """Copy a finished record, without its checkpoint, to `results/<name>/seed<k>/`; returns that folder.

    Raises:
        RecordError: if the run is unfinished, or another record lies there already.
    """
    if not run.finished:
        raise RecordError(f"{run.folder} is {run.status}, not finished: only finished runs are published.")
    target = results / run.name / f"seed{run.seed}"
    sources = [run.folder / name for name in RECORD_FILES] + sorted((run.folder / EVALS).glob("*.json"))
    _copy({target / source.relative_to(run.folder): source.read_bytes() for source in sources})
    return target


def publish_ensemble(path: Path, results: Path) -> Path:
    """Copy the record of an ensemble to `results/ensembles/`; returns the copy.

    Raises:
        RecordError: if it is broken, or another record lies there already.
    """
    read_measured(path, ensemble_from)
    target = results / ENSEMBLES / path.name
    _copy({target: path.read_bytes()})
    return target


def _copy(copies: Mapping[Path, bytes]) -> None:
    """Write files that are not there yet.

    Raises:
        RecordError: if other content lies at one of the places; then nothing is written.
    """
    for path, content in copies.items():
        if path.exists() and path.read_bytes() != content:
            raise RecordError(
                f"{path} holds another record already: move it away first, nothing is overwritten."
            )
    for path, content in copies.items():
        write_whole(path, content)


def describe_environment(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Versions, machine and arguments, without paths, host or user names."""
    packages = ("resrepro", "torch", "torchvision", "numpy", "scikit-learn")
    commit, modified = source_commit()
    return {
        "format": FORMAT,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": commit,
        "modified": modified,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "arguments": None if arguments is None else without_paths(arguments),
        "started": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments with the value of every path option, and every absolute path, replaced by DIR."""
    told: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if told and told[-1] in PATH_OPTIONS:
            told.append("DIR")
        elif equals and (option in PATH_OPTIONS or value.startswith(PATH_STARTS)):
            told.append(f"{option}=DIR")
        else:
            told.append("DIR" if argument.startswith(PATH_STARTS) else argument)
    return told


def source_commit() -> tuple[str | None, bool | None]:
    """The git commit that this package's source is checked out at, and whether it was changed since.

    None where the package is not part of a git checkout.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(here)))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
