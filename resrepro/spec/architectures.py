"""The paper's nets as data: their layers, widths, output sizes and multiply-adds, without building them.

`catalogue/nets.json` holds what `resrepro describe --write` read off the built nets; VGG-19, which Figure 3
sets beside them and we do not train, is counted from its layers in `paper/vgg19.toml`. A net is a list of
parts in the order of the forward pass: a stem or head layer, or a block and how often it is repeated.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

SUMMARY = ("spec", "catalogue", "nets.json")  # below the package
WEIGHTED = ("conv", "fc")  # what the paper counts as a layer


@dataclass(frozen=True)
class Layer:
    """One layer, or the shortcut of a block.

    `kind` is "conv", "max pool", "avg pool" or "fc"; of a shortcut "identity", "zeros" (option A where
    the size changes) or "projection". A fully connected layer has the kernel that it would have as a
    convolution. `size` is the side of the output map in pixels.
    """

    kind: str
    kernel: int
    channels: int
    stride: int
    size: int
    multiply_adds: int


@dataclass(frozen=True)
class Part:
    """A single layer (`conv1`, `fc`), or a block of a stage (`conv2_x`), `times` times in a row."""

    name: str
    times: int
    layers: tuple[Layer, ...]
    shortcut: Layer | None = None

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers of one repetition, the shortcut among them."""
        return self.layers if self.shortcut is None else (*self.layers, self.shortcut)


@dataclass(frozen=True)
class Stage:
    """A row of Table 1: so many blocks of the same layers, on maps of one size."""

    name: str
    blocks: int
    layers: tuple[Layer, ...]

    @property
    def width(self) -> int:
        """Channels of the 3x3 convolutions."""
        return next(layer.channels for layer in self.layers if layer.kernel == 3)

    @property
    def channels(self) -> int:
        """Channels that leave the stage."""
        return self.layers[-1].channels

    @property
    def size(self) -> int:
        """The side of the output map in pixels."""
        return self.layers[-1].size


@dataclass(frozen=True)
class Architecture:
    """A net at the image size that the paper trains it at; `parameters` counts BN's scale and shift too."""

    name: str
    label: str
    image_size: int
    parameters: int
    parts: tuple[Part, ...]

    @property
    def layers(self) -> int:
        """Weighted layers as the paper counts: convolutions and fc, projections left out."""
        return sum(part.times for part in self.parts for layer in part.layers if layer.kind in WEIGHTED)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all convolutions, projections among them, and fully connected layers."""
        return sum(part.times * layer.multiply_adds for part in self.parts for layer in part.all_layers)

    @property
    def projections(self) -> int:
        """The multiply-adds of the projection shortcuts alone."""
        return sum(part.times * part.shortcut.multiply_adds for part in self.parts if part.shortcut)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of blocks, in order; the layers are those of a stage's last block."""
        found: dict[str, Stage] = {}
        for part in self.parts:
            if part.name.endswith("_x"):
                before = found[part.name].blocks if part.name in found else 0
                found[part.name] = Stage(part.name, before + part.times, part.layers)
        return tuple(found.values())

    def layer(self, name: str) -> Layer:
        """The layer of a part outside the stages: `conv1`, `max pool`, `avg pool`, `fc`."""
        return next(part.layers[0] for part in self.parts if part.name == name)

    def walk(self) -> Iterator[Part]:
        """The parts one by one, blocks repeated."""
        for part in self.parts:
            yield from [part] * part.times


def count_multiply_adds(kernel: int, inputs: int, channels: int, size: int) -> int:
    """Multiply-adds of a square convolution without bias: each output sums kernel x kernel x inputs."""
    return kernel**2 * inputs * channels * size**2


@cache
def architectures() -> Mapping[str, Architecture]:
    """The nets that the catalogue trains for the paper, by experiment name, in its order."""
    text = resources.files("resrepro").joinpath(*SUMMARY).read_text(encoding="utf-8")
    return {name: _from_json(name, entry) for name, entry in json.loads(text)["nets"].items()}


def _from_json(name: str, entry: Mapping[str, Any]) -> Architecture:
    parts = tuple(
        Part(
            part["name"],
            part["times"],
            tuple(Layer(*layer) for layer in part["layers"]),
            Layer(*part["shortcut"]) if "shortcut" in part else None,
        )
        for part in entry["parts"]
    )
    return Architecture(name, entry["net"], entry["image_size"], entry["parameters"], parts)


def to_json(nets: Mapping[str, Architecture]) -> str:
    """The text of the summary: one part of a net per line, each layer a list as `columns` says."""
    lines = ["{", f' "columns": {json.dumps([field.name for field in fields(Layer)])},', ' "nets": {']
    for number, net in enumerate(nets.values(), 1):
        facts = {
            "net": net.label, "image_size": net.image_size, "layers": net.layers,
            "blocks": [stage.blocks for stage in net.stages],
            "widths": [stage.width for stage in net.stages],
            "parameters": net.parameters, "multiply_adds": net.multiply_adds,
        }  # fmt: skip
        lines.append(f"  {json.dumps(net.name)}: {{")
        lines += [f"   {json.dumps(key)}: {json.dumps(value)}," for key, value in facts.items()]
        parts = [f"    {json.dumps(_part_to_json(part))}" for part in net.parts]
        lines += ['   "parts": [', ",\n".join(parts), "   ]", "  }" + ("," if number < len(nets) else "")]
    return "\n".join([*lines, " }", "}"]) + "\n"


def _part_to_json(part: Part) -> dict[str, Any]:
    way = {"shortcut": astuple(part.shortcut)} if part.shortcut else {}
    layers = [astuple(layer) for layer in part.layers]
    return {"name": part.name, "times": part.times, "layers": layers, **way}


@cache
def vgg19() -> Architecture:
    """VGG-19, counted from its list of layers in the same way as the built nets."""
    text = resources.files("resrepro").joinpath("paper", "vgg19.toml").read_text(encoding="utf-8")
    plan = tomllib.loads(text)
    size, channels, parameters = plan["image_size"], 3, 0
    parts: list[Part] = []

    def add(kind: str, kernel: int, outputs: int) -> None:
        nonlocal channels, parameters
        work = count_multiply_adds(kernel, channels, outputs, size)
        parts.append(Part(kind, 1, (Layer(kind, kernel, outputs, 1, size, work),)))
        parameters += kernel**2 * channels * outputs + outputs  # with biases
        channels = outputs

    for widths in plan["convolutions"]:
        for width in widths:
            add("conv", plan["kernel"], width)
        pool = plan["pool"]
        size = math.ceil(size / pool["stride"])
        parts.append(
            Part("max pool", 1, (Layer("max pool", pool["kernel"], channels, pool["stride"], size, 0),))
        )
    kernel, size = size, 1  # the first fc sees the whole map
    for width in plan["fc"]:
        add("fc", kernel, width)
        kernel = 1
    return Architecture("vgg19", "VGG-19", plan["image_size"], parameters, tuple(parts))
