"""The commands on a GPU: several runs at once, evaluation, responses, the bench, full memory."""

import pytest
import torch
from commands import call

from resrepro.errors import ResreproError
from resrepro.training.session import train

pytestmark = pytest.mark.gpu
RUN = "train --dataset digits --depth 8 --iterations 40 --device cuda --runs"


def test_two_runs_at_once(tmp_path):
    code, told, error = call(RUN, tmp_path, "--seeds 0,1 --jobs 2")
    assert (code, error) == (0, ""), told + error
    assert len(list(tmp_path.glob("*/seed*/checkpoint.pt"))) == 2


def test_errors_and_responses_of_a_run(tmp_path):
    call(RUN, tmp_path)
    (folder,) = tmp_path.glob("*/seed0")
    for measured in ("", "--responses"):
        code, told, error = call("eval", folder, measured, "--device cuda --runs", tmp_path)
        assert code == 0, told + error
    assert (folder / "responses.csv").exists()


def test_a_batch_that_the_memory_does_not_hold_is_told_in_a_sentence(tmp_path):
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(ResreproError, match=r"memory does not hold .*--micro-batch 700.*--jobs"):
            train("digits-resnet110", runs=tmp_path, device="cuda", batch_size=1400, iterations=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_bench(tmp_path):
    code, told, error = call("bench --depth 8 --rounds 1 --seconds 0.2 --device cuda --csv", tmp_path / "csv")
    assert code == 0, told + error
    assert len((tmp_path / "csv").read_text().splitlines()) > 1
