"""Measuring nets: loss and top-k errors, of the averaged scores of test views (Sections 3.4 and 4.2)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from resrepro.data.augment import Normalisation
from resrepro.data.feeds import EVAL_BATCH, EVAL_BATCH_GPU, Feed, MemoryFeed
from resrepro.data.loader import Views
from resrepro.nets import Net
from resrepro.nets.layers import averaging, folded
from resrepro.spec.recipe import ImageNetRecipe, Recipe
from resrepro.training.engine import arithmetic
from resrepro.training.parallel import average_statistics, total
from resrepro.training.updates import Work, recorded

PIXELS_PER_PASS = 3_300_000  # bounds memory: 65 crops of 224, or 3 photographs of 640 x 853 with flips


@dataclass(frozen=True)
class Errors:
    """Mean loss, and errors in percent, over `count` images."""

    loss: float
    top1_err: float
    top5_err: float
    count: int


class ErrorSums:
    """Running sums of loss and wrong answers; `add` never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, device=device)  # loss, errors, images; MPS has no float64

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, classes) and labels (N,)."""
        n = len(labels)
        # An image is right at k if its label is among the k highest logits (all, if there are fewer).
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        wrong1, wrong5 = n - right[:, 0].sum().float(), n - right.sum().float()
        self.sums += torch.stack((loss.float() * n, wrong1, wrong5, torch.full_like(wrong1, n)))

    def read(self) -> Errors:
        """The means so far; waits for the device. All zero images give NaN."""
        loss, wrong1, wrong5, count = self.sums.tolist()
        n = count or float("nan")
        return Errors(loss / n, 100 * wrong1 / n, 100 * wrong5 / n, round(count))

    def read_all(self) -> Errors:
        """The means over the images of all processes of the run."""
        whole = ErrorSums(self.sums.device)
        whole.sums = total(self.sums.clone() if self.count else whole.sums)  # the mean loss of none is NaN
        return whole.read()

    @property
    def count(self) -> int:
        """Images so far; waits for the device."""
        return round(self.sums[3].item())

    def reset(self) -> None:
        """Start again from zero."""
        self.sums.zero_()


@dataclass(frozen=True)
class Member:
    """A net with the normalisation that it expects; several of them are an ensemble."""

    net: Net
    normalisation: Normalisation
    precision: str = "float32"
    window: int = 7  # side of its feature map at the training size, for dense views


def window_of(recipe: Recipe) -> int:
    """The side of the last feature map at the training size."""
    return -(-recipe.image_size // 32) if isinstance(recipe, ImageNetRecipe) else 8


def bn_stats_of(recipe: Recipe) -> str:
    """The BN statistics that a net is measured with: "running", or "precise" averages."""
    return str(getattr(recipe, "bn_stats", "running"))


def measure_errors(
    members: Sequence[Member], views: Iterable[Views], dense: bool, device: torch.device
) -> Errors:
    """Loss and errors over all images of all processes, by copies of the nets in evaluation mode; the
    members' scores (softmax) are averaged, and the loss is that of the average.
    """
    sums = ErrorSums(device)
    _add_errors(sums, members, views, dense, device)
    return sums.read_all()


def _add_errors(
    sums: ErrorSums, members: Sequence[Member], views: Iterable[Views], dense: bool, device: torch.device
) -> None:
    with torch.inference_mode():
        members = [replace(member, net=folded(member.net)) for member in members]
        for group in views:
            labels = group.labels.to(device)
            scales = [scale.to(device, non_blocking=True) for scale in group.scales]
            scores = log_scores(members, scales, dense)
            sums.add(F.nll_loss(scores, labels), scores, labels)


def measure_held_out(
    feed: Feed, net: Net, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> dict[str, Errors]:
    """Errors on every held-out set, with the BN statistics that the recipe names. Once `stop()` holds the
    rest is left out, and what comes out is to be thrown away.
    """
    recipe, dense = feed.recipe, feed.protocol.crops == "dense"
    if bn_stats_of(recipe) == "precise":
        net = with_precise_statistics(net, takewhile(lambda _: not stop(), feed.first_batches()), recipe)
    member = Member(net, feed.normalisation, recipe.precision, window_of(recipe))
    views = {name: takewhile(lambda _: not stop(), feed.views(name)) for name in feed.about.held_out}
    return {name: measure_errors([member], own, dense, device) for name, own in views.items()}


class RecordedErrors:
    """What `measure_held_out` gives of images in memory, by a recording of all its passes (see `recorded`):
    made when they are first asked for; the net's parameters must stay where they are from then on.
    """

    def __init__(self, feed: MemoryFeed, net: Net, device: torch.device) -> None:
        self.feed, self.device = feed, device
        self.member = Member(net, feed.normalisation, feed.recipe.precision, window_of(feed.recipe))
        self.recordings: dict[str, tuple[ErrorSums, Work]] = {}

    def measure(self) -> dict[str, Errors]:
        """The errors on every held-out set."""
        self.recordings = self.recordings or {name: self._record(name) for name in self.feed.about.held_out}
        for sums, replay in self.recordings.values():
            sums.reset()
            replay()
        return {name: sums.read() for name, (sums, _) in self.recordings.items()}

    def _record(self, name: str) -> tuple[ErrorSums, Work]:
        sums = ErrorSums(self.device)
        return sums, recorded(
            lambda: _add_errors(sums, [self.member], self.feed.views(name), False, self.device), [sums.sums]
        )


def log_scores(members: Sequence[Member], scales: Sequence[Tensor], dense: bool) -> Tensor:
    """The log of the averaged softmax of each image, (n, classes)."""
    if not dense and len(members) == len(scales) == scales[0].shape[1] == 1:
        return logits_of(members[0], scales[0][:, 0]).log_softmax(1)
    scores = [[_scores(member, views, dense) for views in scales] for member in members]
    average = torch.stack([torch.stack(each).mean(0) for each in scores]).mean(0)
    return average.clamp_min(torch.finfo(average.dtype).tiny).log()


def _scores(member: Member, views: Tensor, dense: bool) -> Tensor:
    """Softmax averaged over crops (n, V, 3, S, S), or over the places of images (n, 1, 3, h, w) and of their
    flips: (n, classes).
    """
    if not dense:
        return logits_of(member, views.flatten(0, 1)).softmax(1).reshape(*views.shape[:2], -1).mean(1)
    scores = []
    for part in in_passes(views[:, 0], each=2):
        images = member.normalisation.dense(torch.cat([part, part.flip(3)]))
        with arithmetic(member.precision, part.device):
            logits = member.net.dense(images, member.window).float()
        places = logits.softmax(1).mean((2, 3))
        scores.append(places.reshape(2, len(part), -1).mean(0))
    return torch.cat(scores)


def logits_of(member: Member, pixels: Tensor) -> Tensor:
    """Logits of crops (N, 3, S, S) uint8, float32 (N, classes), in passes of bounded size."""
    with arithmetic(member.precision, pixels.device):
        return torch.cat([member.net(member.normalisation.test(part)).float() for part in in_passes(pixels)])


def in_passes(pixels: Tensor, each: int = 1) -> tuple[Tensor, ...]:
    """Images (N, C, h, w) in parts of a bounded number of pixels, each image counting `each` times."""
    area = pixels.shape[2] * pixels.shape[3] * each
    larger, most = (4, EVAL_BATCH_GPU) if pixels.is_cuda else (1, EVAL_BATCH)
    return torch.split(pixels, max(1, min(most, larger * PIXELS_PER_PASS // area)))


def with_precise_statistics(net: Net, batches: Iterable[tuple[Tensor, Tensor]], recipe: Recipe) -> Net:
    """A copy whose BN uses plain averages over `Feed.first_batches`, as the authors' README describes. A pass
    holds one BN group, so that the result does not depend on how many images a process has.
    """
    precise = averaging(net)
    with torch.no_grad():
        for images, _ in batches:
            for group in torch.split(images, recipe.bn_group or len(images)):
                with arithmetic(recipe.precision, images.device):
                    precise(group)
        average_statistics(precise)
    return precise
