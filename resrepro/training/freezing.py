"""What a run takes from its machine, which holds from its first start on: device, threads, arithmetic.

Sums are rounded differently by other devices and other numbers of threads. A run that goes on repeats the
choices of its first start, or says why it cannot.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resrepro.errors import RecordError, UsageError
from resrepro.processes import world_size
from resrepro.records import MALFORMED
from resrepro.records.record_files import RESULT, SPEC, read_json
from resrepro.records.recording import has_checkpoint
from resrepro.spec.specs import Spec, digest_of
from resrepro.training.device import choose_device

TOLD = {  # entries of env.json that change the rounding where they differ, and that nobody can repeat
    "cpu": "CPU",
    "gpu": "GPU",
    "processes": "number of processes",
    "micro_batch": "images per pass",
    "kernels": "compiled kernels",
}


def check_no_twin(folder: Path, spec: Spec, seed: int) -> None:
    """Refuse to begin a run that was begun already with other BN groups, from which it would go on.

    The number of processes and of passes decides on the groups where nobody asked for any.

    Raises:
        UsageError: if there is such a run; it is named.
    """
    if folder.exists():
        return
    runs, base = folder.parent.parent, folder.parent.name.partition("+")[0]
    for other in [runs / base / folder.name, *sorted(runs.glob(f"{base}+*/{folder.name}"))]:
        group = _group_of_twin(other, spec) if has_checkpoint(other) else None
        if group is not None:
            whose = f"groups of {group}" if group else "the whole batch"
            raise UsageError(
                f"{other} is this run, begun with BN over {whose}: go on with it by --bn-group {group}, "
                f"or say --bn-group {spec.recipe.bn_group} for a run of its own."
            )


def _group_of_twin(folder: Path, spec: Spec) -> int | None:
    """The BN group of a run that differs in nothing else and is not finished; None if it is another."""
    try:
        told, result = read_json(folder / SPEC)["spec"], read_json(folder / RESULT)
        group = told["recipe"]["bn_group"]
        wanted = replace(spec, recipe=replace(spec.recipe, bn_group=group))
        same = digest_of(told) == wanted.digest and group != spec.recipe.bn_group
        return int(group) if same and result["status"] == "partial" else None
    except (RecordError, *MALFORMED):
        return None


def frozen_device(asked: str, chosen: torch.device, env: Mapping[str, Any] | None) -> torch.device:
    """The device that a run goes on on: the kind it began on.

    Raises:
        UsageError: if it is not there, or another one was asked for.
    """
    kind = chosen.type if env is None else env["device"]
    if chosen.type == kind:
        return chosen
    if asked == "auto" and world_size() == 1:
        return choose_device(kind)
    raise UsageError(
        f"this run was begun on {kind}, and {chosen.type} would round differently: say --device {kind}, "
        "or start anew with --fresh."
    )


def frozen_threads(
    asked: int | None, device: torch.device, env: Mapping[str, Any] | None, if_new: int | None = None
) -> int | None:
    """The CPU threads that a run goes on with: as many as it began with; a new one by default `if_new`.

    Raises:
        UsageError: if another number was asked for.
    """
    if env is None or device.type != "cpu":
        return if_new if asked is None else asked
    begun = int(env["threads"])
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
