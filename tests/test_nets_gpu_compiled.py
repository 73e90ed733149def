"""Kernels compiled for GPUs that are not there: registers, and whether the matrix units are used."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("triton")


def compiled(arch: int, precision: str, *kernels: str) -> list[dict[str, Any]]:
    """What ptxas says of the kernels of an update, or of some; needs no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compiled.py"), str(arch), precision, *kernels]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("arch", "precision"), [(80, "bf16"), (80, "float32"), (90, "tf32"), (90, "bf16")])
@pytest.mark.slow
def test_every_kernel_compiles_without_spilling(arch: int, precision: str) -> None:
    found = compiled(arch, precision)
    assert len({each["kernel"] for each in found}) == 11
    for each in found:
        assert each["spilled"] == 0, each
        multiplies = each["kernel"] in ("convolve", "differentiate", "differentiate_filters")
        assert (each["products"] > 0) == (multiplies and precision != "float32"), each


@pytest.mark.slow
def test_a_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    found = compiled(90, "bf16", "go_through_norm")
    assert [each["spilled"] for each in found] == [0, 0, 0]
