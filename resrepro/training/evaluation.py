"""Measuring nets on test views: top-1 and top-5 error of the averaged scores (Sections 3.4 and 4.2)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resrepro.data.augment import Normalisation
from resrepro.data.feeds import EVAL_BATCH, Feed
from resrepro.data.photos import Views
from resrepro.nets import Net
from resrepro.nets.folding import folded
from resrepro.nets.normalisation import plain_averages, running_statistics
from resrepro.spec.specs import ImageNetRecipe, Recipe
from resrepro.training.device import arithmetic
from resrepro.training.metrics import Errors, ErrorSums
from resrepro.training.parallel import average_statistics, gathered

# Bounds memory: 65 crops of 224, or 3 photographs of 640 x 853 with their flips.
PIXELS_PER_PASS = 3_300_000


@dataclass(frozen=True)
class Member:
    """A net with the normalisation that it expects; several of them are an ensemble.

    `window` is the side of its feature map at the training size, for dense views.
    """

    net: Net
    normalisation: Normalisation
    precision: str = "float32"
    window: int = 7

    @classmethod
    def of(cls, net: Net, normalisation: Normalisation, recipe: Recipe) -> "Member":
        """The net as its recipe has it measured."""
        return cls(net, normalisation, recipe.precision, window_of(recipe))


def window_of(recipe: Recipe) -> int:
    """The side of the last feature map at the training size; ImageNet nets reduce images 32 times."""
    return -(-recipe.image_size // 32) if isinstance(recipe, ImageNetRecipe) else 8


def never() -> bool:
    """Let an evaluation go on to its end."""
    return False


def measure(
    members: Sequence[Member],
    views: Iterable[Views],
    dense: bool,
    device: torch.device,
    stop: Callable[[], bool] = never,
) -> Errors:
    """Loss and errors over all images of all processes, in evaluation mode.

    The members' scores (softmax) are averaged; the loss is that of the average. Once `stop()` holds the
    rest is left out, and what comes out is to be thrown away.
    """
    sums = ErrorSums(device)
    modes = [member.net.training for member in members]
    for member in members:
        member.net.eval()
    with ExitStack() as stack, torch.inference_mode():
        for member in members:
            stack.enter_context(folded(member.net))
        for group in views:
            if stop():
                break
            labels = group.labels.to(device)
            scales = [scale.to(device, non_blocking=True) for scale in group.scales]
            scores = log_scores(members, scales, dense)
            sums.add(F.nll_loss(scores, labels), scores, labels)
    for member, mode in zip(members, modes, strict=True):
        member.net.train(mode)
    return gathered(sums).read()


def measure_held_out(
    feed: Feed, net: Net, device: torch.device, stop: Callable[[], bool] = never
) -> dict[str, Errors]:
    """Errors on every held-out set, with the BN statistics that the recipe names; `stop` as in `measure`."""
    precise = getattr(feed.recipe, "bn_stats", "running") == "precise"
    member, dense = Member.of(net, feed.normalisation, feed.recipe), feed.protocol.crops == "dense"
    with precise_statistics(net, feed.first_batches(), feed.recipe, stop) if precise else nullcontext():
        return {
            name: measure([member], feed.views(name), dense, device, stop) for name in feed.about.held_out
        }


def log_scores(members: Sequence[Member], scales: Sequence[Tensor], dense: bool) -> Tensor:
    """The log of the averaged softmax of each image, (n, classes)."""
    if len(members) == 1 and not dense and len(scales) == 1 and scales[0].shape[1] == 1:
        return logits_of(members[0], scales[0][:, 0]).log_softmax(1)
    score = dense_scores if dense else crop_scores
    average = torch.stack([score(member, scales) for member in members]).mean(0)
    return average.clamp_min(torch.finfo(average.dtype).tiny).log()


def crop_scores(member: Member, scales: Sequence[Tensor]) -> Tensor:
    """Softmax averaged over all crops (n, V, 3, S, S) of all scales, (n, classes)."""
    averages = [
        logits_of(member, crops.flatten(0, 1)).softmax(1).reshape(*crops.shape[:2], -1).mean(1)
        for crops in scales
    ]
    return torch.stack(averages).mean(0)


def logits_of(member: Member, pixels: Tensor) -> Tensor:
    """Logits of crops (N, 3, S, S) uint8, float32 (N, classes), in passes of bounded size."""
    with arithmetic(member.precision, pixels.device):
        return torch.cat([member.net(member.normalisation.test(part)).float() for part in in_passes(pixels)])


def dense_scores(member: Member, scales: Sequence[Tensor]) -> Tensor:
    """The net applied everywhere: softmax at each place, averaged over places, flips and scales."""
    averages = [
        torch.cat([_everywhere(member, part) for part in in_passes(images[:, 0], each=2)])
        for images in scales
    ]
    return torch.stack(averages).mean(0)


def _everywhere(member: Member, pixels: Tensor) -> Tensor:
    """Softmax averaged over the places of images (N, 3, h, w) uint8 and of their flips, (N, classes)."""
    images = member.normalisation.dense(torch.cat([pixels, pixels.flip(3)]))
    with arithmetic(member.precision, pixels.device):
        logits = member.net.dense(images, member.window).float()
    places = logits.softmax(1).mean((2, 3))
    return places.reshape(2, len(pixels), -1).mean(0)


def in_passes(pixels: Tensor, each: int = 1) -> tuple[Tensor, ...]:
    """Images (N, C, h, w) in parts of a bounded number of pixels, each image counting `each` times."""
    area = pixels.shape[2] * pixels.shape[3] * each
    return torch.split(pixels, max(1, min(EVAL_BATCH, PIXELS_PER_PASS // area)))


@contextmanager
def precise_statistics(
    net: Net,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    stop: Callable[[], bool] = never,
) -> Iterator[None]:
    """While active, BN uses plain averages over training batches, as the authors' README describes.

    Each pass holds one BN group, so neither the memory nor the result depends on how many images a
    process has.

    Args:
        net: the net, whose running averages come back afterwards.
        batches: training images and labels, those of `Feed.first_batches`.
        recipe: the arithmetic and the size of the BN groups.
        stop: once it holds the rest of the batches is left out.
    """
    buffers = running_statistics(net)
    before = [buffer.clone() for buffer in buffers]
    try:
        with torch.no_grad(), plain_averages(net):
            for images, _ in batches:
                if stop():
                    break
                for group in torch.split(images, recipe.bn_group or len(images)):
                    with arithmetic(recipe.precision, images.device):
                        net(group)
        average_statistics(net)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(buffers, before)
