"""A made-up queue: commands of Slurm's names on the PATH, which answer what a test wants."""

import shlex
from pathlib import Path

import pytest


class Queue:
    """Programs in a folder that is first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answers(
        self, program: str, told: str | bytes = "", trouble: str = "", code: int = 0, seconds: int = 0
    ) -> None:
        """From now on the program says this on stdout and stderr, and ends with this code."""
        content = told if isinstance(told, bytes) else told.encode()
        (self.folder / f"{program}.told").write_bytes(content)
        asked = shlex.quote(str(self.folder / f"{program}.asked"))
        script = f"""#!/bin/sh
echo "$@" "$SQUEUE_STATES" >> {asked}
sleep {seconds}
cat {shlex.quote(str(self.folder / f"{program}.told"))}
printf '%s' {shlex.quote(trouble)} >&2
exit {code}
"""
        (self.folder / program).write_text(script)
        (self.folder / program).chmod(0o755)

    def asked(self, program: str) -> list[str]:
        """What the program was started with, a line a time."""
        path = self.folder / f"{program}.asked"
        return path.read_text().splitlines() if path.exists() else []
