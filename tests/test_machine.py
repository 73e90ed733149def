"""What the machine lends: control groups of both versions, GPUs, MPS; everything is faked."""

import os

import pytest

from resrepro import machine

GB = 2**30
TWO_GPUS = "0, GPU-aa11, 81559, 80000\n1, GPU-ab22, 81559, 1000\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files of proc and sys on a machine of 8 cores and 64 GB, of which 32 are free."""
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 64 * GB // 4096 if "PAGES" in name else 4096)

    def write(files):
        meminfo = f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {32 * GB // 1024} kB\n"
        for name, text in ({"proc/meminfo": meminfo} | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


ONE = "0::/\n"  # control group, of version 2
MEMORY_2 = {
    "memory.max": f"{8 * GB}\n", "memory.current": f"{7 * GB}\n",
    "memory.stat": f"anon {2 * GB}\ninactive_file {4 * GB}\n",
}  # fmt: skip
VERSION_1 = {
    "cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.limit_in_bytes": f"{2 * GB}\n", "memory/memory.usage_in_bytes": f"{2 * GB}\n",
    "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GB}\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        (None, {}, 8, 32),
        (ONE, {"cpu.max": "max 100000\n"}, 8, 32),
        (ONE, {"cpu.max": "250000 100000\n"}, 3, 32),
        (ONE, {"cpu.max": "5000 100000\n"}, 1, 32),
        (ONE, {"cpu.max": "6400000 100000\n"}, 8, 32),
        # Its own group is not seen, or has no bound; one around it has.
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n"}, 2, 32),
        (ONE, MEMORY_2, 8, 5),  # without the files' pages
        (ONE, {"memory.max": "max\n"}, 8, 32),
        ("5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n", VERSION_1, 4, 1),
        ("4:cpu,cpuacct:/\n", VERSION_1 | {"cpu/cpu.cfs_quota_us": "-1\n"}, 8, 32),
    ],
)
def test_a_container_has_its_own_cores_and_memory(system, groups, files, cores, memory):
    own = {"proc/self/cgroup": groups} if groups else {}
    system(own | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert (machine.cores(), machine.free_memory()) == (cores, memory * GB)


def test_where_nothing_is_told_all_memory_counts(system):
    assert (machine.cores(), machine.free_memory()) == (8, 64 * GB)


@pytest.mark.parametrize(
    ("told", "visible", "free"),
    [
        (TWO_GPUS, None, {"GPU-aa11": 80000, "GPU-ab22": 1000}),
        (TWO_GPUS, "1", {"1": 1000}),
        (TWO_GPUS, " 1, 0", {"1": 1000, "0": 80000}),
        (TWO_GPUS, "GPU-ab,GPU-aa11", {"GPU-ab": 1000, "GPU-aa11": 80000}),
        (TWO_GPUS, "MIG-cc33,MIG-GPU-aa11/1/0", {"MIG-cc33": None, "MIG-GPU-aa11/1/0": None}),
        (TWO_GPUS, "0,2,1", {"0": 80000}),  # what follows a name that is none is hidden
        (TWO_GPUS, "0,-1,1", {"0": 80000}),
        (TWO_GPUS, "GPU-ff", {}),
        (TWO_GPUS, "", {}),
        ("0, GPU-aa11, [N/A], [N/A]\n", None, {"GPU-aa11": None}),  # a GPU that shares the host's memory
        ("Unable to determine the device handle for GPU0: Unknown Error\n", None, {}),
        ("", "0,1", {"0": None, "1": None}),
        ("", None, {}),
    ],
)
def test_the_gpus_that_may_be_used_and_what_is_free_of_them(told, visible, free, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    program.chmod(0o755 if told else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == {gpu: mib and mib * 2**20 for gpu, mib in free.items()}
    assert (machine.named_gpus() == []) == (visible == "")


def test_mps_is_running_where_its_daemon_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    pid = tmp_path / "nvidia-cuda-mps-control.pid"
    assert not machine.gpus_are_shared()
    pid.write_text(f"{os.getpid()}\n")
    assert not machine.gpus_are_shared()  # it has no pipe
    (tmp_path / "control").touch()
    assert machine.gpus_are_shared()
    pid.write_text("4194305\n")  # beyond the largest number of a process
    assert not machine.gpus_are_shared()
