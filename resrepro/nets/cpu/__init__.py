"""C code for the CPU, compiled on the machine it runs on: 3x3 convolutions, and BN, shortcut and ReLU.

The convolutions take a quarter of the multiplications (conv.c), the rest few passes over memory (norm.c);
docs/performance.md has the figures.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch  # first, so that its OpenMP runtime is the one that the kernels find
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.errors import ResreproError
from resrepro.machine import cache_folder
from resrepro.nets import Block, Bottleneck, Net
from resrepro.nets.layers import GroupedBatchNorm2d, pairs_of, relu

COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: sums keep their order, and NaN stays NaN.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
SOURCES = ("norm.c", "conv.c", "norm.h", "conv.h", "vectors.h")
PATIENCE = 120  # seconds that a compiler may take
TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
# The arguments of each kernel: tensors, real numbers, sizes; those of maps are there for each type, and are
# also told how many threads to use.
MAPS = {"forward": "ppppppppp dd lll", "backward": "ppppppppppp lll", "convolve": "pppp lllll",
        "correlate": "ppppp lllll"}  # fmt: skip
OTHERS = {"prepare": ("pp ll i", None), "scratch": ("lll i", ctypes.c_long), "parts": ("", ctypes.c_long)}
LETTERS = {"p": ctypes.c_void_p, "d": ctypes.c_double, "l": ctypes.c_long, "i": ctypes.c_int}
LANES = 16  # channels at a time in conv.c
TILE = 4  # outputs of a tile in each direction
MOST = 128  # channels: the transformed filters of more do not stay in the cache
LEAST = 64  # values of a row in norm.c


# --- compiling: once for each compiler and processor ------------------------------------------------


class NoCompiler(ResreproError):
    """The kernels cannot be compiled here."""


class Kernels(NamedTuple):
    """The loaded library, and what names its code."""

    library: ctypes.CDLL
    key: str


def load_kernels() -> Kernels:
    """The kernels, compiled by CC or the first of COMPILERS if this machine has not done so before
    (NoCompiler if there is none, or what it makes does not load).
    """
    compiler, sources = _compiler(), [Path(__file__).with_name(name) for name in SOURCES]
    key = _key(compiler, [source.read_text(encoding="utf-8") for source in sources])
    path = cache_folder() / "kernels" / f"{key}.so"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=path.parent) as work:
                made = Path(work, path.name)
                code = [str(source) for source in sources if source.suffix == ".c"]
                _run([*compiler, *FLAGS, "-o", str(made), *code, "-lm"])
                made.replace(path)  # moved: other processes see all of it or nothing
        except OSError as error:
            raise NoCompiler(f"{path.parent} cannot be written ({error.strerror or error})") from None
    maps = {f"{name}_{kind}": (f"{types} i", None) for name, types in MAPS.items() for kind in TYPES.values()}
    try:
        library = ctypes.CDLL(str(path))
        for name, (arguments, result) in (OTHERS | maps).items():
            kernel = getattr(library, name)
            kernel.argtypes = [LETTERS[letter] for letter in arguments.replace(" ", "")]
            kernel.restype = result
    except (OSError, AttributeError) as error:
        raise NoCompiler(f"the compiled kernels do not load ({error})") from None
    return Kernels(library, key)


def _compiler() -> list[str]:
    """The words of a compiler's command: CC, which may have arguments (`ccache gcc`), or one of COMPILERS."""
    given = os.environ.get("CC", "").split()
    names, arguments = given[:1] or COMPILERS, given[1:]
    for name in names:
        if path := shutil.which(name):
            return [path, *arguments]
    raise NoCompiler(f"no C compiler ({', '.join(names)}) is installed here")


def _key(compiler: list[str], sources: list[str]) -> str:
    """What the result depends on: code, flags, compiler and the processor that -march=native means."""
    file = Path("/proc/cpuinfo")
    told = file.read_text(encoding="utf-8", errors="replace") if file.exists() else platform.processor()
    kinds = "model name", "flags", "Features", "CPU part"
    processor = "\n".join(dict.fromkeys(line for line in told.splitlines() if line.startswith(kinds))) or told
    version = _run([*compiler, "--version"])
    parts = [*sources, *FLAGS, *compiler, version, platform.machine(), processor]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    """What a command prints; if it fails, the first line of its complaint is told."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"the compiler {name} does not run ({type(error).__name__})") from None
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise NoCompiler(f"the compiler {name} failed ({complaint.strip()[:120]})")
    return done.stdout


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where the numbers of tensors lie; None for one that is not there."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# --- 3x3 convolutions of stride 1 by Winograd's method ----------------------------------------------


def can_convolve(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels are made for a map (N, C_in, H, W) and filters (C, C_in, 3, 3) of padding 1."""
    height, width = x.shape[2:]
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and weight.dtype == torch.float32
        and height % TILE == width % TILE == 0
        and all(count % LANES == 0 and count <= MOST for count in weight.shape[:2])
    )


class _Convolve(torch.autograd.Function):
    """x (N, C_in, H, W) and filters (C, C_in, 3, 3), padding 1 -> (N, C, H, W) of x's type, by float32."""

    @staticmethod
    def forward(ctx: Any, library: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        ctx.library = library
        ctx.save_for_backward(x, weight)
        return _convolve(library, x, weight, turned=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library, (x, weight), gradient = ctx.library, ctx.saved_tensors, _channels_last(gradient)
        _, of_data, of_filters = ctx.needs_input_grad
        of_x = _convolve(library, gradient, weight, turned=True) if of_data else None
        if not of_filters:
            return None, of_x, None
        images, inputs, height, width = x.shape
        outputs, threads, of_weight = gradient.shape[1], torch.get_num_threads(), torch.empty_like(weight)
        buffers = torch.empty(threads * library.scratch(width, inputs, outputs, 0))
        tensors = x, gradient, of_weight, buffers, torch.empty(library.parts() * weight.numel())
        kernel = getattr(library, f"correlate_{TYPES[x.dtype]}")
        kernel(*_addresses(*tensors), images, height, width, inputs, outputs, threads)
        return None, of_x, of_weight


def _convolve(library: ctypes.CDLL, x: Tensor, weight: Tensor, *, turned: bool) -> Tensor:
    """x with the filters, or `turned` the gradient of the outputs with the filters turned round."""
    images, inputs, height, width = x.shape
    outputs, threads = weight.shape[1 if turned else 0], torch.get_num_threads()
    filters = torch.empty(36 * inputs * outputs)
    library.prepare(*_addresses(weight, filters), weight.shape[1], weight.shape[0], int(turned))
    y = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    buffers = torch.empty(threads * library.scratch(width, inputs, outputs, 1))
    kernel = getattr(library, f"convolve_{TYPES[x.dtype]}")
    kernel(*_addresses(x, filters, y, buffers), images, height, width, inputs, outputs, threads)
    return y


class _WideGradient(torch.autograd.Function):
    """A bf16 convolution whose weights' gradient is taken in float32: faster where the stride is not 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
        ctx.shape = stride, padding, (1, 1), False, (0, 0), 1
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        return F.conv2d(x, narrow, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        of_data, of_filters, *_ = ctx.needs_input_grad
        backward, wide = torch.ops.aten.convolution_backward, (gradient.float(), x.float(), narrow.float())
        of_x = backward(gradient, x, narrow, None, *ctx.shape, (of_data, False, False))[0]
        of_weight = backward(*wide, None, *ctx.shape, (False, of_filters, False))[1]
        return of_x, of_weight, None, None


# --- BN, shortcut and ReLU in two passes over memory each way ---------------------------------------

Twice = tuple[Tensor, Tensor]
"""A map for its two uses, the convolutions and the shortcut: two tensors with the same numbers, so that the
backward pass of BN meets both gradients and adds them as it reads them."""


def can_normalise(x: Tensor) -> bool:
    """Whether the kernels are made for such a map: (N, C, H, W) on the CPU, of a type and size."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    rows = (LEAST % channels == 0 or channels % LEAST == 0) and pixels * channels % max(channels, LEAST) == 0
    return x.device.type == "cpu" and x.dtype in TYPES and rows and len(x) * pixels > 1


class _Normalise(torch.autograd.Function):
    """`relu(norm(x) + shortcut)` in training; x and shortcut are (N, C, H, W) of one type."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, norm: Any, x: Tensor, shortcut: Tensor | None, *affine: Tensor
    ) -> Twice:
        x = _channels_last(x)
        shortcut = None if shortcut is None else _channels_last(shortcut.to(x.dtype))
        width = max(x.shape[1], LEAST)
        y, saved, partial = torch.empty_like(x), torch.empty(4, width), torch.empty(len(x), 2, width)
        norm.num_batches_tracked.add_(1)
        tensors = x, shortcut, y, *affine, norm.running_mean, norm.running_var, saved, partial
        ctx.sizes = len(x), x.shape[2] * x.shape[3], x.shape[1], torch.get_num_threads()
        kernel = getattr(library, f"forward_{TYPES[x.dtype]}")
        kernel(*_addresses(*tensors), norm.momentum, norm.eps, *ctx.sizes)
        ctx.library, ctx.added = library, shortcut is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, saved, *([y] if ctx.added else []))
        return y, y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, saved, *y = ctx.saved_tensors
        dy, *side = [_channels_last(gradient) for gradient in gradients if gradient is not None]
        if side and not ctx.added:  # behind the first convolution; norm.c adds only on the way to a shortcut
            dy, side = dy + side[0], []
        channels, width = x.shape[1], max(x.shape[1], LEAST)
        dx, shortcut = torch.empty_like(x), torch.empty_like(x) if ctx.added else None
        weight, bias, factors = torch.empty(channels), torch.empty(channels), torch.empty(3, width)
        partial = torch.empty(len(x), 2, width)
        maps = dy, side[0] if side else None, y[0] if y else None, x, dx, shortcut
        kernel = getattr(ctx.library, f"backward_{TYPES[x.dtype]}")
        kernel(*_addresses(*maps, saved, weight, bias, factors, partial), *ctx.sizes)
        return None, None, dx, shortcut, weight, bias


class KernelNet(nn.Module):
    """A net in training, by its own layers and parameters but computed by the kernels where they fit."""

    def __init__(self, net: Net, kernels: Kernels) -> None:
        super().__init__()
        self.net, self.library = net, kernels.library
        blocks = [module for module in net.modules() if isinstance(module, Block | Bottleneck)]
        self.blocks = [(block.shortcut, pairs_of(block)) for block in blocks]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        x, same = self._relu(self.net.bn1, self._convolve(self.net.conv1, images))
        if not isinstance(self.net.pool, nn.Identity):
            x = same = self.net.pool(x)
        for shortcut, pairs in self.blocks:
            if isinstance(shortcut, nn.Sequential):  # a projection
                *pairs, (convolution, norm) = pairs
                added = norm(self._convolve(convolution, same))
            else:
                added = None if shortcut is None else shortcut(same)
            *inner, (last, last_norm) = pairs
            for convolution, norm in inner:
                x, _ = self._relu(norm, self._convolve(convolution, x))
            x, same = self._relu(last_norm, self._convolve(last, x), added)
        return self.net.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def _convolve(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        shape = layer.kernel_size, layer.stride, layer.padding
        if shape == ((3, 3), (1, 1), (1, 1)) and can_convolve(x, layer.weight):
            return _Convolve.apply(self.library, x, layer.weight)  # type: ignore[no-any-return]
        if x.dtype == torch.bfloat16 and layer.stride != (1, 1):
            return _WideGradient.apply(x, layer.weight, *shape[1:])  # type: ignore[no-any-return]
        return layer(x)  # type: ignore[no-any-return]

    def _relu(self, norm: GroupedBatchNorm2d, x: Tensor, shortcut: Tensor | None = None) -> Twice:
        if norm.is_whole(x) and can_normalise(x):
            return _Normalise.apply(self.library, norm, x, shortcut, norm.weight, norm.bias)  # type: ignore[no-any-return]
        y = relu(norm(x) if shortcut is None else norm(x) + shortcut)
        return y, y
