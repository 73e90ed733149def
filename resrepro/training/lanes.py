"""Runs side by side on one GPU, lanes of one program: they make updates together and meet events alone."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch
from torch import Tensor
from triton import cdiv

from resrepro.data.feeds import ROWS, MemoryFeed, MemorySlots
from resrepro.errors import ResreproError
from resrepro.nets.gpu import STEM, Lanes
from resrepro.nets.gpu.forward import draw_images
from resrepro.training.loop import Trainer
from resrepro.training.progress import Interrupts
from resrepro.training.updates import Updates, Work, recorded, set_learning_rate

PIXELS = 256  # of a program that draws images


class LaneUpdates(Updates):
    """The updates of runs that stand at the same one and share recipe and images, made together."""

    def __init__(self, runs: Sequence[Trainer]) -> None:
        first = runs[0]
        super().__init__(first.step, first.feed, first.optimizer)
        self.runs, self.recipe = runs, first.recipe

    @contextmanager
    def of(self, start: int, last: int) -> Iterator[None]:
        """While active, updates start..last-1 can be made; what the runs hold lies in lanes from here on."""
        feeds = [run.feed for run in self.runs if isinstance(run.feed, MemoryFeed)]
        self.slots = [MemorySlots(feed.training_batches) for feed in feeds]
        self.images = self.slots[0].batches
        for slots in self.slots:  # one copy of the training set is enough
            slots.batches.pixels, slots.batches.labels = self.images.pixels, self.images.labels
        nets, optimizers = [run.net for run in self.runs], [run.optimizer for run in self.runs]
        size, side = self.recipe.batch_size, self.images.pixels.shape[-1]
        self.lanes = Lanes(nets, optimizers, size, side, self.recipe.precision)
        for lane, run in enumerate(self.runs):
            run.since_sample.sums = self.lanes.since_sample[lane].copy_(run.since_sample.sums)
            run.since_look.sums = self.lanes.since_look[lane].copy_(run.since_look.sums)
        # The tables of all lanes' choices (see `MemorySlots`), side by side, to be read by one kernel.
        tables = [part.new_zeros(len(self.runs), ROWS, *part.shape) for part in self.images.choices(0)]
        self.row = self.slots[0].row
        for lane, slots in enumerate(self.slots):
            slots.row, slots.tables = self.row, [table[lane] for table in tables]
        order, *rest = tables
        corners = rest.pop(0) if self.images.recipe.pad else order  # what is not drawn is not read
        coins = rest.pop(0) if self.images.recipe.flip else order
        normalisation = self.images.normalisation
        mean = normalisation.mean.expand(3, side, side).contiguous()
        divisor = normalisation.divisor.flatten().expand(3).contiguous()
        self.read = [mean, divisor, self.row, order, corners, coins]
        self.replay: Work | None = None
        yield

    def stretch(self, start: int, stop: int, rate: float | Sequence[float]) -> Iterator[Work]:
        """Updates start..stop-1, each run's at a rate, 0 of one that has ended; each to be called in turn."""
        rates = [rate] * len(self.runs) if isinstance(rate, float) else rate
        for run, own in zip(self.runs, rates, strict=True):
            if own:
                set_learning_rate(run.optimizer, own, self.recipe.momentum_form)
        self.lanes.rates.copy_(torch.tensor(rates))
        for _ in zip(*(slots.fill(start, stop) for slots in self.slots), strict=True):
            self.replay = self.replay or recorded(self.update, [*self.lanes.changed, self.row])
            yield self.replay

    def update(self) -> None:
        """Draw the images of a row of the tables, make the update, go to the next row."""
        self.draw_images()
        self.lanes.update()
        self.slots[0].advance()

    def draw_images(self) -> tuple[Tensor, Tensor]:
        """The lanes' images, (L, N x side x side, STEM), and labels, (L, N), as the tables have them."""
        lanes, images, recipe = self.lanes, self.images, self.images.recipe
        M = lanes.images * lanes.side**2
        draw_images[cdiv(M, PIXELS), lanes.count](
            images.pixels, images.labels, *self.read, lanes.x, lanes.truth, lanes.images, M, ROWS,
            lanes.side, lanes.side, STEM, recipe.pad, recipe.pad_value, recipe.pad_order == "mean_first",
            recipe.flip, PIXELS,
        )  # fmt: skip
        return lanes.x, lanes.truth


def run_side_by_side(runs: Sequence[Trainer], interrupts: Interrupts) -> dict[Trainer, ResreproError]:
    """Train runs that stand at the same update to their ends; gives those that did not come there, and why.
    A run that diverges stops alone: its lane computes on, at a rate of zero, and nobody looks. After a signal
    every run has written its checkpoint.
    """
    updates, done = LaneUpdates(runs), runs[0].done
    with updates.of(done, updates.recipe.iterations), ExitStack() as stack:
        events = {run: stack.enter_context(closing(run.events(interrupts))) for run in runs}
        failed = dict[Trainer, ResreproError]()
        while ahead := _met(events, failed):
            for run in (run for run in ahead if run.sampled == done):
                run.mark = time.perf_counter()  # the others were measured after it
            rates = {run: run.rate_of(done) if run in ahead else 0.0 for run in runs}
            for update in updates.stretch(done, min(ahead.values()), list(rates.values())):
                update()
                done += 1
                for run in ahead:
                    run.count(rates[run])
                if any(run.has_to_pause(interrupts) for run in ahead):
                    break
            if any(run.interval.due(done) for run in ahead):  # all at once, for then all can go on together
                for run in ahead:
                    run.interval.last = -math.inf
    return failed


def _met(events: Mapping[Trainer, Iterator[int]], failed: dict[Trainer, ResreproError]) -> dict[Trainer, int]:
    """Let every run meet its event; gives when the next one is of those that go on."""
    ahead = dict[Trainer, int]()
    for run, own in events.items():
        if run in failed:
            continue
        try:
            if event := next(own, None):
                ahead[run] = event
        except ResreproError as error:
            failed[run] = error
    return ahead
