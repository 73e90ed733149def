"""Compiling the kernels, once for each compiler and processor, and loading them."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from resrepro.errors import ResreproError
from resrepro.records.write import cache_folder

COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: sums keep their order, and NaN stays NaN.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
SOURCES = ("norm.c", "conv.c", "norm.h", "conv.h", "vectors.h")
PATIENCE = 120  # seconds that a compiler may take
TYPES = ("f32", "bf16")
# The arguments of each kernel: tensors, real numbers, sizes; those of maps are there for each type, and are
# also told how many threads to use.
MAPS = {"forward": "ppppppppp dd lll", "backward": "ppppppppppp lll", "convolve": "pppp lllll",
        "correlate": "ppppp lllll"}  # fmt: skip
OTHERS = {"prepare": ("pp ll i", None), "scratch": ("lll i", ctypes.c_long), "parts": ("", ctypes.c_long)}
KINDS = {"p": ctypes.c_void_p, "d": ctypes.c_double, "l": ctypes.c_long, "i": ctypes.c_int}


class NoCompiler(ResreproError):
    """The kernels cannot be compiled here."""


@dataclass(frozen=True)
class Kernels:
    """The loaded library, what names its code, and the seconds of compiling it (0 if it was there)."""

    library: ctypes.CDLL
    key: str
    seconds: float


def load_kernels() -> Kernels:
    """The kernels, compiled if this machine has not done so before.

    Raises:
        NoCompiler: if there is no compiler, or what it makes does not load.
    """
    start = time.perf_counter()
    compiler = find_compiler()
    folder = resources.files(__package__)
    sources = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in SOURCES}
    key = _key(compiler, sources)
    path = cache_folder() / "kernels" / f"{key}.so"
    fresh = not path.exists()
    if fresh:
        _compile(compiler, sources, path)
    return Kernels(_load(path), key, time.perf_counter() - start if fresh else 0.0)


def find_compiler() -> str:
    """The path of a C compiler: the one that CC names, else the first of COMPILERS.

    Raises:
        NoCompiler: if there is none.
    """
    given = os.environ.get("CC")
    for name in (given,) if given else COMPILERS:
        if found := shutil.which(name):
            return found
    raise NoCompiler(f"no C compiler ({given or ', '.join(COMPILERS)}) is installed here")


def _key(compiler: str, sources: dict[str, str]) -> str:
    """What the result depends on: code, flags, compiler and the processor that -march=native means."""
    told = _run([compiler, "--version"])
    parts = [*sources.values(), *FLAGS, compiler, told, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compile(compiler: str, sources: dict[str, str], path: Path) -> None:
    """Compile beside the destination, then move: other processes see all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            for name, text in sources.items():
                Path(work, name).write_text(text, encoding="utf-8")
            made = Path(work, path.name)
            code = [str(Path(work, name)) for name in sources if name.endswith(".c")]
            _run([compiler, *FLAGS, "-o", str(made), *code, "-lm"])
            made.replace(path)
    except OSError as error:
        raise NoCompiler(f"{path.parent} cannot be written ({error.strerror or error})") from None


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        NoCompiler: if it fails; the first line of its complaint is told.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"the compiler {name} does not run ({type(error).__name__})") from None
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise NoCompiler(f"the compiler {name} failed ({complaint.strip()[:120]})")
    return done.stdout


def _load(path: Path) -> ctypes.CDLL:
    import torch  # noqa: F401  # first, so that its OpenMP runtime is the one that the kernels find

    try:
        library = ctypes.CDLL(str(path))
        for name, (arguments, result) in _signatures().items():
            kernel = getattr(library, name)
            kernel.argtypes = [KINDS[letter] for letter in arguments.replace(" ", "")]
            kernel.restype = result
    except (OSError, AttributeError) as error:
        raise NoCompiler(f"the compiled kernels do not load ({error})") from None
    return library


def _signatures() -> dict[str, tuple[str, Any]]:
    """Every function of the library with its arguments and what it returns."""
    of_maps = {f"{name}_{kind}": (f"{told} i", None) for name, told in MAPS.items() for kind in TYPES}
    return OTHERS | of_maps
