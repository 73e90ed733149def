"""The training loop: updates up to the next event, then the event (Sections 3.4 and 4.2)."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from resrepro.data.augment import INITIAL_WEIGHTS, memory_format, stream_seed
from resrepro.data.feeds import Feed, MemoryFeed
from resrepro.errors import Diverged, Interrupted
from resrepro.nets import Net, net_of
from resrepro.nets.cpu import KernelNet, load_kernels
from resrepro.records.reading import CHECKPOINT
from resrepro.records.storage import RunWriter
from resrepro.spec import Spec, catalogue
from resrepro.spec.recipe import ImageNetRecipe
from resrepro.training import parallel, updates, world_size
from resrepro.training.checkpoint import CheckpointWriter, state_of
from resrepro.training.engine import EAGER, GRAPH, KERNELS, LANES, arithmetic
from resrepro.training.measure import Errors, ErrorSums, RecordedErrors, measure_held_out
from resrepro.training.progress import CheckpointInterval, Interrupts, Sample, Watcher

LOOK_FOR_DIVERGENCE = 100  # updates; each look waits for the device
DIGITS = {"loss": 6, "top1_err": 4, "top5_err": 4}  # after the point, in a record
AGREE_EVERY = 10  # updates after which several processes hear of each other's signals


def initial_net(spec: Spec, seed: int, num_classes: int, bn_batch: int = 0) -> Net:
    """The net that a seed begins with, on every device: drawn on the CPU. `bn_batch` as in `build_net`."""
    weights = torch.Generator().manual_seed(stream_seed(seed, INITIAL_WEIGHTS))
    return net_of(spec, num_classes, weights, bn_batch)


class Target(NamedTuple):
    """Where and how a run computes: a device, this process's share of each batch, an engine."""

    device: torch.device
    split: parallel.BatchSplit
    engine: str = EAGER


class Trainer:
    """The state of one run: net, optimizer, batches, and how far it has come."""

    def __init__(
        self, spec: Spec, seed: int, feed: Feed, target: Target, writer: RunWriter, watcher: Watcher
    ) -> None:
        self.spec, self.recipe, self.seed, self.feed = spec, spec.recipe, seed, feed
        self.target, self.device, self.writer, self.watcher = target, target.device, writer, watcher
        net = initial_net(spec, seed, feed.about.num_classes, target.split.local)
        self.net = net.to(self.device).to(memory_format=memory_format(self.device))
        model = KernelNet(self.net, load_kernels()) if target.engine == KERNELS else self.net
        self.model = parallel.in_parallel(model, self.device)  # with the parameters of the net
        self.optimizer = updates.make_optimizer(self.net, self.recipe)
        # Small gradients vanish in fp16; elsewhere scaling is switched off and does nothing.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        self.skipped = torch.zeros((), dtype=torch.int64, device=self.device)  # updates that overflowed
        self.headline = feed.about.held_out[0]
        self.sample_every = self.recipe.sampled_every(feed.about.sizes["train"])
        self.since_sample, self.since_look = ErrorSums(self.device), ErrorSums(self.device)
        self.sums = [self.since_sample, self.since_look] if self.recipe.warmup_lr else [self.since_sample]
        self.updates: updates.Updates = updates.Updates(self.step, feed, self.optimizer)
        if target.engine == GRAPH:
            changed = [*net.parameters(), *net.buffers(), *(part.sums for part in self.sums)]
            self.updates = updates.RecordedUpdates(self.step, feed, self.optimizer, changed)
        self.errors: RecordedErrors | None = None
        if target.engine in (GRAPH, LANES) and isinstance(feed, MemoryFeed):
            self.errors = RecordedErrors(feed, net, self.device)
        self.done = self.sampled = 0  # updates made, and the one that the errors were last measured after
        self.saved: tuple[int, int] | None = None  # both when a checkpoint was last written
        self.interval = CheckpointInterval()
        self.checkpoints = CheckpointWriter(writer.folder / CHECKPOINT, self.device)
        self.way_on = "The same command goes on from here."  # for whoever stops the run
        self.warmup_switch: int | None = None
        self.plateau: updates.Plateau | None = None
        if isinstance(self.recipe, ImageNetRecipe) and self.recipe.lr_policy == "plateau":
            self.plateau = updates.Plateau(self.recipe)
        self.last: dict[str, Errors] = {}
        self.best: dict[str, Any] | None = None
        self.seconds_before = 0.0  # spent by earlier sessions of this run
        self.session_start = self.mark = time.perf_counter()
        self.images_before_mark = 0

    def run(self, interrupts: Interrupts) -> None:
        """Make the missing updates in stretches, each up to the next event, then close the record."""
        alone = world_size() == 1
        with self.updates.of(self.done, self.recipe.iterations), closing(self.events(interrupts)) as events:
            for event in events:
                rate = self.rate_of(self.done)
                for update in self.updates.stretch(self.done, event, rate):
                    update()
                    self.count(rate)
                    if alone and self.has_to_pause(interrupts):
                        break

    def events(self, interrupts: Interrupts) -> Generator[int]:
        """After which update each next event comes, which happens when the one after it is asked for; in the
        end the record is closed.
        """
        last = self.recipe.iterations
        self.watcher.begin(self.spec.name, self.seed, self.done, last, self.recipe.batch_size)
        self.session_start = self.mark = time.perf_counter()
        self.images_before_mark = self.since_sample.count
        self.net.train()
        try:
            self.meet_event(interrupts)  # what a signal may have kept the session before from
            while self.done < last:
                yield self.next_event()
                self.meet_event(interrupts)
            self.finish()
            (signal_number,) = parallel.agreed(interrupts.received)
            if signal_number:  # the run is whole, but nothing may follow it
                raise Interrupted(f"{self.writer.folder} is finished; stopped there.", signal_number)
        finally:
            self.watcher.end()

    def count(self, rate: float) -> None:
        """Count an update that was made at a rate."""
        self.done += 1
        self.watcher.step(self.done, rate, self.since_sample.read)

    def has_to_pause(self, interrupts: Interrupts) -> bool:
        """Whether an event is due that no number of updates tells: a signal, or a checkpoint by the clock."""
        return bool(interrupts.received) or self.interval.due(self.done)

    def next_event(self) -> int:
        """The update after which there is a sample, a look, a checkpoint, an agreement, a drop or the end."""
        steps = [self.sample_every, LOOK_FOR_DIVERGENCE]
        steps += [self.recipe.warmup_window] if self.warming_up else []
        steps += [self.interval.iterations] if self.interval.iterations else []
        steps += [AGREE_EVERY] if world_size() > 1 else []
        drops = [drop for drop in self.recipe.lr_drops if drop > self.done]
        return min(self.recipe.iterations, *drops, *(self.done - self.done % step + step for step in steps))

    def meet_event(self, interrupts: Interrupts) -> None:
        """Do what is due between two stretches: look, sample, stop because of a signal, checkpoint."""
        self.look_at_warmup_if_due()
        self.sample_if_due(interrupts)
        signal_number, due = parallel.agreed(interrupts.received, self.interval.due(self.done))
        if self.done == self.recipe.iterations:
            return
        if signal_number:
            self.stop(signal_number)
        if due and self.saved != (self.done, self.sampled):
            self.save()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update (Section 3.4) on this process's share of a batch, in one pass or several: images
        (n, 3, H, W) float32, normalised, and labels (n,) int64.
        """
        micro = self.target.split.micro
        passes = list(zip(torch.split(images, micro), torch.split(labels, micro), strict=True))
        for number, (part, truth) in enumerate(passes, 1):
            with parallel.exchanging(self.model, number == len(passes)):
                with arithmetic(self.recipe.precision, self.device):
                    logits = self.model(part)
                    loss = F.cross_entropy(logits.float(), truth)
                updates.differentiate(self.scaler.scale(loss / len(passes)), self.net, first=number == 1)
            for sums in self.sums:
                sums.add(loss.detach(), logits.detach(), truth)
        updates.descend(self.optimizer, self.scaler, self.skipped)
        parallel.average_statistics(self.net)

    def finish(self) -> None:
        """Close the record."""
        if self.saved != (self.done, self.sampled):
            self.save()
        parallel.on_first(self.checkpoints.finish)
        exact_length = catalogue.find(self.spec.experiment).spec().recipe.iterations
        status = "shortened" if self.recipe.iterations < exact_length else "complete"
        parallel.on_first(lambda: self.writer.result(self.result(status)))

    def rate_of(self, update: int) -> float:
        """The learning rate that update number `update` (from 0) is made at."""
        drops = None if self.plateau is None else self.plateau.drops
        return updates.learning_rate(self.recipe, update, self.warmup_switch, drops)

    @property
    def warming_up(self) -> bool:
        """Whether the rate is still that of the warm-up (Section 4.2)."""
        return bool(self.recipe.warmup_lr) and self.warmup_switch is None

    def look_at_warmup_if_due(self) -> None:
        """End the warm-up once the training error has fallen below its bound (Section 4.2: 80 %)."""
        if not self.warming_up or self.done % self.recipe.warmup_window:
            return
        errors = self.since_look.read_all()
        self.since_look.reset()
        if errors.top1_err < self.recipe.warmup_until_err:
            self.warmup_switch = self.done
            self.watcher.say(
                f"Warm-up over after {self.done} iterations: training error {errors.top1_err:.1f} % "
                f"is below {self.recipe.warmup_until_err:g} %; learning rate {self.recipe.lr:g} from here."
            )

    def sample_if_due(self, interrupts: Interrupts) -> None:
        """Measure and record the errors where the recipe wants them, elsewhere look for divergence (Diverged;
        Interrupted if a signal cuts the measurement short: it is made anew by the next session).
        """
        wanted = self.done % self.sample_every == 0 or self.done == self.recipe.iterations
        if not wanted and self.done % LOOK_FOR_DIVERGENCE == 0:
            self.stop_if_diverged(self.since_sample.read_all())
        if not wanted or self.sampled == self.done:
            return
        train = self.since_sample.read_all()  # waits for the device: the time is of finished work
        images = (self.since_sample.count - self.images_before_mark) * world_size()
        speed = images / max(time.perf_counter() - self.mark, 1e-9) if images else math.nan
        if self.errors is None:
            held_out = measure_held_out(self.feed, self.net, self.device, lambda: bool(interrupts.received))
        else:
            held_out = self.errors.measure()
        (signal_number,) = parallel.agreed(interrupts.received)
        if signal_number:
            self.stop(signal_number)
        self.sample(speed, {"train": train} | held_out)
        self.mark, self.images_before_mark = time.perf_counter(), 0

    def sample(self, speed: float, errors: dict[str, Errors]) -> None:
        """Record the training error since the last sample and the errors on the held-out sets."""
        lr = self.rate_of(self.done - 1)
        self.since_sample.reset()
        self.last, self.sampled = errors, self.done
        epoch = self.done * self.recipe.batch_size / self.feed.about.sizes["train"]
        rows = (
            (
                self.done, f"{epoch:.4f}", name, f"{each.loss:.6f}", f"{each.top1_err:.4f}",
                f"{each.top5_err:.4f}", f"{lr:.6g}", f"{speed:.1f}", f"{self.seconds():.2f}",
            )
            for name, each in errors.items()
        )  # fmt: skip
        parallel.on_first(lambda: self.writer.append(rows))
        self.stop_if_diverged(*self.last.values())
        headline = self.last[self.headline]
        if self.best is None or headline.top1_err < self.best["top1_err"]:
            self.best = {"iteration": self.done, "top1_err": round(headline.top1_err, 4)}
        if self.plateau is not None and self.plateau.see(self.done, headline.top1_err):
            self.watcher.say(f"The error has come to a plateau by iteration {self.done:,}: the rate drops.")
        parallel.on_first(lambda: self.writer.result(self.result("partial")))
        self.watcher.sample(Sample(self.done, lr, self.last, speed))

    def stop_if_diverged(self, *measured: Errors) -> None:
        """Close the record and raise Diverged if a loss is not finite."""
        if all(math.isfinite(errors.loss) for errors in measured):
            return
        parallel.on_first(lambda: self.writer.result(self.result("diverged")))
        raise Diverged(
            f"the loss is no longer finite by iteration {self.done}: the run is stopped and "
            f"its record kept in {self.writer.folder}. A lower rate (--set lr=..) may help."
        )

    def seconds(self) -> float:
        """Wall time of all sessions of this run, evaluation included."""
        return self.seconds_before + time.perf_counter() - self.session_start

    def result(self, status: str) -> dict[str, Any]:
        """The content of result.json."""
        seconds, waited = self.seconds(), self.feed.waited
        departures = catalogue.departures(self.spec)
        if self.warming_up and self.done == self.recipe.iterations:
            departures.append(f"the warm-up never ended: learning rate {self.recipe.warmup_lr:g} throughout")
        figures = {
            name: {key: round(getattr(errors, key), places) for key, places in DIGITS.items()}
            for name, errors in self.last.items()
            if math.isfinite(errors.loss)
        }
        return {
            "status": status, "iteration": self.done, "iterations": self.recipe.iterations,
            "headline": self.headline, "last": figures, "best": self.best,
            "warmup_switch": self.warmup_switch,
            **({} if self.plateau is None else {"lr_drops": self.plateau.drops}),
            **({"skipped_updates": self.skipped.item()} if self.recipe.precision == "fp16" else {}),
            "seconds": round(seconds, 1),
            **({} if waited is None else {"waited_for_images": round(waited / max(seconds, 1e-9), 3)}),
            "departures": departures, "notices": list(self.feed.about.notices),
        }  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint, or begin to, and how far the run has come; all processes wait for it."""
        start = time.perf_counter()
        parts = self.since_sample, self.since_look
        shares = parallel.collected([(part.sums[:3].cpu(), part.count) for part in parts])
        parallel.on_first(lambda: self.checkpoints.write(state_of(self, shares)))
        parallel.on_first(lambda: self.writer.result(self.result("partial")))
        self.saved = self.done, self.sampled
        self.interval.written(time.perf_counter() - start)

    def stop(self, signal_number: int) -> None:
        """Checkpoint, and leave by raising Interrupted because of a signal."""
        self.save()
        parallel.on_first(self.checkpoints.finish)
        where = f"iteration {self.done:,} of {self.recipe.iterations:,}"
        raise Interrupted(f"Stopped at {where}, checkpoint written. {self.way_on}", signal_number)
