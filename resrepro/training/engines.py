"""What makes a training step fast: PyTorch's own operations, C kernels on a CPU, PyTorch's compiler on a GPU.

The engine changes how numbers are rounded, not what is computed; a run keeps the one it began with.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from resrepro.spec.experiment import Spec
from resrepro.training.device import device_name
from resrepro.training.seen import check_choice, look_up, remember

EAGER, KERNELS, INDUCTOR = ENGINES = ("eager", "kernels", "inductor")
FEWEST = 50  # updates for which compiling the kernels, a second or two, is assumed to pay


@dataclass(frozen=True)
class Plan:
    """A run for which an engine is wanted: what it trains, where, and how many updates are ahead."""

    spec: Spec
    device: torch.device
    updates: int

    @property
    def key(self) -> str:
        """Under which this machine remembers its costs."""
        spec, recipe = self.spec, self.spec.recipe
        parts = spec.dataset, spec.label, recipe.precision, f"batch {recipe.batch_size}"
        return ", ".join([device_name(self.device), f"torch {torch.__version__}", *parts])


def choose_engine(asked: str, plan: Plan, begun: str | None, say: Callable[[str], None]) -> str:
    """The engine of a run: the one it began with, else the one that `--compile` asks for.

    "auto" compiles if that saves more time over the planned updates than it takes, by what was seen on this
    machine; where nothing was seen, on a CPU for FEWEST updates and more, on a GPU not.

    Raises:
        UsageError: for an unknown choice, one that a begun run cannot follow, or "on" where nothing compiles.
    """
    check_choice(asked)
    if begun is not None:
        return _frozen(asked, begun, plan)
    fitting = fitting_engine(plan.device)
    if asked == "off" or (asked == "auto" and not _pays(fitting, plan, say)):
        return EAGER
    if trouble := _trouble(fitting, plan):
        if asked == "on":
            raise UsageError(f"--compile on: {trouble}.")
        say(f"Note: not compiled, as {trouble}.")
        return EAGER
    return fitting


def best_engine(plan: Plan) -> str:
    """The engine that is made for the device, or eager where it cannot be had."""
    fitting = fitting_engine(plan.device)
    return EAGER if _trouble(fitting, plan) else fitting


def fitting_engine(device: torch.device) -> str:
    """The engine that is made for a kind of device."""
    return {"cpu": KERNELS, "cuda": INDUCTOR}.get(device.type, EAGER)


def _frozen(asked: str, begun: str, plan: Plan) -> str:
    if (asked, begun == EAGER) in (("on", True), ("off", False)):
        raise UsageError(
            f"this run was begun with the engine {begun}, and another would round differently: "
            "leave --compile out, or start anew with --fresh."
        )
    if begun != EAGER and (trouble := _trouble(begun, plan)):
        raise UsageError(
            f"this run was begun with the engine {begun}, but {trouble}: start anew with --fresh."
        )
    return begun


def _trouble(engine: str, plan: Plan) -> str:
    """Why an engine cannot be had here; empty if it can."""
    if engine == EAGER:
        return f"nothing is compiled for {plan.device.type}"
    if engine != fitting_engine(plan.device):
        return f"{plan.device.type} has no such engine"
    if engine == INDUCTOR:
        return "several processes share the run" if world_size() > 1 else ""
    try:
        kernels = load_kernels()
    except NoCompiler as missing:
        return str(missing)
    remember(plan.key, KERNELS, compile_seconds=kernels.seconds)
    return ""


def _pays(engine: str, plan: Plan, say: Callable[[str], None]) -> bool:
    """Whether compiling saves more time than it takes."""
    seen = look_up(plan.key)
    saving = seen.saving(engine, plan.updates * plan.spec.recipe.batch_size)
    if saving is not None and seen.compile_seconds is not None:
        return saving > seen.compile_seconds
    if engine == INDUCTOR:
        say(
            "Note: not compiled, as nobody has measured here whether that pays for this net: "
            "`resrepro bench --modes fast,fast-eager` does, --compile on just does it."
        )
    return engine == KERNELS and plan.updates >= FEWEST


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
