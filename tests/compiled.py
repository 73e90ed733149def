"""Compiles the kernels of a whole update for a GPU that need not be there; what ptxas says of each.

`python compiled.py ARCH PRECISION` prints a JSON line for each launch of another kind.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.records.storage import Onlooker
from resrepro.spec import catalogue
from resrepro.training.engine import LANES
from resrepro.training.lanes import LaneUpdates
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import BatchSplit
from resrepro.training.progress import Watcher

KINDS = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.uint8: "u8", int: "i32",
    float: "fp32",
}  # fmt: skip


def launches(precision: str) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Each launch of an update of ResNet-14 on CIFAR-10 that is not like one before."""
    found: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def note(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.setdefault(str(signature_of(self, arguments)), (self, arguments, options))

    triton.runtime.JITFunction.run = note
    spec = catalogue.derive(catalogue.find("cifar10-resnet14"), None, precision=precision)
    images = Images(np.zeros((128, 3, 32, 32), np.uint8), np.zeros(128, np.int64))
    cpu = torch.device("cpu")
    feed = MemoryFeed(spec.recipe, Dataset("made up", 10, images, {"test": images}, {}), cpu, 0)  # type: ignore[arg-type]
    target = Target(cpu, BatchSplit(128, 128), LANES)
    trainer = Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), Watcher())
    updates = LaneUpdates([trainer])
    with updates.of(0, 1):
        updates.update()
    yield from found.values()


def signature_of(
    kernel: Any, arguments: tuple[Any, ...]
) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Types, constants, and what is divisible by 16, as Triton finds them at a launch."""
    types, constants, divisible = dict[str, str](), dict[Any, Any](), dict[Any, Any]()
    for place, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr or (type(value) is int and value == 1):
            types[parameter.name], constants[(place,)] = "constexpr", value
            continue
        tensor = isinstance(value, torch.Tensor)
        types[parameter.name] = f"*{KINDS[value.dtype]}" if tensor else KINDS[type(value)]
        if (
            type(value) is not float
            and (value.storage_offset() * value.element_size() if tensor else value) % 16 == 0
        ):
            divisible[(place,)] = [["tt.divisibility", 16]]
    return types, constants, divisible


def report(arch: int, kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Registers, bytes that are spilled, and the matrix products of a kernel."""
    types, constants, divisible = signature_of(kernel, arguments)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=divisible)
    code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        name = f"sm_{arch}" + "a" * (arch >= 90)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,), (spilled,) = (
        re.findall(r"Used (\d+) registers", said),
        re.findall(r"(\d+) bytes spill stores", said),
    )
    sizes = [value for place, value in constants.items() if kernel.params[place[0]].is_constexpr]
    return {
        "kernel": kernel.__name__, "sizes": sizes, "registers": int(registers), "spilled": int(spilled),
        "products": len(re.findall(r"mma\.sync|wgmma\.mma", code)),
    }  # fmt: skip


if __name__ == "__main__":
    only = sys.argv[3:]
    for kernel, arguments, options in launches(sys.argv[2]):
        if not only or kernel.__name__ in only:
            print(json.dumps(report(int(sys.argv[1]), kernel, arguments, options)), flush=True)
