"""Devices, threads and arithmetic."""

import pytest
import torch

from resrepro.data.augment import memory_format
from resrepro.errors import UsageError
from resrepro.training.device import arithmetic, choose_device, threads_used, use_precision

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: PyTorch sees no such GPU"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:x", "meta", "", "cpu cuda"])
def test_an_unknown_device_is_refused_naming_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=r"auto, cpu, cuda"):
        choose_device(name)


def test_auto_takes_a_gpu_where_there_is_one_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device("auto").type == wanted


def test_threads_are_set_as_asked_put_back_and_less_than_one_is_refused() -> None:
    before = torch.get_num_threads()
    with threads_used(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), threads_used(2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="at least 1, not 0"), threads_used(0):
        pass


def test_float32_means_float32_and_tf32_is_allowed_only_when_asked_for() -> None:
    use_precision("tf32", torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    for precision in ("bf16", "float32"):
        use_precision(precision, CPU)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(UsageError, match="not of cpu"):
        use_precision("tf32", CPU)


def test_activations_are_channels_last_but_on_mps() -> None:
    assert memory_format(CPU) == memory_format(torch.device("cuda")) == torch.channels_last
    assert memory_format(torch.device("mps")) == torch.contiguous_format


@pytest.mark.parametrize(("precision", "kind"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_arithmetic_is_that_of_the_recipe(precision: str, kind: torch.dtype) -> None:
    with arithmetic(precision, CPU):
        assert torch.nn.Linear(3, 2)(torch.ones(1, 3)).dtype == kind


def launched(monkeypatch: pytest.MonkeyPatch, local_rank: int, processes: int, gpus: int) -> None:
    """Let this process be one of several that torchrun started on a machine with some GPUs."""
    told = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost"}
    for key, value in (told | {"LOCAL_WORLD_SIZE": processes}).items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for rank in range(4):
        launched(monkeypatch, rank, 4, gpus=4)
        assert choose_device(name) == torch.device("cuda", rank)
    launched(monkeypatch, 1, 2, gpus=0)
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_more_processes_than_gpus_and_one_gpu_for_all_are_refused_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rank in range(2):
        launched(monkeypatch, rank, 2, gpus=1)
        with pytest.raises(UsageError, match="2 processes on a machine with 1 GPUs"):
            choose_device("auto")
        with pytest.raises(UsageError, match="each process takes its own"):
            choose_device("cuda:0")
