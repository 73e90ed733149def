"""How many runs at once: by cores, memory and device, and what is refused."""

import dataclasses

import pytest

from resrepro.errors import UsageError
from resrepro.launch import capacity
from resrepro.launch.capacity import Machine, bytes_of, choose_jobs, jobs_for, this_machine, threads_each
from resrepro.spec import catalogue

GB = 2**30
LAPTOP = Machine(cores=4, memory=16 * GB, device="cpu")
WITH_GPU = Machine(cores=16, memory=128 * GB, device="cuda")
APPLE = Machine(cores=8, memory=16 * GB, device="mps")


def runs(count: int, experiment: str = "cifar10-resnet20") -> list:
    return [catalogue.derive(catalogue.find(experiment))] * count


@pytest.mark.parametrize(
    ("experiment", "count", "device", "machine", "jobs"),
    [
        ("cifar10-resnet20", 1, "auto", LAPTOP, 1),
        ("cifar10-resnet20", 3, "auto", LAPTOP, 3),
        ("cifar10-resnet20", 9, "auto", LAPTOP, 4),
        ("cifar10-resnet20", 9, "cpu", WITH_GPU, 9),
        ("cifar10-resnet20", 9, "auto", WITH_GPU, 2),
        ("cifar10-resnet20", 9, "cuda:1", LAPTOP, 2),
        ("cifar10-resnet1202", 9, "auto", WITH_GPU, 1),  # has a GPU for itself
        ("cifar10-resnet20", 9, "auto", APPLE, 1),
        ("cifar10-resnet20", 9, "cpu", APPLE, 8),
        ("imagenet-resnet18", 9, "auto", WITH_GPU, 1),
        ("cifar10-resnet110", 9, "cpu", dataclasses.replace(LAPTOP, memory=5 * GB), 2),
        ("cifar10-resnet110", 9, "cpu", dataclasses.replace(LAPTOP, memory=GB), 1),
    ],
)
def test_as_many_as_the_machine_has_room_for(
    experiment: str, count: int, device: str, machine: Machine, jobs: int
) -> None:
    assert jobs_for(runs(count, experiment), device, None, machine) == jobs


def test_one_run_on_photographs_makes_all_wait_their_turn() -> None:
    assert jobs_for([*runs(2), *runs(1, "imagenet-resnet18")], "cpu", None, LAPTOP) == 1


def test_smaller_passes_leave_room_for_more() -> None:
    small = dataclasses.replace(LAPTOP, memory=5 * GB)
    assert jobs_for(runs(9, "cifar10-resnet110"), "cpu", 8, small) > 2
    (spec,) = runs(1)
    assert bytes_of(spec, 10_000) == bytes_of(spec)


def test_the_number_asked_for_is_taken_up_to_that_of_the_runs() -> None:
    assert choose_jobs(8, runs(3), "cpu", None, LAPTOP) == 3
    assert choose_jobs(8, runs(9), "cpu", None, LAPTOP) == 8
    assert choose_jobs(None, runs(9), "cpu", None, LAPTOP) == 4
    with pytest.raises(UsageError, match="at least 1"):
        choose_jobs(0, runs(3), "cpu", None, LAPTOP)


def test_under_torchrun_there_is_one_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "world_size", lambda: 2)
    assert choose_jobs(None, runs(9), "cpu", None, LAPTOP) == 1
    assert choose_jobs(1, runs(9), "cpu", None, LAPTOP) == 1
    with pytest.raises(UsageError, match="leave --jobs out"):
        choose_jobs(2, runs(9), "cpu", None, LAPTOP)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_threads_are_divided_and_none_goes_without(jobs: int, threads: int) -> None:
    assert threads_each(jobs, LAPTOP) == threads


def test_this_machine_has_cores_and_memory_and_can_hide_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "GPU_DRIVERS", ("/dev/null",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = this_machine()
    assert (machine.cores >= 1, machine.memory > 0, machine.device) == (True, True, "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().device != "cuda"
