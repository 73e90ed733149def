"""A run of the real command, killed with SIGKILL again and again; it must end as if nothing had happened.

`python tests/chaos.py` trains on the digits, kills the process at random moments, each after new progress,
some of them aimed at the midst of a checkpoint, and compares the end bit by bit with an undisturbed run.
"""

import argparse
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phases import CHECKPOINT, LONGEST, PHASES, Notes, be_killed

AFTER = 0.3  # seconds after new progress within which a kill that is aimed at nothing falls


@dataclass(frozen=True)
class Kill:
    """One kill: at a random moment, or aimed at a phase, the process being held there or not."""

    aim: str = ""
    held: bool = False

    @property
    def needs_progress(self) -> bool:
        return self.aim != "start-up"


def plan(kills: int, chance: random.Random) -> list[Kill]:
    """Every third kill falls anywhere, the others are aimed at what is short, the last at the run's end.

    A few more fall into the start of the process, where there is no progress yet.
    """
    checkpoints = itertools.cycle(Kill(phase, held) for held in (True, False) for phase in CHECKPOINT)
    others = itertools.cycle(Kill(phase) for phase in ("evaluation", "record write", "data", "loop"))
    turns = itertools.cycle((lambda: next(checkpoints), lambda: next(others), Kill))
    planned = [next(turns)() for _ in range(kills - 1)]
    for _ in range(max(1, kills // 8)):
        planned.insert(chance.randrange(1, len(planned)), Kill("start-up"))
    return [*planned, Kill("closing", held=True)]


@dataclass
class Outcome:
    """What came of it."""

    fell: Counter[str] = field(default_factory=Counter)  # kills by phase
    held: Counter[str] = field(default_factory=Counter)  # those whose process was held there
    reached: list[int] = field(
        default_factory=list
    )  # the update that each kill after new progress fell after
    taken_over: int = 0
    refused: bool = False
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def told(self) -> str:
        """A histogram, and what else was counted."""
        widest = max(self.fell.values())
        lines = [
            f"{phase:>18} {self.fell[phase]:4}  {'#' * round(40 * self.fell[phase] / widest)}"
            + (f"  ({self.held[phase]} held there)" if self.held[phase] else "")
            for phase in PHASES
        ]
        second = "refused" if self.refused else "NOT refused"
        return "\n".join([
            *lines,
            f"{sum(self.fell.values())} kills, {len(self.reached)} of them after new progress; the lock was "
            f"taken over {self.taken_over} times; a second process was {second}; {self.seconds:.0f} s",
            f"differences from the undisturbed run: {', '.join(self.differences) or 'none'}",
        ])  # fmt: skip


class Chaos:
    """A command that is killed and started again, in a folder of its own."""

    def __init__(self, folder: Path, words: Sequence[str], processes: int, seed: int) -> None:
        self.folder, self.words, self.processes = folder, list(words), processes
        self.chance, self.outcome = random.Random(seed), Outcome()
        self.notes = Notes(folder / "runs.notes0")
        self.owners: set[int] = set()  # who may be named in the lock that was left behind
        self.furthest = 0

    def start(self, kill: Kill | None, runs: str = "runs") -> list[subprocess.Popen[bytes]]:
        """The processes of a session, the first of which is to wait for this kill if it says so."""
        from ranks import environment, free_port

        told = [environment(rank, self.processes, free_port()) for rank in range(self.processes)]
        for each in told:
            each["MASTER_PORT"] = told[0]["MASTER_PORT"]
        aim = kill.aim if kill is not None and kill.held else ""
        place = self.folder / runs
        script, words = [sys.executable, __file__, "--child"], [*self.words, "--runs", str(place)]
        with place.with_suffix(".log").open("wb") as log:
            return [
                subprocess.Popen(
                    [*script, f"{place}.notes{rank}", "" if rank else aim, str(self.furthest), *words],
                    env=os.environ | (told[rank] if self.processes > 1 else {}) | {"OMP_NUM_THREADS": "1"},
                    stdout=log, stderr=log,
                )
                for rank in range(self.processes)
            ]  # fmt: skip

    def log(self, runs: str = "runs") -> str:
        """What the newest session has said, on one line."""
        return " ".join((self.folder / f"{runs}.log").read_text(errors="replace").split())

    def wait_until(self, holds: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
        """Look until something holds; the processes must live as long."""
        end = time.monotonic() + LONGEST
        while not holds():
            if any(process.poll() is not None for process in processes) or time.monotonic() > end:
                raise SystemExit(f"the run ended too early, or nothing happens: {self.log()[-500:]}")
            time.sleep(0.0005)

    def disturb(self, kill: Kill) -> None:
        """One session, to its violent end."""
        self.notes[0] = self.notes[1] = self.notes[2] = 0
        processes = self.start(kill)
        try:
            if kill.needs_progress:
                self._await_moment(kill, processes)
                self.check_takeover()
                if kill.held and not self.outcome.refused:
                    self.outcome.refused = self._second_is_refused(processes[0].pid)
            else:
                time.sleep(self.chance.uniform(0.2, 2.5))
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
        if any(process.wait() != -signal.SIGKILL for process in processes):
            raise SystemExit(f"a process had ended by itself: {self.log()[-500:]}")
        self.outcome.fell[self.notes.phase] += 1
        self.outcome.held[self.notes.phase] += self.notes.held
        self.owners = {processes[0].pid} | (set() if kill.needs_progress else self.owners)
        if kill.needs_progress:
            self.furthest = self.notes.done
            self.outcome.reached.append(self.furthest)

    def _await_moment(self, kill: Kill, processes: list[subprocess.Popen[bytes]]) -> None:
        notes = self.notes
        if kill.held:
            self.wait_until(lambda: notes.held, processes)
        elif kill.aim:
            self.wait_until(lambda: notes.phase == kill.aim and notes.done > self.furthest, processes)
        else:
            self.wait_until(lambda: notes.done > self.furthest, processes)
            time.sleep(self.chance.uniform(0, AFTER))

    def check_takeover(self) -> None:
        """The session that runs must have said whose lock it took over, if there was a kill before."""
        if not self.owners:
            return
        found = re.search(r"lock of process (\d+), which has ended, was taken over", self.log())
        if found is None or int(found[1]) not in self.owners:
            raise SystemExit(f"the lock of {self.owners} was not taken over: {self.log()[:500]}")
        self.outcome.taken_over += 1

    def _second_is_refused(self, holder: int) -> bool:
        words = [sys.executable, "-m", "resrepro", *self.words, "--runs", str(self.folder / "runs")]
        second = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST, check=False)
        return second.returncode == 1 and f"is being trained by process {holder} on" in second.stderr

    def finished(self, processes: list[subprocess.Popen[bytes]], runs: str) -> Path:
        """The folder of a run once its processes have ended well."""
        if any(process.wait(LONGEST) for process in processes):
            raise SystemExit(f"the run failed: {self.log(runs)[-500:]}")
        (folder,) = (self.folder / runs).glob("*/seed*")
        return folder


def wreak(folder: Path, words: Sequence[str], kills: int, seed: int = 0, processes: int = 1) -> Outcome:
    """Kill a command so many times, and compare its end with that of an undisturbed one."""
    from runs import differences

    start = time.perf_counter()
    chaos = Chaos(folder, words, processes, seed)
    undisturbed = chaos.start(None, "whole")  # beside the others
    try:
        for kill in plan(kills, chaos.chance):
            chaos.disturb(kill)
        ended = chaos.finished(chaos.start(None), "runs")
        chaos.check_takeover()
        whole = chaos.finished(undisturbed, "whole")
    finally:
        for process in undisturbed:
            process.kill()
            process.wait()
    outcome = chaos.outcome
    outcome.differences = differences(ended, whole)
    outcome.differences += [path.name for path in ended.parent.rglob(".*")]  # parts and locks
    outcome.seconds = time.perf_counter() - start
    return outcome


def on_digits(kills: int, net: str = "digits-resnet8", precision: str = "float32") -> list[str]:
    """A run on the digits that lasts for so many kills."""
    return [
        "train", net, "--iterations", str(14 * kills + 20), "--checkpoint-every", "3", "--eval-every", "4",
        "--device", "cpu", "--threads", "1", "--precision", precision,
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="after new progress each (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    parser.add_argument("--net", default="digits-resnet8")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--processes", type=int, default=1, help="killed together (default: 1)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        words = on_digits(asked.kills, asked.net, asked.precision)
        outcome = wreak(Path(place), words, asked.kills, asked.seed, asked.processes)
    print(outcome.told())
    return int(bool(outcome.differences) or not outcome.refused or len(outcome.reached) < asked.kills)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        be_killed(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
    else:
        sys.exit(main())
