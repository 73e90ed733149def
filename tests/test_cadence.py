"""How often checkpoints are written: what was asked for, else as often as is cheap."""

import pytest

from resrepro.errors import UsageError
from resrepro.training.cadence import Cadence, Every, parse_every


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "every"),
    [
        (None, Every()),
        ("500", Every(500)),
        ("10m", Every(seconds=600)),
        ("10min", Every(seconds=600)),
        ("90s", Every(seconds=90)),
        ("2h", Every(seconds=7200)),
        ("500,10m", Every(500, 600)),
        ("10m, 500", Every(500, 600)),
    ],
)
def test_iterations_times_and_both_are_understood(text: str | None, every: Every) -> None:
    assert parse_every(text) == every


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "often", "5,6", "5m,6m", "1.5m", "5d", "5,", "9" * 30])
def test_anything_else_is_refused_with_what_is_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"iterations, minutes or both \(500, 10m, 500,10m\)"):
        parse_every(text)


def test_by_default_checkpoints_take_less_than_a_hundredth_of_the_time() -> None:
    clock = Clock()
    cadence = Cadence(Every(), clock)
    for cost in (0.05, 3.0, 0.001, 40.0):
        start = clock.now
        clock.now += cost
        cadence.written(cost)
        while not cadence.due(7):
            clock.now += 0.5
        waited = clock.now - start - cost
        assert cost <= 0.01 * waited
        assert waited == pytest.approx(max(20.0, 100 * cost), abs=0.5)


def test_iterations_and_seconds_are_kept_to_whichever_is_first() -> None:
    clock = Clock()
    cadence = Cadence(Every(500, 600), clock)
    assert [cadence.due(done) for done in (499, 500, 501, 1000)] == [False, True, False, True]
    clock.now += 600
    assert cadence.due(501)
    cadence.written(1.0)
    assert not cadence.due(501)
