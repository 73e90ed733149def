"""What `--slurm` may say of a job, checked, and as submitit is to tell it to sbatch."""

import re
from collections.abc import Mapping
from typing import Any

from resrepro.errors import UsageError
from resrepro.launch.queueing import FOLDER
from resrepro.records.reading import CONTROL

DEFAULTS = {"time": "4:00:00", "cpus": "2"}
OURS = {  # the words of --slurm that are not sbatch's, and submitit's for them
    "time": "time", "cpus": "cpus_per_task", "gpus": "gpus_per_node", "parallel": "array_parallelism",
    "signal_delay": "signal_delay_s",
}  # fmt: skip
# sbatch's own words for what ours say: as further options they would stand beside ours, and one be lost.
ALIASES = {"cpus_per_task": "cpus", "gpus_per_node": "gpus", "gpus_per_task": "gpus"}
# A run is one task on one node, and these are what submitit needs for itself.
TAKEN = ("array", "error", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output", "signal", "wrap")
INSTEAD = {  # what would undo what is promised of a job
    "cpus_per_gpu": "CPU cores are those of a run: give cpus=",
    "no_requeue": "a run that was preempted goes on where it is requeued",
}
NAME = re.compile(r"[a-z][a-z0-9_]*")
GPU = re.compile(r"([\w.-]+):(.*)", re.ASCII)
CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def sbatch_parameters(options: Mapping[str, str], own: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What submitit is to tell sbatch.

    Args:
        options: `time` (minutes, or 4:00:00, or 1-12), `cpus` and `gpus` of a run (a number; of GPUs also
            with their kind, `a100:2`), `parallel` (runs at once), `signal_delay` (seconds before the time
            limit), and by its long name, with or without dashes, any option of sbatch: `partition`,
            `account`, `mem`, `qos`, ..; an empty value makes it a switch.
        own: what of `cpus` and `parallel` holds where the options do not say it.

    Raises:
        UsageError: if one is not known to be harmless, or is no number where it must be one, or if two say
            the same.
    """
    told = DEFAULTS | dict(own or {}) | _named(options)
    parameters: dict[str, Any] = {
        OURS[key]: _read(key, value) for key, value in told.items() if key in OURS
    }  # fmt: skip
    parameters["job_name"] = told.pop("job_name", "resrepro")
    others = {key.replace("_", "-"): value or True for key, value in told.items() if key not in OURS}
    return {**parameters, "additional_parameters": {"requeue": True, **others}}


def _named(options: Mapping[str, str]) -> dict[str, str]:
    """The options with underscores, those that we have a word for by that word.

    Raises:
        UsageError: if one cannot be passed on.
    """
    told: dict[str, str] = {}
    for given, value in options.items():
        key = given.replace("-", "_")
        if key in TAKEN:
            raise UsageError(
                f"--slurm {key}: that is set for each job: a run is one task, its log in {FOLDER}/."
            )
        if key in INSTEAD:
            raise UsageError(f"--slurm {key}: {INSTEAD[key]}.")
        if not NAME.fullmatch(key) or CONTROL.search(str(value)):
            raise UsageError(f"--slurm takes an option of sbatch as key=value, not {f'{key}={value}'!r}.")
        name = ALIASES.get(key, key)
        if name in told:
            raise UsageError(f"--slurm {name} is given twice, under sbatch's name for it too: leave one out.")
        told[name] = str(value)
    return told


def _read(key: str, value: str) -> int | str:
    """The value of one of our words."""
    if key == "time":
        return _minutes(value)
    kind = GPU.fullmatch(value) if key == "gpus" else None
    return f"{kind[1]}:{_count(key, kind[2])}" if kind else _count(key, value)


def _count(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or not 0 < int(value) < 10**6:
        raise UsageError(f"--slurm {key}= takes a whole number from 1, not {value!r}.")
    return int(value)


def _minutes(text: str) -> int:
    """A time in one of Slurm's notations, rounded up to minutes: 90, 90:00, 1:30:00, 1-12, 1-12:30.

    Raises:
        UsageError: if it is none.
    """
    found = CLOCK.fullmatch(text)
    if not found:
        raise UsageError(f"--slurm time= takes minutes, or 4:00:00, or days as in 1-12, not {text!r}.")
    days, *parts = (int(part or 0) for part in found.groups())
    given = sum(part is not None for part in found.groups()[1:])
    if found[1] or given == 3:  # hours first
        seconds = ((days * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]
    else:
        seconds = parts[0] * 60 + parts[1]
    if not 0 < seconds < 10**8:
        raise UsageError(f"--slurm time={text} is no time that a job can have.")
    return -(-seconds // 60)
