"""Signals: the first is noted, the second acts, and the handlers come back."""

import os
import signal
import threading

import pytest

from resrepro.interrupts import SIGNALS, Interrupts


def test_the_first_signal_is_only_noted() -> None:
    for number in SIGNALS:
        with Interrupts() as interrupts:
            assert interrupts.received == 0
            os.kill(os.getpid(), number)
            assert interrupts.received == number


def test_a_second_signal_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    with pytest.raises(KeyboardInterrupt), Interrupts():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


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
