"""The learning rate: the paper's schedule, shortened ones, and the warm-up (Section 4.2)."""

import pytest

from resrepro.spec import catalogue
from resrepro.training.schedule import learning_rate, warmup_is_due

PAPER = catalogue.find("cifar10-resnet56").spec().recipe
WARM = catalogue.find("cifar10-resnet110").spec().recipe


@pytest.mark.parametrize(
    ("update", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_the_rate_drops_after_32k_and_48k_updates(update: int, rate: float) -> None:
    assert learning_rate(PAPER, update) == pytest.approx(rate, rel=1e-12)


def test_the_paper_schedule_ends_at_64k() -> None:
    assert PAPER.iterations == WARM.iterations == 64_000


@pytest.mark.parametrize(
    ("update", "rate"), [(0, 0.1), (999, 0.1), (1000, 0.01), (1499, 0.01), (1500, 0.001), (1999, 0.001)]
)
def test_a_shortened_run_drops_at_one_half_and_three_quarters(update: int, rate: float) -> None:
    recipe = PAPER.shortened_to(2000)
    assert recipe.iterations == 2000
    assert learning_rate(recipe, update) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("iterations", "rates"),
    [
        (1, [0.1]),
        (2, [0.1, 0.01]),
        (3, [0.1, 0.1, 0.01]),
        (4, [0.1, 0.1, 0.01, 0.001]),
        (5, [0.1, 0.1, 0.1, 0.01, 0.001]),
    ],
)
def test_the_shortest_schedules_never_drop_before_their_share_of_the_run(
    iterations: int, rates: list[float]
) -> None:
    recipe = PAPER.shortened_to(iterations)
    assert [learning_rate(recipe, k) for k in range(iterations)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("iterations", "every"),
    [(64_000, 1000), (32_001, 1000), (32_000, 1000), (2000, 63), (240, 8), (33, 2), (1, 1)],
)
def test_a_shortened_run_is_sampled_32_times_or_every_1000(iterations: int, every: int) -> None:
    assert PAPER.shortened_to(iterations).eval_every == every


def test_shortening_to_the_full_length_changes_nothing() -> None:
    assert PAPER.shortened_to(64_000) == PAPER


def test_the_warm_up_rate_holds_until_the_switch_then_the_schedule_goes_on_as_before() -> None:
    assert [learning_rate(WARM, k, None) for k in (0, 399, 40_000)] == [0.01] * 3
    assert [learning_rate(WARM, k, 400) for k in (0, 399)] == [0.01] * 2
    after = [learning_rate(WARM, k, 400) for k in (400, 31_999, 32_000, 48_000)]
    assert after == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_a_recipe_without_warm_up_ignores_the_switch() -> None:
    assert learning_rate(PAPER, 0, 400) == learning_rate(PAPER, 0) == 0.1


def test_the_warm_up_error_is_looked_at_every_100_updates_until_it_is_over() -> None:
    due = [k for k in range(1, 501) if warmup_is_due(WARM, k, None)]
    assert due == [100, 200, 300, 400, 500]
    assert not any(warmup_is_due(WARM, k, 300) for k in range(1, 501))
    assert not any(warmup_is_due(PAPER, k, None) for k in range(1, 501))
