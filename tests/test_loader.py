"""Workers that read ahead: in order, untouched by signals, and what is said when files or workers fail."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from resrepro.data.loader import MOST_WORKERS, Loading, check_bad, left_out, read_ahead
from resrepro.errors import DataError, UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def itself_and_process(item: int) -> tuple[int, int]:
    return item, os.getpid()


def slow_square(item: int) -> int:
    time.sleep(0.02 * (item == 4))
    return item * item


def noted(folder: Path, item: int) -> int:
    (folder / str(item)).touch()
    return item


def failing(item: int) -> int:
    raise RuntimeError("a worker of another kind")


def dying(item: int) -> int:
    if item == 1:
        time.sleep(0.5)  # until the item before is under way
        os.kill(os.getpid(), signal.SIGKILL)
    return item


# --- settings ---------------------------------------------------------------------------------------


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="--workers must be at least"):
        Loading(workers=-1)
    with pytest.raises(UsageError, match="--max-bad-images must be at least"):
        Loading(max_bad_images=-1)


@pytest.mark.parametrize(
    ("cores", "local", "device", "workers"),
    [
        (8, 1, GPU, 8), (8, 1, None, 8), (8, 1, CPU, 2), (2, 1, CPU, 1), (1, 1, GPU, 1),
        (64, 4, GPU, 16), (128, 1, GPU, MOST_WORKERS), (8, 4, GPU, 2), (4, 8, GPU, 1)
    ],
)  # fmt: skip
def test_workers_are_as_many_as_the_machine_can_spare(
    cores: int, local: int, device: torch.device | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resrepro.data.loader.cores", lambda: cores)
    assert Loading().workers_beside(device, local) == workers
    assert Loading(workers=5).workers_beside(device) == 5
    assert Loading(workers=0).workers_beside(device) == 0


# --- bad images -------------------------------------------------------------------------------------


def test_bad_images_are_named_when_there_are_too_many() -> None:
    bad = {"val/a/1.jpg": "truncated"}
    check_bad(bad, 1)
    assert left_out({}) == ()
    assert left_out(bad) == ("1 file is no readable image: val/a/1.jpg (truncated), left out",)
    bad |= {f"val/b/{number}.txt": "not an image" for number in range(5)}
    with pytest.raises(DataError) as trouble:
        check_bad(bad, 5)
    named = ", ".join(f"val/b/{number}.txt (not an image)" for number in range(4))
    assert str(trouble.value) == (
        f"6 files are no readable images: val/a/1.jpg (truncated), {named} and 1 more. "
        "Mend or convert them, or leave them out with --max-bad-images 6."
    )


# --- reading ahead ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_the_order_asked_for(workers: int) -> None:
    found = read_ahead(slow_square, [4, 9, 2, 2, 30], Loading(workers))
    assert list(found) == [16, 81, 4, 4, 900]


def test_more_workers_than_cores_give_no_warning() -> None:
    cores = os.cpu_count() or 1
    found = read_ahead(itself_and_process, range(cores + 1), Loading(cores + 1))
    assert len({process for _, process in found}) == cores + 1


def test_workers_read_while_the_consumer_computes(tmp_path: Path) -> None:
    found = read_ahead(partial(noted, tmp_path), range(100), Loading(workers=1))
    assert next(found) == 0
    deadline = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 3  # the one given, and two ahead of it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_left_to_the_run(number: signal.Signals) -> None:
    """A terminal, torchrun or a batch system sends them to the workers as well."""
    found = read_ahead(itself_and_process, range(30), Loading(workers=1))
    first, worker = next(found)
    os.kill(worker, number)
    assert [first, *(item for item, pid in found if pid == worker)] == list(range(30))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_is_not_told_as_a_dead_worker(workers: int) -> None:
    with pytest.raises(RuntimeError, match="of another kind"):
        list(read_ahead(failing, range(3), Loading(workers)))


def test_workers_end_with_the_reading() -> None:
    found = read_ahead(itself_and_process, range(30), Loading(workers=1))
    _, worker = next(found)
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.slow
def test_a_dead_worker_is_told_where_the_next_item_is_awaited() -> None:
    found = read_ahead(dying, range(3), Loading(workers=1))
    assert next(found) == 0
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:  # an update of the net, during which the worker dies
        sum(range(1000))
    with pytest.raises(DataError, match=r"^a process that reads images has died.*--workers.*\.$"):
        next(found)
