"""The line of a sample: errors, speed and the time left, as far as they are known."""

import math
from dataclasses import replace

from resrepro.training.metrics import Errors
from resrepro.training.watching import Pace, Sample, clock, sample_line

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
