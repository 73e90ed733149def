"""What a record says of the machine and the versions that made it, without paths, host or user names."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrepro.records.record_files import FORMAT

PATH_OPTIONS = ("--data", "--runs", "--tables", "--figures", "--out", "--results")
PATH_STARTS = ("/", "~", "..")


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
        "cpu": cpu_model(),
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
    here = Path(__file__).parents[1]  # the package

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(here)))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The model name of the processor, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where what can be made anew is kept between runs: `resrepro` in XDG_CACHE_HOME, else in ~/.cache."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "resrepro"
    try:
        return Path.home() / ".cache" / "resrepro"
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull)
