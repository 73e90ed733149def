"""Measuring how strong each layer's response is (what BN gives, before ReLU or the addition of the shortcut),
and how strong the gradient that comes back (Figure 7): in float32, whatever the net was trained in.
"""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.data.augment import memory_format
from resrepro.data.feeds import Feed, open_feed
from resrepro.data.loader import Loading
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.sources import LoadedNet, read_net
from resrepro.nets import Net
from resrepro.nets.layers import GroupedBatchNorm2d, pairs_of
from resrepro.records import Run, read_run
from resrepro.records.reading import RESPONSES, Responses, read_responses
from resrepro.records.storage import write_whole
from resrepro.training.engine import choose_device, telling_memory, threads_used, use_precision
from resrepro.training.loop import initial_net
from resrepro.training.measure import bn_stats_of, in_passes, with_precise_statistics
from resrepro.training.parallel import join


def measure_responses(
    folder: str | Path, *, data: str | Path | None = None, device: str = "auto", threads: int | None = None,
    loading: Loading | None = None, say: Callable[[str], None] = lambda text: None,
) -> Responses:  # fmt: skip
    """Measure responses (to the images of the run's headline set) and gradients of every 3x3 layer of a
    finished run, and write `responses.csv`. Arguments are as for `train`.

    Raises:
        UsageError: if the run is not finished.
        RecordError: if the record or its checkpoint is missing or broken, or the images are others.
        DataError: if the images are missing or damaged.
    """
    folder, chosen = Path(folder), choose_device(device)
    join(chosen)
    run = read_run(folder)
    if not run.finished:
        raise UsageError(
            f"{folder} is {run.status}, at iteration {run.result['iteration']:,} of "
            f"{run.result['iterations']:,}: responses are those of a trained net, so finish the run first."
        )
    loaded = read_net(folder)
    end = (run.digest, run.seed, loaded.recipe.iterations)
    if (loaded.spec.digest, loaded.seed, loaded.iteration) != end:
        raise RecordError(
            f"the checkpoint in {folder} is not that of the end of this run: "
            f"`resrepro status --check {folder}` tells what is whole."
        )
    use_precision("float32", chosen)
    feed = open_feed(loaded.spec, data, chosen, run.seed, loading or Loading(), say)
    loaded.check_images(feed.about.checksums, run.headline_split)
    images = feed.about.sizes[run.headline_split]
    say(f"{loaded.name}: {loaded.label}, {run.headline_split} set, {images:,} images.")
    with threads_used(threads), telling_memory("a training batch of this net: try --device cpu"):
        responses = _measure(loaded, run, feed, chosen)
    write_whole(folder / RESPONSES, responses.to_bytes())
    say(f"Recorded in {folder / RESPONSES}.")
    return read_responses(run) or responses


def _measure(loaded: LoadedNet, run: Run, feed: Feed, device: torch.device) -> Responses:
    start = initial_net(loaded.spec, run.seed, loaded.num_classes)
    nets = [net.to(device).to(memory_format=memory_format(device)) for net in (start, loaded.net)]
    images, labels = next(iter(feed.batches(0, 1)))
    norms = [tuple(gradient_norms(net, images, labels, loaded.recipe.bn_group).values()) for net in nets]
    trained, part = nets[1], run.headline_split
    if bn_stats_of(feed.recipe) == "precise":
        trained = with_precise_statistics(trained, feed.first_batches(), feed.recipe)
    shown = (crops.flatten(0, 1) for group in feed.views(part) for crops in group.scales)
    tested = (feed.normalisation.test(pixels.to(device)) for crops in shown for pixels in in_passes(crops))
    std = response_std(trained, tested)
    return Responses(
        tuple(std), tuple(std.values()), norms[0], norms[1], part, feed.about.sizes[part], len(images),
        bn_stats_of(feed.recipe), run.digest, run.seed, loaded.recipe.iterations,
    )  # fmt: skip


def layers_of(net: Net) -> dict[str, GroupedBatchNorm2d]:
    """The BN layer behind each 3x3 convolution, by its name; projections and ImageNet's first layer aside."""
    names = {module: name for name, module in net.named_modules()}
    return {names[conv]: norm for conv, norm in pairs_of(net) if conv.kernel_size == (3, 3)}


def response_std(net: Net, images: Iterable[Tensor]) -> dict[str, float]:
    """Standard deviation of each 3x3 layer's response over all images, channels and positions together, by
    the name of its convolution. The net is put into evaluation mode; images (n, 3, H, W) are as it sees them.
    """
    layers = layers_of(net.eval())
    parts: dict[str, list[tuple[float, ...]]] = {name: [] for name in layers}

    def note(name: str, _: nn.Module, __: object, response: Tensor) -> None:
        wide = response.cpu().double() if response.device.type == "mps" else response.double()  # MPS has none
        variance, mean = torch.var_mean(wide, correction=0)
        parts[name].append((wide.numel(), float(variance), float(mean)))

    with torch.inference_mode(), ExitStack() as hooks:
        for name, norm in layers.items():
            hooks.enter_context(norm.register_forward_hook(partial(note, name)))
        for batch in images:
            net.trunk(batch)
    found = {}
    for name, each in parts.items():  # gaps between means, so that no large squares cancel
        counts, variances, means = np.array(each).T
        gaps = means - np.average(means, weights=counts)
        found[name] = float(np.sqrt(np.average(variances + gaps**2, weights=counts)))
    return found


def gradient_norms(net: Net, images: Tensor, labels: Tensor, bn_group: int = 0) -> dict[str, float]:
    """L2 norm of the gradient of the mean loss with respect to each 3x3 layer's response, training mode: all
    images, channels and positions together. (The gradient of a weight would also depend on the weight's own
    length, which BN makes arbitrary.) A copy of the net is measured, on a training batch (N, 3, H, W), in
    passes of `bn_group` images that share BN statistics; 0 for the whole batch.
    """
    net = copy.deepcopy(net).train()
    layers = layers_of(net)
    squares = dict.fromkeys(layers, 0.0)

    def listen(name: str, _: nn.Module, __: object, response: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares[name] += float(torch.linalg.vector_norm(gradient)) ** 2

        response.register_hook(add)  # type: ignore[no-untyped-call]

    group = bn_group or len(images)
    with ExitStack() as hooks:
        for name, norm in layers.items():
            hooks.enter_context(norm.register_forward_hook(partial(listen, name)))
        for part, truth in zip(torch.split(images, group), torch.split(labels, group), strict=True):
            loss = F.cross_entropy(net(part), truth, reduction="sum") / len(images)
            loss.backward()  # type: ignore[no-untyped-call]
    return {name: math.sqrt(square) for name, square in squares.items()}
