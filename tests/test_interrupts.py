"""Signals: the first is noted, the second acts, and the handlers come back."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from resrepro.training import interrupts as interrupts_module
from resrepro.training.interrupts import ECHO, SIGNALS, Interrupts, StoppedEarly


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
    monkeypatch.setattr(interrupts_module, "world_size", lambda: 2)
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
