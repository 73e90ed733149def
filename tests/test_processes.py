"""Which process of a run this is, by the environment that `torchrun` sets."""

import pytest

from resrepro import training

TOLD = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node"}


def all_told():
    return (
        training.rank(), training.world_size(), training.local_rank(), training.local_world_size(),
        training.is_first(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_is_the_only_one_and_the_first():
    assert all_told() == (0, 1, 0, 1, True)


def test_torchrun_says_which_process_of_the_run_and_of_the_machine_it_is(monkeypatch):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    assert all_told() == (5, 8, 1, 4, False)
    monkeypatch.setenv("RANK", "0")
    assert training.is_first()


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"])
def test_a_part_of_these_variables_which_others_set_too_means_nothing(missing, monkeypatch):
    for name, value in TOLD.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    assert all_told() == (0, 1, 0, 1, True)
