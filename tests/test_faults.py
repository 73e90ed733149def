"""Reliability on a disk that fails: no kill, error or power cut at any operation loses or changes a run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from commands import call
from faults import Lab, Onlooker, error_points, kill_points, states_of, tiny
from power import CHANGE_NOTHING, OPERATIONS, Folder, PowerCut
from runs import checkpoint_of, differences
from taps import TROUBLES

from resrepro.data import feeds
from resrepro.errors import RecordError, ResreproError
from resrepro.records import storage
from resrepro.records.collection import collect

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with torch loaded, and looks at /proc")

# What each session must at least do to the disk, so that nothing passes because nothing happened.
LEAST = {"first": 100, "second": 60, "fresh": 100, "rows alone": 100, "after damage": 60}
SESSIONS = tuple(LEAST)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def session_of(lab: Lab, name: str) -> faults.Session:
    return next(session for session in lab.sessions if session.name == name)


def test_the_sessions_use_every_operation_and_lose_no_checkpoint_undisturbed(lab: Lab) -> None:
    assert {name for session in lab.sessions for name in session.names} == set(OPERATIONS)
    for session in lab.sessions:
        assert len(session.names) >= LEAST[session.name]
        assert session.safes == sorted(session.safes)
        assert session.safes[-1] == faults.ITERATIONS


# --- a sample of the matrix, and all of it ----------------------------------------------------------


def test_a_run_killed_at_some_operations_goes_on_to_the_very_same_end(lab: Lab) -> None:
    kills = 0
    for session in lab.sessions:
        kills += faults.try_kills(lab, session, kill_points(session)[3::127])["kills"]
    assert kills >= 8


def test_a_disk_that_fails_at_some_operations_is_told_in_a_sentence_and_nothing_is_lost(lab: Lab) -> None:
    tried = set()
    for number, session in enumerate(lab.sessions):
        points = error_points(session)[5 + 3 * number :: 259]
        seen = faults.try_errors(lab, session, points)
        assert seen["errors"] == len(points)
        assert seen["sentences"] == seen["exit code 1"] >= len(points) - 1  # a needless removal may fail
        tried |= {trouble for _, trouble in points}
    assert tried == set(TROUBLES)


def test_a_power_cut_at_some_operations_loses_no_checkpoint_and_changes_no_run(lab: Lab) -> None:
    cuts = 0
    for session in lab.sessions:
        cuts += faults.try_power_cuts(lab, session, every=37)["power cuts"]
    assert cuts >= 9


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SESSIONS)
def test_a_run_killed_at_any_operation_goes_on_to_the_very_same_end(lab: Lab, name: str) -> None:
    session = session_of(lab, name)
    seen = faults.try_kills(lab, session, kill_points(session))
    writes = session.names.count("write")
    assert seen["kills"] == 2 * len(session.names) + writes >= 2 * LEAST[name]
    assert seen["readable at once"] >= seen["kills"] // 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SESSIONS)
def test_a_disk_that_fails_at_any_operation_is_told_in_a_sentence_and_nothing_is_lost(
    lab: Lab, name: str
) -> None:
    session = session_of(lab, name)
    seen = faults.try_errors(lab, session, error_points(session))
    assert seen["errors"] == len(TROUBLES) * len(session.names) >= 6 * LEAST[name]
    assert seen["errors"] - 10 <= seen["sentences"] == seen["exit code 1"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SESSIONS)
def test_a_power_cut_at_any_operation_loses_no_checkpoint_and_changes_no_run(lab: Lab, name: str) -> None:
    session = session_of(lab, name)
    seen = faults.try_power_cuts(lab, session)
    changes = [name for name in session.names if name not in CHANGE_NOTHING]
    assert seen["points"] > len(changes) + session.names.count("move")
    assert seen["considered"] == 12 * seen["points"]
    assert seen["power cuts"] == seen["different"] >= LEAST[name] // 2


# --- the model of a power cut -----------------------------------------------------------------------


@pytest.mark.parametrize("forgotten", ["_sync", "_sync_folder"])
def test_a_run_that_forgot_to_force_files_or_names_to_disk_would_be_found_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    monkeypatch.setattr(PowerCut, forgotten, lambda *_: None)
    with pytest.raises((AssertionError, ResreproError)):
        faults.try_power_cuts(lab, session_of(lab, "second"), every=9)


def test_a_power_cut_keeps_what_was_forced_and_may_keep_or_lose_the_rest(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    cut = PowerCut(tmp_path)
    with cut.recording():
        file = storage.create(tmp_path / "new")
        storage.write(file, b"forced")
        storage.sync(file)
        storage.write(file, b"late")
        storage.close(file)
        storage.move(tmp_path / "new", tmp_path / "old")
    states = [state for _, state in cut.states()]
    assert len(states) == 12 * 6
    last = {(names, content): cut.tree.after(names, content) for names in ("none", "all") for content in
            ("lost", "zeros", "half", "whole")}  # fmt: skip
    assert all(state == {"old": b"old"} for (names, _), state in last.items() if names == "none")
    assert [last["all", content]["old"] for content in ("lost", "zeros", "half", "whole")] == [
        b"forced", b"forced" + bytes(4), b"forcedla", b"forcedlate",
    ]  # fmt: skip
    storage.sync_folder(tmp_path)
    cut.tree.force()
    assert cut.tree.after("none", "lost") == {"old": b"forced"}


def test_a_name_that_was_free_only_because_of_an_earlier_step_does_not_arrive_without_it() -> None:
    folder, first, second = Folder(), Folder(), Folder()
    folder.change(("seed0", first))
    folder.force()
    folder.change(("seed0", None), ("aside", first))
    folder.change(("seed0", second), new=True)
    assert set(folder.after("last", "lost")) == {"seed0", "aside"}
    assert set(folder.after("none", "lost")) == {"seed0"}


def test_equal_states_of_a_power_cut_are_tried_once_with_the_most_that_must_not_be_lost(lab: Lab) -> None:
    seen, states = states_of(lab, session_of(lab, "second"))
    assert seen["considered"] > len(states) == len({frozenset(state.items()) for _, state in states})
    assert {safe for safe, _ in states} == {3, 6, 8}


# --- a folder that vanishes -------------------------------------------------------------------------


@pytest.mark.parametrize("moment", range(1, faults.ITERATIONS + 1))
@pytest.mark.parametrize("what", ["run", "runs"])
def test_a_folder_that_vanishes_is_told_in_a_sentence_and_not_made_anew(
    tmp_path: Path, moment: int, what: str
) -> None:
    runs = tmp_path / "runs"

    def vanish() -> None:
        (folder,) = runs.glob("*/seed0")
        shutil.rmtree(folder if what == "run" else runs)

    with pytest.raises(RecordError) as caught:
        tiny(runs, watcher=Onlooker(moment, vanish))
    assert caught.value.exit_code == 1
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("seed0"))
    assert what == "run" or not runs.exists()


# --- a disk that is really full ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB, gone afterwards."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(place)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"mounting is refused here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# The first checkpoint has no momentum and half the size; a new one needs room beside two old ones.
@pytest.mark.parametrize(("checkpoints", "last"), [(0.3, None), (1.2, 0), (1.8, 3), (2.8, 6)])
def test_a_full_disk_stops_the_command_in_a_sentence_and_with_room_again_it_goes_on(
    small_disk: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, checkpoints: float, last: int | None
) -> None:
    monkeypatch.setattr(feeds, "load_dataset", lambda *_: faults.few_digits())
    size = (lab.whole / "checkpoint.pt").stat().st_size
    room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(bytes(room - int(checkpoints * size)))
    runs = small_disk / "runs"
    words = (
        "train", "digits-resnet8", "--iterations", 8, "--batch-size", 32, "--eval-every", 2,
        "--set", "lr=0.05", "--checkpoint-every", 3, "--device", "cpu", "--threads", 1, "--runs", runs,
    )  # fmt: skip
    code, _, told = call(*words)
    assert code == 1
    assert told.startswith("error: cannot write ")
    assert told.endswith("make room, then the same command, without --fresh, goes on).")
    assert not list(runs.rglob("*.part"))
    assert collect([runs]).broken == ()
    (folder,) = runs.glob("*/seed0")
    if last is not None:
        assert checkpoint_of(folder)["iteration"] == last
    (small_disk / "filler").unlink()
    code, told, _ = call(*words)
    assert code == 0
    assert (f"Going on from iteration {last} of 8" in told) == (last is not None)
    assert differences(folder, lab.whole) == []
