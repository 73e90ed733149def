"""Where and with what arithmetic a run computes, and the engine that makes its updates fast.

The engine changes how numbers are rounded, not what is computed; a run keeps the one it began with.
"""

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator

import torch

from resrepro.errors import ResreproError, UsageError
from resrepro.machine import cores
from resrepro.nets.cpu import NoCompiler, load_kernels
from resrepro.spec import Spec
from resrepro.spec.architecture import IMAGE_SIZES
from resrepro.training import LANES_BY_DEFAULT, lane_group, local_rank, local_world_size, world_size

AUTO = "auto"
EAGER, KERNELS, GRAPH, LANES = ENGINES = ("eager", "kernels", "graph", "lanes")
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
FULL_GPU = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")  # CUDA's own words, cuDNN's and cuBLAS's
MADE_FOR = {"cpu": (KERNELS,), "cuda": (LANES, GRAPH)}  # by kind of device, the fastest first
FEWEST = 50  # updates for which compiling the kernels, a second or two, is assumed to pay


def choose_engine(
    choice: str, device: torch.device, spec: Spec, micro: int, updates: int, begun: str | None,
    say: Callable[[str], None],
) -> str:  # fmt: skip
    """The engine of a run: the one it has `begun` with, else the one that `choice` names, else the fastest.
    "auto" takes lanes on an NVIDIA GPU where the run can be one, in bf16 or tf32, and our kernels prove right
    there, else graphs; the kernels on a CPU for FEWEST updates and more; eager where these cannot be had, of
    which `say` is told why. The run has `updates` ahead, with `micro` images in a pass. UsageError for an
    unknown engine, one that cannot be had here, or another than a run was begun with.
    """
    if choice not in (AUTO, *ENGINES):
        raise UsageError(f"--engine is auto, {', '.join(ENGINES[:-1])} or {ENGINES[-1]}, not {choice!r}.")
    begun = GRAPH if begun == "inductor" else begun  # which earlier versions had
    if begun and choice not in (AUTO, begun):
        raise UsageError(
            f"this run was begun with the engine {begun}, and another would round differently: "
            "leave --engine out, or start anew with --fresh."
        )
    if begun or choice != AUTO:
        if not (trouble := _trouble(begun or choice, device, spec, micro)):
            return begun or choice
        whose = f"this run was begun with the engine {begun}, but" if begun else f"--engine {choice}:"
        raise UsageError(f"{whose} {trouble}{': if that stays so, start anew with --fresh' * bool(begun)}.")
    told = ""
    for engine in MADE_FOR.get(device.type, ()):
        if engine == LANES and spec.recipe.precision not in LANES_BY_DEFAULT:
            continue
        if engine == KERNELS and updates < FEWEST:
            continue
        if not (trouble := _trouble(engine, device, spec, micro)):
            break
        if engine != LANES or lane_group(spec):  # of nets that lanes are not made for nothing is said
            told = trouble
    else:
        engine = EAGER
    if told:
        say(f"Note: the engine is {engine}, as {told}.")
    return engine


def _trouble(engine: str, device: torch.device, spec: Spec, micro: int) -> str:
    """Why an engine cannot be had here; empty if it can."""
    if engine in (GRAPH, LANES) and world_size() > 1:
        return "several processes share the run"
    if engine == LANES:
        if lane_group(spec) is None or micro != spec.recipe.batch_size:
            return (
                "lanes are CIFAR's nets, plain or with option A, in float32, tf32 or bf16, with BN over the "
                "whole batch of at most 2,048 images, in one pass"
            )
        return trouble_with_kernels(device, spec)
    if engine == GRAPH and device.type == "mps":
        return "only NVIDIA's GPUs record graphs"
    if engine == GRAPH and spec.recipe.precision == "fp16":
        return "fp16 decides after each update whether it counts"
    if engine == KERNELS and device.type != "cpu":
        return "the kernels are code for CPUs"
    if engine == KERNELS:
        try:
            load_kernels()
        except NoCompiler as missing:
            return str(missing)
    return ""


def trouble_with_kernels(device: torch.device, spec: Spec) -> str:
    """Why our kernels for GPUs cannot be had; they are tried once in each process."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "our kernels are for NVIDIA GPUs of compute capability 8.0 and more"
    try:
        from resrepro.nets.gpu import disagreement
        from resrepro.nets.gpu.forward import INTERPRETED
    except ImportError:
        return "Triton is not installed"
    if device.type != "cuda":
        return "" if INTERPRETED else "our kernels are for NVIDIA GPUs"
    return disagreement(device, IMAGE_SIZES[spec.dataset], spec.recipe.precision)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name (UsageError if it is not there); "auto" takes CUDA, then Apple's MPS, then the
    CPU. Of several processes on a machine each takes a GPU of its own.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if world_size() > 1:  # every process raises the same error
        if name not in ("auto", "cpu", "cuda"):
            way_out = "under torchrun each process takes its own: cpu, cuda or auto"
            raise UsageError(f"--device {name}: {way_out}.")
        if name == "cpu" or (name == "auto" and not count):
            return torch.device("cpu")
        if local_world_size() > count:
            raise UsageError(
                f"{local_world_size()} processes on a machine with {count} GPUs: start one per GPU "
                "(--nproc-per-node), or use --device cpu."
            )
        name = f"cuda:{local_rank()}"
    apple = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if count else "mps" if apple else "cpu"
    if re.fullmatch(r"cpu(:0)?|mps(:0)?|cuda(:\d+)?", name) is None:
        raise UsageError(f"no device {name!r}: there are auto, cpu, cuda, cuda:0, .. and mps.")
    device = torch.device(name)
    if (device.type == "cuda" and (device.index or 0) >= count) or (device.type == "mps" and not apple):
        raise UsageError(f"--device {name}: PyTorch sees no such GPU here; use --device cpu.")
    return device


def describe_device(device: torch.device, micro_batch: int) -> dict[str, object]:
    """What a record says of where a run computes: `micro_batch` images in a pass."""
    return {
        "device": device.type, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(), "processes": world_size(), "micro_batch": micro_batch,
    }  # fmt: skip


@contextlib.contextmanager
def telling_memory(what: str) -> Iterator[None]:
    """Tell by a ResreproError that the memory is full: what it does not hold, and the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in FULL_GPU)
        full = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # PyTorch, on a CPU
        if not on_gpu and not full:
            raise
        whose = "the GPU's" if on_gpu else "this machine's"
        raise ResreproError(f"{whose} memory does not hold {what}.") from None


def forget_shapes_soon() -> None:
    """Let the CPU's convolution library, before it is first used, keep few prepared convolutions instead of
    1,024, one for each size of image in each layer: of photographs of all sizes, gigabytes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@contextlib.contextmanager
def threads_used(count: int | None) -> Iterator[None]:
    """While active, use `count` CPU threads; by default one per core that this process may run on."""
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise UsageError(f"--threads must be at least 1, not {count}.")
    torch.set_num_threads(count or min(before, cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_precision(device: torch.device) -> str:
    """The arithmetic of `--fast`: bf16 where the hardware has it, fp16 on older NVIDIA GPUs, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type != "cpu":
        return "float32"
    if hasattr(torch.cpu, "get_capabilities"):
        narrow = any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16")))
    else:  # of older versions of PyTorch
        narrow = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if narrow else "float32"


def use_precision(precision: str, device: torch.device) -> None:
    """Make float32 mean float32: TF32 only when the recipe asks for it, of a GPU."""
    allowed = precision == "tf32"
    if allowed and device.type != "cuda":
        raise UsageError(f"tf32 is an arithmetic of NVIDIA GPUs, not of {device.type}: use float32.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a net is applied: autocast to bf16 or fp16, or nothing."""
    if precision in NARROW:
        return torch.autocast(device.type, NARROW[precision])
    return contextlib.nullcontext()


def keep_memory() -> None:
    """Let this process keep what it has allocated, for the rest of its life; only glibc can. The maps of an
    update then lie where those of the last one lay: a tenth less time, without new pages.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
            ctypes.CDLL(None).mallopt(option, value)
