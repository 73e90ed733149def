"""The commands on a GPU: several runs at once, evaluation, responses, the bench, full memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call

from resrepro.errors import ResreproError
from resrepro.training.session import train

pytestmark = pytest.mark.gpu
RUN = "--dataset digits --depth 8 --iterations 40 --device cuda"


def test_two_runs_at_once(tmp_path: Path) -> None:
    code, told, error = call("train", *RUN.split(), "--seeds", "0,1", "--jobs", 2, "--runs", tmp_path)
    assert (code, error) == (0, ""), told + error
    assert len(list(tmp_path.glob("*/seed*/checkpoint.pt"))) == 2


def test_errors_and_responses_of_a_run(tmp_path: Path) -> None:
    call("train", *RUN.split(), "--runs", tmp_path)
    (folder,) = tmp_path.glob("*/seed0")
    code, told, error = call("eval", folder, "--device", "cuda", "--runs", tmp_path)
    assert code == 0, told + error
    code, told, error = call("eval", folder, "--responses", "--device", "cuda", "--runs", tmp_path)
    assert code == 0, told + error
    assert (folder / "responses.csv").exists()


def test_a_batch_that_the_memory_does_not_hold_is_told_in_a_sentence(tmp_path: Path) -> None:
    size: dict[str, Any] = {"batch_size": 1400, "iterations": 2}
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(ResreproError, match=r"memory does not hold .*--micro-batch 700.*--jobs"):
            train("digits-resnet110", runs=tmp_path, device="cuda", **size)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_bench(tmp_path: Path) -> None:
    words = "bench --depth 8 --rounds 1 --seconds 0.2 --device cuda --csv"
    code, told, error = call(*words.split(), tmp_path / "speeds.csv")
    assert code == 0, told + error
    assert len((tmp_path / "speeds.csv").read_text().splitlines()) > 1
