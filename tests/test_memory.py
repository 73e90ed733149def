"""Memory that a step frees stays with the process, in large pages where the system has them."""

import platform
import subprocess
import sys

import pytest

MEASURE = """
import ctypes, resource, sys
from resrepro.training import memory
kept = memory.keep_memory() if sys.argv[1] == "keep" else None
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    blocks = [bytearray(40_000_000) for _ in range(4)]
step()
before = faults()
for _ in range(3): step()
print(kept, faults() - before)
"""


def measured(how: str) -> tuple[str, int]:
    words = [sys.executable, "-c", MEASURE, how]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    kept, faults = measured("keep")
    assert kept == "True"
    _, usual = measured("usual")
    assert usual > 10_000  # 3 x 160 MB in pages of 4 kB, unless all pages are large ones
    assert faults < usual / 100


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from resrepro.training import memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would fail if it were called
    assert memory.keep_memory() is False
