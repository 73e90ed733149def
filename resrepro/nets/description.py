"""Reading the summary of a net off the built net: hooks on one forward pass over an image without data.

The net is built on PyTorch's meta device, so that ResNet-152 costs neither memory nor arithmetic. What
comes out is written to the package by `resrepro describe --write`, for everything that needs no torch.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from resrepro.errors import RecordError
from resrepro.nets import Net, build_net
from resrepro.nets.layers import ZeroPadShortcut
from resrepro.records.durable import write_out
from resrepro.spec import catalogue
from resrepro.spec.architectures import SUMMARY, Architecture, Layer, Part, count_multiply_adds, to_json

IMAGE_SIZES = {"cifar10": 32, "imagenet": 224}  # of the datasets that the paper uses; Sections 4.2, 3.4
TOLD = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.Identity, ZeroPadShortcut)


def describe_all() -> dict[str, Architecture]:
    """Every net of the catalogue on a dataset of the paper, by experiment name."""
    experiments = catalogue.experiments().values()
    return {found.name: describe(found) for found in experiments if found.dataset in IMAGE_SIZES}


def describe(experiment: catalogue.Experiment) -> Architecture:
    """Build an experiment's net and read its layers off a forward pass."""
    spec = experiment.spec()
    size = IMAGE_SIZES[spec.dataset]
    with torch.device("meta"):
        net = build_net(spec.dataset, spec.depth, spec.plain, spec.shortcut)
        layers = trace(net, torch.empty(1, 3, size, size))
    parameters = sum(weight.numel() for weight in net.parameters())
    return Architecture(experiment.name, experiment.label, size, parameters, parts_of(layers))


def trace(net: Net, images: Tensor) -> list[tuple[str, Layer]]:
    """Module names (`stages.0.1.conv2`) and layers in the order in which the forward pass meets them."""
    met: list[tuple[str, Layer]] = []

    def note(name: str, module: nn.Module, features: Tensor, output: Tensor) -> None:
        if isinstance(module, nn.Linear) and met[-1][1].size > 1:  # its map was averaged away before
            met.append(("avg pool", _average_pool(met[-1][1], module)))
        met.append((name, _layer(name, module, features, output)))

    hooks = [
        module.register_forward_hook(lambda m, given, out, name=name: note(name, m, given[0], out))
        for name, module in net.named_modules()
        if isinstance(module, TOLD)
    ]
    with torch.no_grad():
        net.eval()(images)
    for hook in hooks:
        hook.remove()
    return met


def _layer(name: str, module: nn.Module, features: Tensor, output: Tensor) -> Layer:
    """A module that maps features (1, C, H, W) or (1, C) to an output of as many dimensions."""
    channels, size = output.shape[1], output.shape[-1] if output.dim() == 4 else 1
    if isinstance(module, nn.Conv2d):
        kernel, stride = module.kernel_size[0], module.stride[0]
        work = count_multiply_adds(kernel, features.shape[1], channels, size)
        return Layer("projection" if ".shortcut" in name else "conv", kernel, channels, stride, size, work)
    if isinstance(module, nn.Linear):
        return Layer("fc", 1, channels, 1, size, count_multiply_adds(1, features.shape[1], channels, 1))
    if isinstance(module, nn.MaxPool2d):
        return Layer("max pool", _side(module.kernel_size), channels, _side(module.stride), size, 0)
    if isinstance(module, ZeroPadShortcut):
        return Layer("zeros", 1, channels, module.stride, size, 0)
    return Layer("identity", 1, channels, 1, size, 0)


def _side(window: int | tuple[int, int]) -> int:
    """The side of a window that is square."""
    assert isinstance(window, int), "the nets have square windows only"
    return window


def _average_pool(last: Layer, classifier: nn.Linear) -> Layer:
    """The global average pooling between the last map and the classifier."""
    assert classifier.in_features == last.channels, "the classifier sees more than one value per channel"
    return Layer("avg pool", last.size, last.channels, 1, 1, 0)


def parts_of(met: list[tuple[str, Layer]]) -> tuple[Part, ...]:
    """Layers as parts: those of a block together, equal blocks of a stage counted."""
    grouped: dict[str, list[tuple[str, Layer]]] = {}
    for name, layer in met:
        block = re.match(r"stages\.\d+\.\d+", name)
        grouped.setdefault(block[0] if block else name, []).append((name, layer))
    parts: list[Part] = []
    for name, members in grouped.items():
        layers = tuple(layer for path, layer in members if ".shortcut" not in path)
        shortcut = next((layer for path, layer in members if ".shortcut" in path), None)
        if layers[0].kind == "identity":  # where CIFAR nets have no pooling
            continue
        part = Part(_part_name(name, layers[0]), 1, layers, shortcut)
        if parts and (part.name, layers, shortcut) == (parts[-1].name, parts[-1].layers, parts[-1].shortcut):
            part = Part(part.name, parts.pop().times + 1, layers, shortcut)
        parts.append(part)
    return tuple(parts)


def _part_name(name: str, layer: Layer) -> str:
    """Table 1's name of a part: `conv2_x` for the first stage, `conv1`, `max pool`, `avg pool`, `fc`."""
    stage = re.match(r"stages\.(\d+)", name)
    if stage:
        return f"conv{int(stage[1]) + 2}_x"
    return name if layer.kind in ("conv", "fc") else layer.kind


def summary_path() -> Path:
    """Where the packaged summary lies."""
    return Path(str(resources.files("resrepro").joinpath(*SUMMARY)))


def write_summary(nets: Mapping[str, Architecture]) -> Path:
    """Replace the packaged summary; returns its path inside the package.

    Raises:
        RecordError: if the package's folder cannot be written.
    """
    inside = Path("resrepro", *SUMMARY)
    try:
        write_out(summary_path(), to_json(nets).encode())
    except RecordError as error:
        reason = str(error).rpartition(": ")[2].partition(" (")[0]
        raise RecordError(
            f"cannot write {inside} of the installed package ({reason.rstrip('.')}): run this in a checkout "
            "that you may write to."
        ) from None
    return inside
