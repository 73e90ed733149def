"""The rate falls when the validation error has come to a plateau (Section 3.4)."""

import dataclasses

import pytest

from resrepro.spec import catalogue
from resrepro.spec.recipe import ImageNetRecipe
from resrepro.training.plateau import Plateau
from resrepro.training.schedule import learning_rate


def recipe(patience: int = 3, gain: float = 0.5, drops: int = 2) -> ImageNetRecipe:
    found = catalogue.derive(catalogue.find("imagenet-resnet18"), lr_policy="plateau").recipe
    assert isinstance(found, ImageNetRecipe)
    fixed = tuple(range(100, 100 * drops + 1, 100))
    return dataclasses.replace(found, plateau_patience=patience, plateau_gain=gain, lr_drops=fixed)


def drops_of(plateau: Plateau, errors: list[float], first: int = 1) -> list[int]:
    """The samples at which it says that the rate drops, counted from `first`, ten updates apart."""
    return [10 * k for k, error in enumerate(errors, first) if plateau.see(10 * k, error)]


@pytest.mark.parametrize(
    ("errors", "drops"),
    [
        ([90, 80, 70, 60, 50, 40, 30, 20], []),  # falls all the time
        ([90, 90, 90, 90], [40]),  # the first is no gain over nothing: three more to wait for
        ([90, 89.5, 89, 88.5, 88], []),  # each just good enough
        ([90, 89.6, 89.6, 89.6], [40]),  # none good enough
        ([90, 89.7, 89.4, 89.1, 88.8], []),  # together they are: 89.4 beats 90, 88.8 beats 89.4
        ([90, 91, 92, 80, 81, 82, 83], [70]),  # a gain starts the waiting anew
        ([50] * 10, [40, 70]),  # after a drop the waiting starts anew; no third, as the recipe has two
        ([50, 51, 52, 53, 52, 51, 50], [40]),  # after a drop the best is that of the drop, 53
        ([50, 51, 52, 53, 53, 53, 53], [40, 70]),
    ],
)
def test_the_rate_drops_after_so_many_samples_without_a_gain(errors: list[float], drops: list[int]) -> None:
    plateau = Plateau(recipe())
    assert drops_of(plateau, errors) == drops
    assert plateau.drops == drops


def test_the_number_of_drops_is_that_of_the_recipe() -> None:
    for count in (0, 1, 3):
        assert len(drops_of(Plateau(recipe(patience=1, drops=count)), [50.0] * 20)) == count


def test_patience_of_one_drops_at_the_first_sample_without_a_gain() -> None:
    assert drops_of(Plateau(recipe(patience=1)), [50, 49, 49]) == [30]


@pytest.mark.parametrize("cut", range(11))
def test_what_a_checkpoint_keeps_is_enough_to_go_on_at_any_sample(cut: int) -> None:
    errors = [70, 60, 60.2, 59.9, 60.4, 50, 49.7, 49.6, 49.9, 48, 48.2]
    whole = Plateau(recipe())
    wanted = drops_of(whole, errors)
    assert wanted == [50, 90]
    before = Plateau(recipe())
    drops_of(before, errors[:cut])
    state = before.state()
    drops_of(before, [1.0, 1.0, 1.0, 1.0])  # what comes later does not change the state that was kept
    after = Plateau(recipe())
    after.drops, after.best, after.waited = state
    drops_of(after, errors[cut:], cut + 1)
    assert after.drops == wanted


def test_the_rate_of_the_updates_after_each_drop_is_a_tenth() -> None:
    rates = [learning_rate(recipe(), update, None, [40, 70]) for update in (0, 39, 40, 69, 70, 10_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert learning_rate(recipe(), 250, None, []) == 0.1  # the fixed drops count for nothing
