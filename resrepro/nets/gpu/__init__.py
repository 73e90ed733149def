"""Nets of Section 4.2 on an NVIDIA GPU, several of one depth ("lanes") trained as one, by kernels of our own.

The nets may differ in seed and in whether they are plain or residual; nothing of one depends on those beside
it. `forward` says how everything lies in memory. Before a run `disagreement` tries the kernels on the GPU.
"""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from triton import cdiv, next_power_of_2

from resrepro.errors import ResreproError
from resrepro.nets import Block, Net, build_net
from resrepro.nets.gpu import backward, forward
from resrepro.nets.gpu.forward import INTERPRETED
from resrepro.nets.layers import ZeroPadShortcut, pairs_of

STEM = 16  # channels of the images, of which 13 are zero: the least that a product takes
SUMMED = 8192  # numbers that a program adds at a time

# By width: pixels of a program (more of them spill), parts that a filter's gradient is summed in, taps of one
# program. None depends on the number of lanes, for then a lane's sums would. To be tuned on a GPU.
PIXELS, PARTS, TAPS = {16: 128, 32: 64, 64: 32}, {16: 64, 32: 32, 64: 16}, {16: 3, 32: 3, 64: 1}

# Of a precision the maps' type, how `tl.dot` is to multiply, and how many of a filter's numbers at a time.
ARITHMETIC = {
    "float32": (torch.float32, "ieee", 9 * 64 if INTERPRETED else 16),
    "tf32": (torch.float32, "tf32", 9 * 64),
    "bf16": (torch.bfloat16, "wide" if INTERPRETED else "ieee", 9 * 64),
}

# The check: the least depth that has every kind of layer, images, and how far, of its length, a net's way may
# be from PyTorch's in float32, whose own gradients in bf16 are off by up to 0.2 (measured).
DEPTH, IMAGES, RATE = 14, 32, 1e-3
TOLERANCE = {"float32": 1e-3, "tf32": 0.1, "bf16": 0.3}


@dataclass
class Layer:
    """A convolution C -> K of stride S with BN. H: side of its output, M: pixels of that in a batch."""

    C: int
    K: int
    S: int
    H: int
    M: int
    at: int  # place of the filters among the parameters, and of gamma and beta
    norm_at: int
    zeros: int  # of option A, those that come before the C channels
    y: Tensor  # (L, M, K), the output
    z: Tensor  # the same, after BN, shortcut and ReLU
    stats: Tensor  # (L, 4, K)
    running: Tensor  # (L, 2, K)
    back: Tensor  # (L, 2, K)


class Lanes:
    """Nets of one depth in training. Their parameters, buffers and momentum move here, and stay theirs.

    Args:
        nets: of one depth and recipe, plain or with option A, on one device.
        optimizers: of each net, with its momentum.
        images, side: N images of so many pixels a side in a batch.
        precision: "float32", "tf32" or "bf16".

    Attributes:
        x: the images of an update, (L, N x side x side, STEM), which whoever calls `update` fills; so also
        truth: their labels, (L, N) int64, and
        rates: the learning rate of each lane, (L,).
        since_sample, since_look: loss, errors at 1 and 5, images of the updates so far, (L, 4) each.
        changed: the tensors that an update writes and the next one reads.
    """

    def __init__(
        self, nets: Sequence[Net], optimizers: Sequence[torch.optim.SGD], images: int, side: int,
        precision: str,
    ) -> None:  # fmt: skip
        self.count, self.images, self.side = len(nets), images, side
        self.maps, self.products, self.few = ARITHMETIC[precision]
        self.net, self.options, self.device = nets[0], optimizers[0].param_groups[0], nets[0].fc.weight.device
        ways = (module for net in nets for module in net.modules() if isinstance(module, ZeroPadShortcut))
        self.symmetric = any(way.before for way in ways)
        self._lay_out()
        self.parameters, self.momentum = self._zeros(self.size), self._zeros(self.size)
        self.decay, self.seen = self._zeros(self.size)[0], self._zeros(len(self.layers), kind=torch.int64)
        self.rates, self.residual = self._zeros(), self._zeros()
        self.since_sample, self.since_look = self._zeros(4), self._zeros(4)
        self.x = self._zeros(images * side**2, STEM, kind=self.maps)
        self.truth = self._zeros(images, kind=torch.int64)
        for lane, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            self._move_in(lane, net, optimizer)
        self.narrow = self.parameters if self.maps == torch.float32 else self.parameters.to(self.maps)
        self.changed = [self.parameters, self.momentum, self.narrow, self.seen]
        self.changed += [self.since_sample, self.since_look, *(layer.running for layer in self.layers)]

    def _zeros(self, *shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros((self.count, *shape), dtype=kind, device=self.device)

    def _lay_out(self) -> None:
        """Give every layer its place, and allocate what does not depend on what the nets hold."""
        self.layers, side, at, starts = list[Layer](), self.side, 0, dict[int, int]()
        for convolution, _ in pairs_of(self.net):
            C, K, S = max(convolution.in_channels, STEM), convolution.out_channels, convolution.stride[0]
            side //= S
            M = self.images * side**2
            starts.setdefault(K, at)
            maps = (self._zeros(M, K, kind=self.maps) for _ in range(2))
            small = (self._zeros(rows, K) for rows in (4, 2, 2))
            zeros = (K - C) // 2 if self.symmetric else 0
            norm_at = at + 9 * C * K
            self.layers.append(Layer(C, K, S, side, M, at, norm_at, zeros, *maps, *small))
            at = norm_at + 2 * K
        self.fc_at, fc = at, self.net.fc
        self.size = 16 * cdiv(at + fc.weight.numel() + len(fc.bias), 16)  # aligned, for wide loads
        ends = [*list(starts.values())[1:], self.size]
        # Of each stage, to which stem and fc layer belong, by its width: where its parameters begin, and the
        # parts of their gradients (L, parts, parameters).
        self.stages = {
            K: (start, self._zeros(PARTS[K], end - start))
            for (K, start), end in zip(starts.items(), ends, strict=True)
        }
        largest = max(layer.M * layer.K for layer in self.layers)
        self.flows = [self._zeros(largest, kind=self.maps) for _ in range(3)]
        programs = (cdiv(layer.M * layer.S**2, PIXELS[layer.K]) * layer.K for layer in self.layers)
        self.partial = self._zeros(2 * max(*programs, self.images * self.layers[-1].K))
        self.tallies = self._zeros(self.images, 4)

    def _places(self, net: Net, row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of a net, and where it is in a row (P,) of numbers."""
        for layer, (convolution, norm) in zip(self.layers, pairs_of(net), strict=True):
            filters = row[layer.at : layer.norm_at].view(3, 3, layer.C, layer.K)
            yield convolution.weight, filters[:, :, : convolution.in_channels].permute(3, 2, 0, 1)
            yield norm.weight, row[layer.norm_at :][: layer.K]
            yield norm.bias, row[layer.norm_at + layer.K :][: layer.K]
        yield net.fc.weight, row[self.fc_at :][: net.fc.weight.numel()].view_as(net.fc.weight)
        yield net.fc.bias, row[self.fc_at + net.fc.weight.numel() :][: len(net.fc.bias)]

    def _move_in(self, lane: int, net: Net, optimizer: torch.optim.SGD) -> None:
        """Let a net's parameters, momentum and buffers lie here from now on."""
        decay = {each: group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
        rows = self.parameters[lane], self.momentum[lane], self.decay
        places, paces, losses = (dict(self._places(net, row)) for row in rows)
        for parameter, place in places.items():
            state = optimizer.state[parameter]
            state["momentum_buffer"] = paces[parameter].copy_(state["momentum_buffer"])
            parameter.data = place.copy_(parameter.data)
            losses[parameter].fill_(decay[parameter])
        names = "running_mean", "running_var", "num_batches_tracked"
        for layer, (_, norm), seen in zip(self.layers, pairs_of(net), self.seen[lane], strict=True):
            for name, place in zip(names, (*layer.running[lane], seen), strict=True):
                setattr(norm, name, place.copy_(getattr(norm, name)))
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        self.residual[lane] = float(blocks[0].shortcut is not None)

    # --- an update ------------------------------------------------------------------------------------

    def update(self) -> None:
        """One update of every lane, by launches alone: images and labels -> parameters, averages, sums."""
        self.forward()
        self.backward()
        for start, gradients in self.stages.values():
            parts, length = gradients.shape[1:]
            block = max(64, SUMMED // parts)
            backward.descend[cdiv(length, block), self.count](
                self.parameters, self.momentum, self.narrow, gradients, self.decay, self.rates, self.size,
                start, length, self.options["momentum"], parts, self.options["nesterov"], block,
            )  # fmt: skip
        self.seen += 1

    def forward(self) -> None:
        """All maps, up to the last block's."""
        stem, *rest = self.layers
        z = self._layer(stem, self.x)
        for first, second in zip(rest[::2], rest[1::2], strict=True):
            inner = self._layer(first, z)
            z = self._layer(second, inner, (z, first))

    def _layer(self, layer: Layer, x: Tensor, shortcut: tuple[Tensor, Layer] | None = None) -> Tensor:
        """z of a layer from its input x; with a shortcut from a block's input, whose first layer is given."""
        G, H, K, S = cdiv(layer.M, PIXELS[layer.K]), layer.H, layer.K, layer.S
        norm = self.net.bn1
        forward.convolve[G, self.count](
            x, self.narrow[:, layer.at :], layer.y, self.partial, layer.M, layer.M * S**2, G, self.size,
            H, H, layer.C, K, S, PIXELS[K], self.few, self.products,
        )  # fmt: skip
        forward.find_statistics[(self.count,)](
            self.partial, self.parameters[:, layer.norm_at :], layer.running, layer.stats, layer.M, G,
            self.size, PIXELS[K], norm.eps, norm.momentum, K, min(SUMMED // K, next_power_of_2(G)),
            num_warps=8,
        )  # fmt: skip
        way, first = shortcut or (x, layer)  # which is not read without a shortcut
        forward.activate[G, self.count](
            layer.y, layer.stats, way, self.residual, layer.z, layer.M, layer.M * first.S**2,
            H, H, first.C, K, first.S, first.zeros, shortcut is not None, PIXELS[K],
        )  # fmt: skip
        return layer.z

    def backward(self) -> None:
        """The gradients of all parameters, in parts, and the sums of errors."""
        g, inner, dy = self.flows
        G = self._classify(g)
        for place in range(len(self.layers) - 2, 0, -2):
            before, first, second = self.layers[place - 1 : place + 2]
            self._back(second, g, dy, first.z, G)
            G = self._differentiate(second, first, dy, inner, None)
            self._back(first, inner, dy, before.z, G)
            G = self._differentiate(first, before, dy, inner, g)
            g, inner = inner, g
        self._back(self.layers[0], g, dy, self.x, G)

    def _classify(self, g: Tensor) -> int:
        """From the last map to the gradient in front of its ReLU; gives how many programs sum it."""
        last, fc, N = self.layers[-1], self.net.fc, self.images
        start, gradients = self.stages[last.K]
        block = max(16, next_power_of_2(cdiv(N, PARTS[last.K])))
        G, pixels = int(cdiv(N, block)), last.H**2
        part = max(1, min(next_power_of_2(pixels), SUMMED // 2 // (block * last.K)))
        backward.classify[G, self.count](
            last.z, last.y, last.stats, self.parameters[:, self.fc_at :], self.truth, g, gradients,
            self.partial, self.tallies, N, G, self.size, self.fc_at - start, gradients.shape[2], pixels,
            last.K, fc.out_features, max(16, next_power_of_2(fc.out_features)), PARTS[last.K], block, part,
        )  # fmt: skip
        backward.add_tallies[(self.count,)](self.tallies, self.since_sample, self.since_look, G)
        return G

    def _back(self, layer: Layer, g: Tensor, dy: Tensor, x: Tensor, G: int) -> None:
        """Through a layer's BN: dy, and the gradients of gamma, beta and (with its input x) the filters."""
        (start, gradients), K, M = self.stages[layer.K], layer.K, layer.M
        ROW = gradients.shape[2]
        backward.differentiate_norm[(self.count,)](
            self.partial, layer.back, gradients, M, G, layer.norm_at - start, ROW, PARTS[K], K,
            min(SUMMED // K, next_power_of_2(G)), num_warps=8,
        )  # fmt: skip
        backward.go_through_norm[cdiv(M, PIXELS[K]), self.count](
            g, layer.y, layer.stats, layer.back, dy, M, K, PIXELS[K]
        )
        block = SUMMED // 2 // K // (layer.S if self.maps == torch.bfloat16 else 2)
        chunk = cdiv(cdiv(M, PARTS[K]), block) * block
        backward.differentiate_filters[cdiv(M, chunk), self.count, 9 // TAPS[K]](
            x, dy, gradients, M, M * layer.S**2, chunk, layer.at - start, ROW, PARTS[K],
            layer.H, layer.H, layer.C, K, layer.S, TAPS[K], block, self.products, num_stages=1,
        )  # fmt: skip

    def _differentiate(
        self, layer: Layer, before: Layer, dy: Tensor, out: Tensor, carried: Tensor | None
    ) -> int:
        """From dy of a layer to the gradient in front of the ReLU before it; gives how many programs sum it.
        `carried`, the gradient behind the block, comes back through the shortcut beside these two.
        """
        G: int = cdiv(before.M, PIXELS[layer.K])
        z, g = (before.y, dy) if carried is None else (before.z, carried)  # the others are not read
        backward.differentiate[G, self.count](
            dy, self.narrow[:, layer.at :], z, before.y, before.stats, g, self.residual, out, self.partial,
            before.M, layer.M, G, self.size, before.H, before.H, layer.C, layer.K, layer.S,
            layer.zeros, carried is not None, PIXELS[layer.K], self.few, self.products,
        )  # fmt: skip
        return G


# --- whether a GPU computes them right: two updates of small nets -----------------------------------


@functools.cache
def disagreement(device: torch.device, side: int, precision: str) -> str:
    """Why the kernels are not to be used for images of `side` pixels; empty if they compute the right thing.
    What does not compile, or cannot be launched, counts as wrong. A full memory is raised as it is, and as a
    ResreproError a fault after which this process can use the GPU no more.
    """
    try:
        error = distance(device, side, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as trouble:  # of a compiler, a driver, a GPU that nobody has tried
        told = f"our kernels do not run on this GPU ({type(trouble).__name__}: {str(trouble).strip()[:100]})"
        try:
            torch.zeros(1, device=device).item()
        except RuntimeError:
            raise ResreproError(f"{told}: use --engine graph.") from None
        return told
    if error <= TOLERANCE[precision]:
        return ""
    return f"our kernels disagree with PyTorch on this GPU (updates differ by {error:.1e})"


def distance(device: torch.device, side: int, precision: str) -> float:
    """How far two nets' ways, in parameters and in running averages, are from PyTorch's, of their length."""
    source = torch.Generator().manual_seed(0)
    before = [build_net("cifar10", DEPTH, plain, generator=source).to(device) for plain in (True, False)]
    nets, references = copy.deepcopy(before), copy.deepcopy(before)
    images = torch.randn(2, IMAGES, 3, side, side, generator=source).to(device)
    truth = torch.randint(10, (2, IMAGES), generator=source).to(device)
    lanes = Lanes(nets, [_sgd(net) for net in nets], IMAGES, side, precision)
    lanes.x.view(2, IMAGES, side, side, -1)[..., :3] = images.permute(0, 1, 3, 4, 2)
    lanes.truth.copy_(truth)
    lanes.rates.fill_(RATE)
    for _ in range(2):
        lanes.update()
    errors = list[float]()
    for lane, (net, reference) in enumerate(zip(nets, references, strict=True)):
        optimizer = _sgd(reference)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(reference.train()(images[lane]), truth[lane]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for old, new, wanted in zip(*map(_state, (before[lane], net, reference)), strict=True):
            errors.append(((new - wanted).norm() / (wanted - old).norm()).item())
    return max(errors, key=lambda error: (math.isnan(error), error))


def _sgd(net: nn.Module) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(net.parameters(), RATE, 0.9, weight_decay=1e-2)
    for parameter in net.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _state(net: nn.Module) -> list[Tensor]:
    """All parameters as one row of numbers, and all running averages."""
    parts = list(net.parameters()), [buffer for buffer in net.buffers() if buffer.ndim]
    return [torch.cat([tensor.detach().flatten() for tensor in part]) for part in parts]
