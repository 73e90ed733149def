"""The paper's nets as formulas: layers, output sizes, parameters and multiply-adds, without building a net: a
list of parts in the order of the forward pass, layers or blocks of a stage (Table 1; Section 4.2).
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from resrepro.spec import BOTTLENECK_FROM, check_depth, check_shortcut, default_shortcut
from resrepro.spec.catalogue import Experiment, experiments
from resrepro.spec.recipe import FAMILIES, read_toml

# Sides of the images in training: Sections 4.2 and 3.4; digits are enlarged to 16.
IMAGE_SIZES = {"cifar10": 32, "digits": 16, "imagenet": 224, "folder": 224}
CLASSES = {"cifar": 10, "imagenet": 1000}
# Blocks of conv2_x to conv5_x, Table 1.
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip


class Layout(NamedTuple):
    """What distinguishes the nets."""

    blocks: tuple[int, ...]  # of each stage
    widths: tuple[int, ...]
    bottleneck: bool
    stem: tuple[int, int]  # kernel and stride of the first convolution
    pool: bool  # whether a 3x3 max pooling of stride 2 follows it

    @property
    def expansion(self) -> int:
        """Channels that leave a block, per width."""
        return 4 if self.bottleneck else 1


def layout_of(dataset: str, depth: int) -> Layout:
    """The layout of the paper's net of a dataset and depth (UsageError if there is none)."""
    check_depth(depth, FAMILIES[dataset])
    if FAMILIES[dataset] == "cifar":
        return Layout(((depth - 2) // 6,) * 3, (16, 32, 64), bottleneck=False, stem=(3, 1), pool=False)
    bottleneck = depth >= BOTTLENECK_FROM
    return Layout(IMAGENET_BLOCKS[depth], (64, 128, 256, 512), bottleneck, stem=(7, 2), pool=True)


class Layer(NamedTuple):
    """One layer, or the shortcut of a block."""

    kind: str  # "conv", "max pool", "avg pool", "fc"; of a shortcut "identity", "zeros" (A), "projection"
    kernel: int  # of a fully connected layer that which it would have as a convolution
    inputs: int
    channels: int
    stride: int
    size: int  # side of the output map in pixels

    @property
    def weights(self) -> int:
        """Those of a square convolution or fully connected layer, biases aside; 0 of the other kinds."""
        weighted = self.kind in ("conv", "projection", "fc")
        return self.kernel**2 * self.inputs * self.channels if weighted else 0

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image: every output pixel sums over kernel x kernel x inputs."""
        return self.weights * self.size**2


class Part(NamedTuple):
    """A layer (`conv1`, `fc`) or a block of a stage (`conv2_x`, a row of Table 1), `times` in a row."""

    name: str
    times: int
    layers: tuple[Layer, ...]
    shortcut: Layer | None = None

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers of one repetition, the shortcut among them."""
        return self.layers if self.shortcut is None else (*self.layers, self.shortcut)

    @property
    def width(self) -> int:
        """Channels of a block's 3x3 convolutions."""
        return next(layer.channels for layer in self.layers if layer.kernel == 3)

    @property
    def channels(self) -> int:
        """Channels that leave the part."""
        return self.layers[-1].channels

    @property
    def size(self) -> int:
        """The side of the output map in pixels."""
        return self.layers[-1].size


class Architecture(NamedTuple):
    """A net at the image size that the paper trains it at; `bn` tells whether BN follows convolutions."""

    name: str
    label: str
    image_size: int
    parts: tuple[Part, ...]
    bn: bool = True

    @property
    def layers(self) -> int:
        """Weighted layers as the paper counts: convolutions and fc, projections left out."""
        return sum(part.times for part in self.parts for layer in part.layers if layer.weights)

    @property
    def parameters(self) -> int:
        """Weights, BN's scale and shift, biases."""
        total = 0
        for part in self.parts:
            for layer in part.all_layers:
                per_channel = 0 if not layer.weights else 2 if self.bn and layer.kind != "fc" else 1
                total += part.times * (layer.weights + per_channel * layer.channels)
        return total

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all convolutions, projections among them, and fully connected layers."""
        return sum(part.times * layer.multiply_adds for part in self.parts for layer in part.all_layers)

    @property
    def projections(self) -> int:
        """The multiply-adds of the projection shortcuts alone."""
        return sum(part.times * part.shortcut.multiply_adds for part in self.parts if part.shortcut)

    @property
    def stages(self) -> tuple[Part, ...]:
        """The stages of blocks, in order; the layers are those of a stage's last block."""
        last = {part.name: part for part in self.parts if part.name.endswith("_x")}
        blocks = Counter(part.name for part in self.walk())
        return tuple(part._replace(times=blocks[name]) for name, part in last.items())

    def layer(self, name: str) -> Layer:
        """The layer outside the stages of that name: `conv1`, `max pool`, `avg pool`, `fc`."""
        return next(part.layers[0] for part in self.parts if part.name == name)

    def walk(self) -> Iterator[Part]:
        """The parts one by one, blocks repeated."""
        for part in self.parts:
            yield from [part] * part.times


@cache
def architectures() -> Mapping[str, Architecture]:
    """The nets that the catalogue trains for the paper, by experiment name, in its order."""
    own = ("cifar10", "imagenet")
    return {name: architecture_of(each) for name, each in experiments().items() if each.dataset in own}


def architecture_of(experiment: Experiment) -> Architecture:
    """The net of an experiment; a folder's with as many classes as ImageNet has."""
    parts = parts_of(experiment.dataset, experiment.depth, experiment.plain, experiment.shortcut)
    return Architecture(experiment.name, experiment.label, IMAGE_SIZES[experiment.dataset], tuple(parts))


def parts_of(dataset: str, depth: int, plain: bool = False, shortcut: str | None = None) -> Iterator[Part]:
    """The parts of a net, with the strides where the paper has them (UsageError if it has no such net)."""
    layout = layout_of(dataset, depth)
    option = check_shortcut(plain, shortcut, default_shortcut(dataset, depth))
    kernel, stride = layout.stem
    size, channels = IMAGE_SIZES[dataset] // stride, layout.widths[0]
    yield Part("conv1", 1, (Layer("conv", kernel, 3, channels, stride, size),))
    if layout.pool:
        size //= 2
        yield Part("max pool", 1, (Layer("max pool", 3, channels, channels, 2, size),))
    for stage, (count, width) in enumerate(zip(layout.blocks, layout.widths, strict=True)):
        name, stride, out = f"conv{stage + 2}_x", 2 if stage else 1, width * layout.expansion
        size //= stride
        first = _block(layout, option, channels, width, stride, size)
        others = _block(layout, option, out, width, 1, size)
        for block, same in itertools.groupby([first] + [others] * (count - 1)):
            yield Part(name, len(list(same)), *block)
        channels = out
    yield Part("avg pool", 1, (Layer("avg pool", size, channels, channels, 1, 1),))
    yield Part("fc", 1, (Layer("fc", 1, channels, CLASSES[FAMILIES[dataset]], 1, 1),))


def _block(
    layout: Layout, option: str | None, inputs: int, width: int, stride: int, size: int
) -> tuple[tuple[Layer, ...], Layer | None]:
    """The layers of a block with maps of `size`, and its shortcut (Figure 5, Section 3.3)."""
    out = width * layout.expansion
    shapes = [(3, inputs, width, stride), (3, width, width, 1)]
    if layout.bottleneck:
        shapes = [(1, inputs, width, stride), (3, width, width, 1), (1, width, out, 1)]
    layers = tuple(Layer("conv", *shape, size) for shape in shapes)
    if option is None:
        return layers, None
    same = stride == 1 and inputs == out
    projects = option == "C" or (option == "B" and not same)
    kind = "projection" if projects else "identity" if same else "zeros"
    return layers, Layer(kind, 1, inputs, out, stride, size)


@cache
def vgg19() -> Architecture:
    """VGG-19, which Figure 3 sets beside the nets and we do not train, from its list of layers."""
    plan = read_toml("vgg19.toml", "resrepro.paper")
    size, channels, pool = plan["image_size"], 3, plan["pool"]
    layers: list[Layer] = []
    for widths in plan["convolutions"]:
        for width in widths:
            layers.append(Layer("conv", plan["kernel"], channels, width, 1, size))
            channels = width
        size //= pool["stride"]
        layers.append(Layer("max pool", pool["kernel"], channels, channels, pool["stride"], size))
    kernel = size  # the first fc sees the whole map
    for width in plan["fc"]:
        layers.append(Layer("fc", kernel, channels, width, 1, 1))
        kernel, channels = 1, width
    parts = tuple(Part(layer.kind, 1, (layer,)) for layer in layers)
    return Architecture("vgg19", "VGG-19", plan["image_size"], parts, bn=False)
