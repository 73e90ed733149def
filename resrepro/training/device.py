"""Where and with what arithmetic a run computes."""

import contextlib
import os
from collections.abc import Iterator

import torch

from resrepro.errors import ResreproError, UsageError
from resrepro.processes import is_first, local_rank, local_world_size, world_size
from resrepro.records.environment import cpu_model

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Of several processes on a machine each takes a GPU of its own.

    Raises:
        UsageError: if the device is not there.
    """
    if world_size() > 1:
        name = _own_gpu(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device {name!r}: there are auto, cpu, cuda, cuda:0, .. and mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: PyTorch sees no such GPU here; use --device cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: PyTorch sees no Apple GPU here; use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"no device {name!r}: there are auto, cpu, cuda, cuda:0, .. and mps.")
    return device


def _own_gpu(name: str) -> str:
    """The name of this process's own GPU; every process raises the same error."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: under torchrun each process takes its own: cpu, cuda or auto.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return "cpu"
    if local_world_size() > count:
        raise UsageError(
            f"{local_world_size()} processes on a machine with {count} GPUs: start one per GPU "
            "(--nproc-per-node), or use --device cpu."
        )
    return f"cuda:{local_rank()}"


def describe_device(device: torch.device, micro_batch: int) -> dict[str, object]:
    """What a record says of where a run computes: `micro_batch` images in a pass."""
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "micro_batch": micro_batch,
    }


@contextlib.contextmanager
def telling_memory(what: str) -> Iterator[None]:
    """Tell that the memory is full in a sentence: what it does not hold, and the way out.

    Raises:
        UsageError: then; in a further process another ResreproError, as the first would not tell of it.
    """
    kind = UsageError if is_first() else ResreproError
    try:
        yield
    except torch.OutOfMemoryError:
        raise kind(f"the GPU's memory does not hold {what}.") from None
    except MemoryError:
        raise kind(f"this machine's memory does not hold {what}.") from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how PyTorch says it on a CPU
            raise
        raise kind(f"this machine's memory does not hold {what}.") from None


def forget_shapes_soon() -> None:
    """Let the CPU's convolution library keep few prepared convolutions, before it is first used.

    By default it keeps 1,024 of them with their memory, one for each size of image in each layer: under
    photographs of all sizes they grew to gigabytes (measured).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@contextlib.contextmanager
def threads_used(count: int | None) -> Iterator[None]:
    """While active, use `count` CPU threads; by default one per core that this process may run on.

    Raises:
        UsageError: if the count is not positive.
    """
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise UsageError(f"--threads must be at least 1, not {count}.")
    if count is None and hasattr(os, "sched_getaffinity"):
        count = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the processor with the number of its threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def fast_precision(device: torch.device) -> str:
    """The arithmetic of `--fast`: bf16 where the hardware has it, fp16 on older NVIDIA GPUs, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16"
    return "float32"


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def use_precision(precision: str, device: torch.device) -> None:
    """Make float32 mean float32: TF32 only when the recipe asks for it.

    Raises:
        UsageError: if TF32 is asked for where there is none.
    """
    allowed = precision == "tf32"
    if allowed and device.type != "cuda":
        raise UsageError(f"tf32 is an arithmetic of NVIDIA GPUs, not of {device.type}: use float32.")
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a net is applied: autocast to bf16 or fp16, or nothing."""
    if precision in NARROW:
        return torch.autocast(device.type, NARROW[precision])
    return contextlib.nullcontext()
