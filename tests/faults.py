"""Each operation on the disk as the last before a kill, as one that fails, as the last before a power cut.

A tiny run is disturbed at every point of several sessions and gone on with; it must end bit by bit like an
undisturbed one. `python tests/faults.py` goes through the complete matrix and prints what it covered.
"""

import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from power import PowerCut, State, write_state
from runs import TIMES, differences, rows_of
from taps import MOMENTS, TROUBLES, Failing, Kill, Tap, die, forked

from resrepro.data import Dataset, Images, feeds, load_dataset
from resrepro.errors import ResreproError
from resrepro.records.collection import collect
from resrepro.records.reading import RECORD_FILES
from resrepro.training import loop
from resrepro.training.progress import Watcher
from resrepro.training.session import train

ITERATIONS = 8


# --- the run ----------------------------------------------------------------------------------------


@functools.cache
def few_digits() -> Dataset:
    """200 digits of 8x8 pixels to train on and 40 to test."""
    digits = load_dataset("digits")
    train_part, test = (
        Images(part.pixels[:count, :, ::2, ::2], part.labels[:count])
        for part, count in ((digits.train, 200), (digits.held_out["test"], 40))
    )
    sums = {"train": train_part.sha256(), "test": test.sha256()}
    return Dataset("digits", 10, train_part, {"test": test}, sums, ())


def tiny(runs: Path, **options: Any) -> Path:
    """8 updates; the errors are sampled after every second, a checkpoint is written after every third."""
    settings = {"iterations": ITERATIONS, "batch_size": 32, "eval_every": 2, "lr": 0.05}
    with mock.patch.object(feeds, "load_dataset", return_value=few_digits()):
        return train(
            "digits-resnet8", runs=runs, device="cpu", threads=1, checkpoint_every="3", **settings | options
        )


class Onlooker(Watcher):
    """Notes where a session began, and does something after an update."""

    def __init__(self, at: int = 0, act: Callable[[], object] = lambda: None) -> None:
        self.at, self.act, self.began = at, act, ITERATIONS  # a finished run does not begin

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        self.began = done

    def step(self, done: int, lr: float, read: Callable[[], Any]) -> None:
        if done == self.at:
            self.act()


# --- what is disturbed, and what must hold afterwards -----------------------------------------------


@dataclass(frozen=True)
class Session:
    """One session of the run: the state of the disk that it begins in, and all that it does there."""

    name: str
    base: Path
    safe: int = -1  # the update of the last whole checkpoint at its beginning; -1: there is none
    fresh: bool = False
    damaged: bool = False
    kept: str = ""  # a file of the run before that must not be lost
    names: list[str] = field(default_factory=list)
    safes: list[int] = field(default_factory=list)

    def at(self, operation: int) -> int:
        """The update that is not lost whatever happens at an operation."""
        return max(self.safe, self.safes[operation - 1])


class Lab:
    """A folder to try things out in, with the undisturbed run and the sessions that are disturbed."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder, self.root = folder, folder / "now"
        self.runs = self.root / "runs"
        self.whole = tiny(folder / "whole")
        self.truth = rows_of(self.whole, *TIMES)
        first, later, mixed, bare = (folder / name for name in ("nothing", "killed", "damaged", "bare"))
        first.mkdir()
        # Killed after update 5: the checkpoint is of update 3, and row 4 is one too many.
        assert forked(lambda: tiny(later / "runs", watcher=Onlooker(5, die))) == -signal.SIGKILL
        assert forked(lambda: tiny(mixed / "runs", watcher=Onlooker(7, die))) == -signal.SIGKILL
        (folder,) = later.rglob("seed0")
        (folder / ".checkpoint.pt.1.part").write_bytes(b"of a session that was killed before")
        _damage(mixed)
        shutil.copytree(later, bare, ignore=shutil.ignore_patterns("checkpoint*"))
        self.sessions = [
            self._observed(session)
            for session in (
                Session("first", first),
                Session("second", later, 3),
                Session("fresh", later, fresh=True, kept="checkpoint.pt"),
                Session("rows alone", bare, kept="metrics.csv"),
                Session("after damage", mixed, 3, damaged=True),
            )
        ]

    def _observed(self, session: Session) -> Session:
        self.reset(session)
        tap = Tap()
        _train_under(tap, self, session)
        session.names.extend(tap.names)
        session.safes.extend(tap.safe)
        return session

    def reset(self, session: Session) -> None:
        """Put the disk into the state that a session begins in."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(session.base, self.root)

    def check_record(self, session: Session) -> bool:
        """Whether the record can be read; if so its numbers must be right, else it must be named broken."""
        found = collect([self.runs])
        assert all(sentence.count("\n") == 0 and sentence.endswith(".") for sentence in found.broken)
        for run in found.runs:
            done = run.result["iteration"]
            known = [row for row in self.truth if int(row["iteration"]) <= done]
            rows = list(zip(run.curve["iteration"], run.curve["loss"], strict=True))
            assert rows == [(int(row["iteration"]), float(row["loss"])) for row in known]
            last = {r["split"]: float(r["top1_err"]) for r in known[-2:]}
            assert {split: run.last(split) for split in run.result["last"]} == last
            assert done == ITERATIONS or not run.finished
        folder = self.runs / self.whole.parent.name / "seed0"
        complete = all((folder / name).exists() for name in RECORD_FILES)
        if not session.damaged:
            assert bool(found.runs) == complete, found.broken
        if session.kept:
            (old,) = session.base.rglob(session.kept)
            assert old.read_bytes() in [each.read_bytes() for each in self._files_like(session.kept)]
        return bool(found.runs)

    def _files_like(self, name: str) -> Iterable[Path]:
        """A file and those that keep what it was before, also in folders that were set aside."""
        return self.runs.rglob(f"{Path(name).stem}*{Path(name).suffix}")

    def finish(self, safe: int, *, tidy: bool = True) -> None:
        """Go on with the run: it must lose no more than it may, and end like the undisturbed one."""
        watcher = Onlooker()
        folder = tiny(self.runs, watcher=watcher)
        assert watcher.began >= safe, f"went on from {watcher.began}, though {safe} was safe"
        assert differences(folder, self.whole) == []
        assert (folder / "spec.json").read_bytes() == (self.whole / "spec.json").read_bytes()
        assert not tidy or not list(folder.glob(".*.part"))
        (run,) = collect([self.runs]).runs
        assert run.finished


def _damage(folder: Path) -> None:
    """The newest checkpoint and the curves are cut off, and spec.json is missing."""
    (checkpoint,) = folder.rglob("checkpoint.pt")
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    os.truncate(checkpoint.with_name("metrics.csv"), 200)
    checkpoint.with_name("spec.json").unlink()


def _train_under(tap: Tap, lab: Lab, session: Session) -> None:
    with tap.active():
        tiny(lab.runs, fresh=session.fresh)


# --- the disturbances -------------------------------------------------------------------------------


def kill_points(session: Session) -> list[tuple[int, str]]:
    """Every operation with the moments that it has: only a write can be cut short."""
    return [
        (number, moment)
        for number, name in enumerate(session.names, 1)
        for moment in MOMENTS
        if moment != "amid" or name == "write"
    ]


def try_kills(lab: Lab, session: Session, points: Iterable[tuple[int, str]]) -> Counter[str]:
    """Kill the session at each of these points and go on."""
    seen: Counter[str] = Counter()
    for at, moment in points:
        lab.reset(session)
        disturbed = functools.partial(_train_under, Kill(at, moment), lab, session)
        assert forked(disturbed) == -signal.SIGKILL, (at, moment)
        seen["readable at once"] += lab.check_record(session)
        lab.finish(session.at(at))
        seen["kills"] += 1
    return seen


def try_errors(lab: Lab, session: Session, points: Iterable[tuple[int, str]]) -> Counter[str]:
    """Let the disk fail at each of these operations in each of these ways, then go on."""
    seen: Counter[str] = Counter()
    for at, trouble in points:
        lab.reset(session)
        tap, files = Failing(at, trouble), open_files()
        try:
            _train_under(tap, lab, session)
            said = ""
        except ResreproError as error:
            said = str(error)
            seen["exit code 1"] += error.exit_code == 1
        if said:
            assert os.strerror(TROUBLES[trouble]) in said
            assert said.endswith(".")
            assert "\n" not in said
            seen["sentences"] += 1
        else:  # what a process that was killed left behind may stay
            assert tap.failed in ([], ["remove"]), (at, trouble, tap.failed)
        assert open_files() == files
        seen["readable at once"] += lab.check_record(session)
        lab.finish(session.at(at), tidy=bool(said))
        seen["errors"] += 1
    return seen


def open_files() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def error_points(session: Session) -> list[tuple[int, str]]:
    """Every operation with every trouble."""
    return [(number, trouble) for number in range(1, len(session.names) + 1) for trouble in TROUBLES]


def states_of(lab: Lab, session: Session) -> tuple[Counter[str], list[tuple[int, State]]]:
    """Each different state that a power cut may leave, with the update that must not be lost there."""
    lab.reset(session)
    cut = PowerCut(lab.root)
    save = loop.save_checkpoint

    def marking(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        cut.mark(state["iteration"])

    with mock.patch.object(loop, "save_checkpoint", marking), cut.recording():
        tiny(lab.runs, fresh=session.fresh)
    found: dict[object, tuple[int, State]] = {}
    seen = Counter({"points": len(cut.events) + 1})
    for safe, state in cut.states():
        seen["considered"] += 1
        found[frozenset(state.items())] = max(safe, session.safe), state  # a later cut must lose less
    return seen, list(found.values())


def try_power_cuts(lab: Lab, session: Session, every: int = 1) -> Counter[str]:
    """Go on from each state that a power cut may leave (or from a sample of them)."""
    seen, states = states_of(lab, session)
    seen["different"] = len(states)
    for safe, state in states[::every]:
        shutil.rmtree(lab.root)
        write_state(state, lab.root)
        seen["readable at once"] += lab.check_record(session)
        lab.finish(safe)
        seen["power cuts"] += 1
    return seen


# --- the complete matrix ----------------------------------------------------------------------------


def complete(folder: Path) -> str:
    """Go through everything; a table of what was covered."""
    lab, lines, sums = Lab(folder), list[str](), Counter[str]()
    heads = ("session", "operations", "kills", "errors", "cut points", "states", "different", "readable")
    lines.append("".join(f"{head:>13}" for head in heads))
    for session in lab.sessions:
        kills = try_kills(lab, session, kill_points(session))
        errors = try_errors(lab, session, error_points(session))
        cuts = try_power_cuts(lab, session)
        readable = sum(part["readable at once"] for part in (kills, errors, cuts))
        figures = (
            len(session.names), kills["kills"], errors["errors"], cuts["points"], cuts["considered"],
            cuts["power cuts"], readable,
        )  # fmt: skip
        sums.update(dict(zip(heads[1:], figures, strict=True)))
        lines.append(f"{session.name:>13}" + "".join(f"{figure:>13,}" for figure in figures))
        print(lines[-1], file=sys.stderr, flush=True)
    lines.append(f"{'all':>13}" + "".join(f"{sums[head]:>13,}" for head in heads[1:]))
    return "\n".join(lines)


if __name__ == "__main__":
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        print(complete(Path(place)))
    print(f"every one ended bit by bit like the undisturbed run; {time.perf_counter() - start:.0f} s")
