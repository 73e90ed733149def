"""What a run tells, how often it writes checkpoints, and how a signal stops it."""

import math
import os
import signal
import threading

import pytest

from resrepro.errors import UsageError
from resrepro.training import progress
from resrepro.training.measure import Errors

# --- watching --------------------------------------------------------------------------------------

ERRORS = {"train": Errors(1.25, 40.0, 5.0, 128), "test": Errors(1.5, 50.0, 6.0, 100)}
SAMPLE = progress.Sample(600, 0.1, ERRORS, 300.4)


def paced(seconds_ago, done):
    """A session of 1,000 updates that went on after `done` of them so long ago."""
    pace = progress.Pace(done, 1000, 128)
    pace.started -= seconds_ago
    return pace


def test_the_time_left_is_by_the_speed_of_this_session():
    line = progress.sample_line(SAMPLE, paced(50.0, 500))  # 100 updates in 50 s, 400 to go
    assert line == (
        "iteration    600  lr 0.1     loss 1.2500  train 40.00 %  test 50.00 %  300 images/s  3:20 left"
    )


def test_before_a_step_was_made_neither_speed_nor_time_is_told():
    line = progress.sample_line(SAMPLE._replace(images_per_s=math.nan), paced(10.0, 600))
    assert line.endswith("test 50.00 %")
    assert "nan" not in line


def test_a_clock_shows_hours_where_there_are_any():
    assert [progress.clock(59.6), progress.clock(61), progress.clock(3723)] == ["1:00", "1:01", "1:02:03"]


# --- checkpoint interval -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limits"),
    [(None, (None, None)), ("500", (500, None)), ("10m", (None, 600)), ("10min", (None, 600)),
     ("90s", (None, 90)), ("2h", (None, 7200)), ("500,10m", (500, 600)), ("10m, 500", (500, 600))],
)  # fmt: skip
def test_iterations_times_and_both_are_understood(text, limits):
    interval = progress.CheckpointInterval.parse(text)
    assert (interval.iterations, interval.seconds) == limits


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "often", "5,6", "5m,6m", "1.5m", "5d", "5,", "9" * 30])
def test_anything_else_is_refused_with_what_is_understood(text):
    with pytest.raises(UsageError, match=r"iterations, minutes or both \(500, 10m, 500,10m\)"):
        progress.CheckpointInterval.parse(text)


def test_by_default_checkpoints_take_less_than_a_hundredth_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    interval = progress.CheckpointInterval()
    for cost in (0.05, 3.0, 0.001, 40.0):
        interval.written(cost)
        start = now[0]
        while not interval.due(7):
            now[0] += 0.5
        assert now[0] - start == pytest.approx(max(20.0, 100 * cost), abs=0.5)
    interval = progress.CheckpointInterval(500, 600, now[0])
    assert [interval.due(done) for done in (499, 500, 501, 1000)] == [False, True, False, True]
    now[0] += 600
    assert interval.due(501)
    interval.written(1.0)
    assert not interval.due(501)


# --- interrupts ------------------------------------------------------------------------------------


def test_the_first_signal_is_noted_and_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in progress.SIGNALS]
    for number in progress.SIGNALS:
        with pytest.raises(ZeroDivisionError), progress.Interrupts() as interrupts:  # noqa: PT012
            assert interrupts.received == 0
            os.kill(os.getpid(), number)
            assert interrupts.received == number
            _ = 1 / 0
    assert [signal.getsignal(number) for number in progress.SIGNALS] == before


def test_a_second_signal_acts_at_once_but_not_the_echo_of_the_first():
    acted = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: acted.append(number))
    with progress.Interrupts() as interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # the terminal, torchrun, a scheduler
            os.kill(os.getpid(), number)
        assert (interrupts.received, acted) == (signal.SIGINT, [])
        interrupts._at -= progress.ECHO
        os.kill(os.getpid(), signal.SIGTERM)
        assert acted == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, before)


def test_under_nohup_a_closed_terminal_is_not_heard():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with progress.Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.received == 0
    signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def watch():
        with progress.Interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGTERM), interrupts.received))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
