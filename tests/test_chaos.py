"""Runs of the real command that are killed again and again end bit by bit as if nothing had happened."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from chaos import Kill, Outcome, on_digits, plan, wreak
from phases import CHECKPOINT
from ranks import write_photos

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="waits for processes that end by SIGKILL")


def check(outcome: Outcome, kills: int) -> None:
    """Every kill came after new progress, the lock was taken over after each, and nothing differs."""
    print(outcome.told())
    assert outcome.differences == []
    assert len(outcome.reached) == kills
    assert outcome.reached == sorted(set(outcome.reached))
    assert outcome.taken_over == kills  # by the sessions after the first that were left to begin
    assert outcome.refused
    assert outcome.fell.total() == kills + max(1, kills // 8)
    assert outcome.fell["closing"] == 1


@pytest.mark.parametrize("kills", [4, 25])
def test_a_plan_has_kills_anywhere_within_checkpoints_before_progress_and_at_the_end(kills: int) -> None:
    planned = plan(kills, random.Random(0))
    found = Counter(kill.aim for kill in planned)
    assert sum(kill.needs_progress for kill in planned) == kills
    assert planned[0].needs_progress
    assert planned[-1] == Kill("closing", held=True)
    assert found["start-up"] == max(1, kills // 8)
    assert found[""] == (kills - 1) // 3
    assert sum(found[phase] for phase in CHECKPOINT) == -(-(kills - 1) // 3)
    assert any(kill.held for kill in planned[:-1])


@on_linux
@pytest.mark.slow
def test_a_run_killed_5_times_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    check(wreak(tmp_path, on_digits(5), 5, seed=1), 5)


@on_linux
@pytest.mark.exhaustive
def test_a_run_killed_25_times_in_all_phases_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    outcome = wreak(tmp_path, on_digits(25), 25)
    check(outcome, 25)
    assert all(outcome.held[phase] for phase in CHECKPOINT)
    assert len(outcome.fell) >= 8


@on_linux
@pytest.mark.slow
def test_a_fast_run_killed_5_times_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    check(wreak(tmp_path, on_digits(5, precision="bf16"), 5, seed=2), 5)


@on_linux
@pytest.mark.exhaustive
def test_a_run_on_images_that_workers_read_killed_6_times_ends_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    photos = write_photos(tmp_path / "photos", per_class=12)
    words = [
        "train", "folder-resnet18", "--data", str(photos), "--image-size", "32", "--batch-size", "8",
        "--iterations", "80", "--eval-every", "6", "--checkpoint-every", "4", "--set", "lr=0.01",
        "--workers", "2", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    check(wreak(tmp_path, words, 6, seed=3), 6)


@on_linux
@pytest.mark.exhaustive
def test_two_processes_killed_together_4_times_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    # The groups of two processes, so that the second command that is tried is one for the same run.
    words = [*on_digits(4), "--bn-group", "64"]
    check(wreak(tmp_path, words, 4, seed=4, processes=2), 4)
