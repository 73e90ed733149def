"""What makes a training step fast: PyTorch's own operations, C kernels on a CPU, PyTorch's compiler on a GPU.

The engine changes how numbers are rounded, not what is computed; a run keeps the one it began with.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from resrepro.errors import UsageError
from resrepro.nets import Net
from resrepro.nets.convolution import Convolution
from resrepro.nets.cpu import NoCompiler, load_kernels
from resrepro.nets.cpu.convolving import Convolver
from resrepro.nets.cpu.normalising import Normaliser
from resrepro.nets.normalisation import norms_of
from resrepro.processes import world_size

CHOICES = ("auto", "on", "off")  # of --compile
EAGER, KERNELS, INDUCTOR = ENGINES = ("eager", "kernels", "inductor")
FEWEST = 50  # updates for which compiling the kernels, a second or two, is assumed to pay


def choose_engine(
    choice: str, device: torch.device, updates: int, begun: str | None, say: Callable[[str], None]
) -> str:
    """The engine of a run: the one it began with, else the one that `--compile` asks for.

    Args:
        choice: "auto" takes the kernels on a CPU with a C compiler for FEWEST updates and more, elsewhere
            eager; "on" takes what is made for the device, "off" eager.
        device: where the run computes.
        updates: how many the run has ahead.
        begun: the engine of a run that goes on.
        say: told if "auto" finds no compiler.

    Raises:
        UsageError: for an unknown choice, one that a begun run cannot follow, or "on" where nothing compiles.
    """
    if choice not in CHOICES:
        raise UsageError(f"--compile is auto, on or off, not {choice!r}.")
    if begun is not None:
        return _frozen(choice, begun, device)
    engine = fitting_engine(device)
    if choice == "off" or (choice == "auto" and (engine != KERNELS or updates < FEWEST)):
        return EAGER
    if trouble := _trouble(engine, device):
        if choice == "on":
            raise UsageError(f"--compile on: {trouble}.")
        say(f"Note: not compiled, as {trouble}.")
        return EAGER
    return engine


def fitting_engine(device: torch.device) -> str:
    """The engine that is made for a kind of device."""
    return {"cpu": KERNELS, "cuda": INDUCTOR}.get(device.type, EAGER)


def best_engine(device: torch.device) -> str:
    """The engine that is made for the device, or eager where it cannot be had."""
    engine = fitting_engine(device)
    return EAGER if _trouble(engine, device) else engine


def _frozen(choice: str, begun: str, device: torch.device) -> str:
    if (choice, begun == EAGER) in (("on", True), ("off", False)):
        raise UsageError(
            f"this run was begun with the engine {begun}, and another would round differently: "
            "leave --compile out, or start anew with --fresh."
        )
    if begun != EAGER and (trouble := _trouble(begun, device)):
        raise UsageError(
            f"this run was begun with the engine {begun}, but {trouble}: start anew with --fresh."
        )
    return begun


def _trouble(engine: str, device: torch.device) -> str:
    """Why an engine cannot be had here; empty if it can."""
    if engine == EAGER:
        return f"nothing is compiled for {device.type}"
    if engine != fitting_engine(device):
        return f"{device.type} has no such engine"
    if engine == INDUCTOR:
        return "several processes share the run" if world_size() > 1 else ""
    try:
        load_kernels()
    except NoCompiler as missing:
        return str(missing)
    return ""


def describe_engine(engine: str) -> dict[str, object]:
    """What a record says of an engine: other code of the kernels may round differently."""
    return {"engine": engine, "kernels": load_kernels().key if engine == KERNELS else None}


def equip(net: Net, engine: str) -> nn.Module:
    """Make a net compute with an engine in training; returns what training passes go through.

    Raises:
        NoCompiler: if the kernels cannot be compiled here.
    """
    if engine == KERNELS:
        kernels = load_kernels()
        normaliser, convolver = Normaliser(kernels), Convolver(kernels)
        for norm in norms_of(net):
            norm.kernels = normaliser
        for module in net.modules():
            if isinstance(module, Convolution):
                module.wide, module.kernels = True, convolver
    if engine == INDUCTOR:
        return cast(nn.Module, torch.compile(net, mode="reduce-overhead"))  # records CUDA graphs
    return net
