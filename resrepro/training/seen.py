"""What this machine was seen to need for compiling a net, and how fast it trained it, kept between runs.

Only `--compile auto` asks for it; without it, or where it is damaged, that decides by rules of thumb.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resrepro.errors import UsageError
from resrepro.records.write import cache_folder

FILE = "seen.json"
CHOICES = ("auto", "on", "off")  # of --compile


@dataclass(frozen=True)
class Seen:
    """Seconds of the last compilation, and images/s by engine; empty where nothing was seen."""

    compile_seconds: float | None = None
    images_per_s: Mapping[str, float] = field(default_factory=dict)

    def saving(self, engine: str, images: int) -> float | None:
        """Seconds that the engine saves on so many images against eager; None if not both were seen."""
        speeds = self.images_per_s
        if engine not in speeds or "eager" not in speeds:
            return None
        return images * (1 / speeds["eager"] - 1 / speeds[engine])


def check_choice(asked: str) -> None:
    """Check what `--compile` asks for.

    Raises:
        UsageError: if there is no such choice.
    """
    if asked not in CHOICES:
        raise UsageError(f"--compile is auto, on or off, not {asked!r}.")


def look_up(key: str) -> Seen:
    """What was seen under a key that names machine, versions, net and arithmetic."""
    found = _read().get(key, {})
    told = found if isinstance(found, dict) else {}
    speeds = told.get("images_per_s")
    known = speeds if isinstance(speeds, dict) else {}
    return Seen(
        _positive(told.get("compile_seconds")),
        {name: speed for name, value in known.items() if (speed := _positive(value)) is not None},
    )


def _positive(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    return None


def remember(key: str, engine: str, *, compile_seconds: float = 0.0, images_per_s: float = 0.0) -> None:
    """Keep what was seen now, for positive values; where it cannot be written it is forgotten."""
    whole, known = _read(), look_up(key)
    speed = _positive(images_per_s)
    whole[key] = {
        "compile_seconds": _positive(compile_seconds) or known.compile_seconds,
        "images_per_s": {**known.images_per_s, **({} if speed is None else {engine: speed})},
    }
    with suppress(OSError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=folder, prefix=FILE)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1, sort_keys=True)
        Path(name).replace(folder / FILE)


def _read() -> dict[str, Any]:
    try:
        whole = json.loads((cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return whole if isinstance(whole, dict) else {}
