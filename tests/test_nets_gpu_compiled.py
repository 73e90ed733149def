"""Kernels compiled for GPUs that are not there: registers, and whether the matrix units are used."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("triton")


@pytest.mark.parametrize(("arch", "precision"), [(80, "bf16"), (80, "float32"), (90, "tf32"), (90, "bf16")])
@pytest.mark.slow
def test_every_kernel_compiles_without_spilling(arch: int, precision: str) -> None:
    """What ptxas says of the kernels of an update; needs no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compiled.py"), str(arch), precision]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({each["kernel"] for each in found}) == 11
    for each in found:
        assert each["spilled"] == 0, each
        multiplies = each["kernel"] in ("convolve", "differentiate", "differentiate_filters")
        assert (each["products"] > 0) == (multiplies and precision != "float32"), each
