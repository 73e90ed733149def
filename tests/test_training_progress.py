"""What a run tells, how often it writes checkpoints, and how a signal stops it."""

import math
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from resrepro.errors import UsageError
from resrepro.training import progress
from resrepro.training.measure import Errors
from resrepro.training.progress import (
    ECHO,
    SIGNALS,
    CheckpointInterval,
    Interrupts,
    Pace,
    Sample,
    StoppedEarly,
    clock,
    sample_line,
)

# --- watching --------------------------------------------------------------------------------------

ERRORS = {"train": Errors(1.25, 40.0, 5.0, 128), "test": Errors(1.5, 50.0, 6.0, 100)}
SAMPLE = Sample(600, 0.1, ERRORS, 300.4)


def paced(seconds_ago: float, done: int) -> Pace:
    """A session of 1,000 updates that went on after `done` of them so long ago."""
    pace = Pace(done, 1000, 128)
    pace.started -= seconds_ago
    return pace


def test_the_time_left_is_by_the_speed_of_this_session() -> None:
    line = sample_line(SAMPLE, paced(50.0, 500))  # 100 updates in 50 s, 400 to go
    assert line == (
        "iteration    600  lr 0.1     loss 1.2500  train 40.00 %  test 50.00 %  300 images/s  3:20 left"
    )


def test_before_a_step_was_made_neither_speed_nor_time_is_told() -> None:
    line = sample_line(replace(SAMPLE, images_per_s=math.nan), paced(10.0, 600))
    assert line.endswith("test 50.00 %")
    assert "nan" not in line


def test_a_clock_shows_hours_where_there_are_any() -> None:
    assert [clock(59.6), clock(61), clock(3723)] == ["1:00", "1:01", "1:02:03"]


# --- checkpoint interval -----------------------------------------------------------------------------


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (None, (None, None)),
        ("500", (500, None)),
        ("10m", (None, 600)),
        ("10min", (None, 600)),
        ("90s", (None, 90)),
        ("2h", (None, 7200)),
        ("500,10m", (500, 600)),
        ("10m, 500", (500, 600)),
    ],
)
def test_iterations_times_and_both_are_understood(text: str | None, limits: object) -> None:
    interval = CheckpointInterval.parse(text)
    assert (interval.iterations, interval.seconds) == limits


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "often", "5,6", "5m,6m", "1.5m", "5d", "5,", "9" * 30])
def test_anything_else_is_refused_with_what_is_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"iterations, minutes or both \(500, 10m, 500,10m\)"):
        CheckpointInterval.parse(text)


def test_by_default_checkpoints_take_less_than_a_hundredth_of_the_time() -> None:
    clock = Clock()
    interval = CheckpointInterval(clock=clock)
    for cost in (0.05, 3.0, 0.001, 40.0):
        start = clock.now
        clock.now += cost
        interval.written(cost)
        while not interval.due(7):
            clock.now += 0.5
        waited = clock.now - start - cost
        assert cost <= 0.01 * waited
        assert waited == pytest.approx(max(20.0, 100 * cost), abs=0.5)


def test_iterations_and_seconds_are_kept_to_whichever_is_first() -> None:
    clock = Clock()
    interval = CheckpointInterval(500, 600, clock)
    assert [interval.due(done) for done in (499, 500, 501, 1000)] == [False, True, False, True]
    clock.now += 600
    assert interval.due(501)
    interval.written(1.0)
    assert not interval.due(501)


# --- interrupts ------------------------------------------------------------------------------------


def test_the_first_signal_is_only_noted_where_there_is_patience() -> None:
    for number in SIGNALS:
        with Interrupts() as interrupts, interrupts.patiently():
            assert interrupts.received == 0
            os.kill(os.getpid(), number)
            assert interrupts.received == number


def test_without_a_step_to_finish_a_signal_stops_at_once_and_nothing_holds_it_up() -> None:
    for number in SIGNALS:
        with pytest.raises(StoppedEarly) as stop, Interrupts(), suppress(Exception):
            os.kill(os.getpid(), number)
        assert stop.value.signal_number == number


def test_a_second_signal_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.patiently():  # noqa: PT012
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_the_echo_of_a_signal_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    acted = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: acted.append(number))
    with Interrupts() as interrupts, interrupts.patiently():
        for _ in range(3):  # a scheduler, its job's script and systemd
            os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupts.received, acted) == (signal.SIGTERM, [])
        interrupts._at -= ECHO
        os.kill(os.getpid(), signal.SIGTERM)
        assert acted == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, before)


def test_under_torchrun_any_signal_soon_after_the_first_is_its_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "world_size", lambda: 2)
    with Interrupts() as interrupts, interrupts.patiently():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert interrupts.received == signal.SIGINT


def test_one_of_several_jobs_hears_ctrl_c_from_the_terminal_and_from_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "a process")
    with Interrupts() as interrupts, interrupts.patiently():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.received == signal.SIGINT


def test_in_a_job_of_a_cluster_signals_of_several_kinds_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with Interrupts() as interrupts, interrupts.patiently():
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupts.received == signal.SIGTERM


def test_the_echo_of_a_signal_does_not_disturb_the_way_out() -> None:
    left = []
    with pytest.raises(StoppedEarly), Interrupts():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            left.append(True)
    assert left == [True]


def test_the_handlers_of_before_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), Interrupts():  # noqa: PT012
        assert signal.getsignal(signal.SIGTERM) != before[1]
        _ = 1 / 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def watch() -> None:
        with Interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGTERM), interrupts.received))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
