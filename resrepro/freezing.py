"""What a run takes from its machine, which holds from its first start on: device, threads, arithmetic.

Sums are rounded differently by other devices and other numbers of threads. A run that goes on repeats the
choices of its first start, or says why it cannot.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resrepro.checkpoint import load_newest
from resrepro.device import choose_device
from resrepro.errors import RecordError, UsageError
from resrepro.processes import world_size
from resrepro.record_files import ENV, read_json
from resrepro.recording import has_checkpoint

TOLD = {  # entries of env.json that change the rounding where they differ, and that nobody can repeat
    "cpu": "CPU",
    "gpu": "GPU",
    "processes": "number of processes",
    "micro_batch": "images per pass",
}


def first_start(folder: Path) -> dict[str, Any] | None:
    """The env.json of a run's first start, None if there is nothing to go on from.

    Raises:
        RecordError: if it has to be taken from a checkpoint that is damaged.
    """
    if not has_checkpoint(folder):
        return None
    try:
        return read_json(folder / ENV)
    except RecordError:
        found = load_newest(folder)
        env = None if found is None else found[0].get("env")
        return env if isinstance(env, dict) else None


def frozen_device(asked: str, chosen: torch.device, env: Mapping[str, Any] | None) -> torch.device:
    """The device that a run goes on on: the kind it began on.

    Raises:
        UsageError: if it is not there, or another one was asked for.
    """
    kind = chosen.type if env is None else str(env.get("device", chosen.type))
    if chosen.type == kind:
        return chosen
    if asked == "auto" and world_size() == 1:
        return choose_device(kind)
    raise UsageError(
        f"this run was begun on {kind}, and {chosen.type} would round differently: say --device {kind}, "
        "or start anew with --fresh."
    )


def frozen_threads(asked: int | None, device: torch.device, env: Mapping[str, Any] | None) -> int | None:
    """The CPU threads that a run goes on with: as many as it began with.

    Raises:
        UsageError: if another number was asked for.
    """
    begun = None if env is None else env.get("threads")
    if device.type != "cpu" or not isinstance(begun, int):
        return asked
    if asked not in (None, begun):
        threads = f"{begun} thread{'s' * (begun != 1)}"
        raise UsageError(
            f"this run was begun with {threads}, and {asked} would round differently: say --threads {begun}, "
            "or start anew with --fresh."
        )
    return begun


def differences(env: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine differs from the first start and may change the rounding, in words."""
    pairs = {words: (env.get(key), now.get(key)) for key, words in TOLD.items()}
    pairs["torch"] = (env.get("versions", {}).get("torch"), now.get("versions", {}).get("torch"))
    return [
        f"{words} ({before} at the start, now {here})"
        for words, (before, here) in pairs.items()
        if before != here
    ]
