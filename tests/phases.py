"""Inside a process that is to be killed: where it is, noted in a file that outlives it."""

import contextlib
import mmap
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT = ("checkpoint write", "checkpoint sync", "checkpoint move")
PHASES = ("start-up", "loop", "data", "step", "evaluation", *CHECKPOINT, "record write", "closing")
LAYOUT = struct.Struct("<BBI")  # phase, whether the process is held there, updates made
LONGEST = 120  # seconds that anything may take


class Notes:
    """Where a process is, in a file that outlives it however it ends."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(LAYOUT.pack(0, 0, 0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LAYOUT.size)

    def __getitem__(self, place: int) -> int:
        return int(LAYOUT.unpack_from(self._map)[place])

    def __setitem__(self, place: int, value: int) -> None:
        values = list(LAYOUT.unpack_from(self._map))
        values[place] = value
        LAYOUT.pack_into(self._map, 0, *values)

    @property
    def phase(self) -> str:
        return PHASES[self[0]]

    @phase.setter
    def phase(self, name: str) -> None:
        self[0] = PHASES.index(name)

    @property
    def held(self) -> bool:
        return bool(self[1])

    @property
    def done(self) -> int:
        return self[2]


@dataclass
class Inside:
    """Notes the phases of a run, and holds the process in one of them once it has got beyond an update."""

    notes: Notes
    aim: str
    beyond: int

    def hold_in(self, phase: str) -> bool:
        """Whether this is where the process is to wait for its end."""
        return phase == self.aim and self.notes.done > self.beyond

    def hold(self) -> None:
        self.notes[1] = 1
        time.sleep(LONGEST)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        before, self.notes.phase = self.notes.phase, phase
        if phase not in CHECKPOINT and self.hold_in(phase):
            self.hold()
        try:
            yield
        finally:
            self.notes.phase = before

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Note the phase while a function is at work."""
        real = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            with self.within(phase):
                return real(*arguments, **options)

        setattr(owner, name, noted)

    def wrap_disk(self, disk: Any, name: str, phase: str) -> None:
        """Note the phase of a checkpoint, and hold there: of a write half is done, of the moves the first."""
        real = getattr(disk, name)

        def noted(*arguments: Any) -> Any:
            if self.notes.phase not in CHECKPOINT:
                return real(*arguments)
            with self.within(phase):
                if self.hold_in(phase) and (name != "move" or arguments[1].name == "checkpoint.pt"):
                    if name == "write":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    self.hold()
                return real(*arguments)

        setattr(disk, name, noted)

    def wrap_batches(self, feed: Any) -> None:
        """Note the phase while the next batch is made."""
        real = feed.batches

        def noted(*arguments: Any) -> Iterator[Any]:
            with contextlib.closing(real(*arguments)) as batches:
                while True:
                    with self.within("data"):
                        batch = next(batches, None)
                    if batch is None:
                        return
                    yield batch

        feed.batches = noted

    def wrap_step(self, trainer: Any) -> None:
        """Note the phase and the number of each update."""
        self.wrap(trainer, "step", "step")
        real = trainer.step

        def noted(run: Any, *arguments: Any) -> None:
            real(run, *arguments)
            self.notes[2] = run.done

        trainer.step = noted


def be_killed(path: Path, aim: str, beyond: int, words: Sequence[str]) -> None:
    """Run `resrepro` with these words, noting where it is."""
    inside = Inside(Notes(path), aim, beyond)
    inside.notes[0] = inside.notes[1] = inside.notes[2] = 0
    from resrepro.cli import main
    from resrepro.records import disk
    from resrepro.records.write import RunWriter
    from resrepro.training import loop

    for name in ("begin", "go_on", "add_session", "append", "result"):
        inside.wrap(RunWriter, name, "record write")
    for name, phase in (("write", 0), ("sync", 1), ("move", 2), ("sync_folder", 2)):
        inside.wrap_disk(disk, name, CHECKPOINT[phase])
    inside.wrap(loop, "save_checkpoint", CHECKPOINT[0])
    inside.wrap(loop.Trainer, "finish", "closing")
    inside.wrap(loop.Trainer, "run", "loop")
    inside.wrap_step(loop.Trainer)
    inside.wrap(loop, "measure_held_out", "evaluation")
    real = loop.Trainer.__init__

    def begin(run: Any, *arguments: Any) -> None:
        real(run, *arguments)
        inside.wrap_batches(run.feed)

    loop.Trainer.__init__ = begin  # type: ignore[method-assign]
    sys.argv = ["resrepro", *words]
    main()
