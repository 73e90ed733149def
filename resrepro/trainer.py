"""One run while it is being trained: the loop, the curves it records, its checkpoints (Section 4.2)."""

import math
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from resrepro import catalogue
from resrepro.checkpoint import load_checkpoint, save_checkpoint
from resrepro.data import Dataset
from resrepro.data.batches import INITIAL_WEIGHTS, Preparation, TrainingBatches, stream_seed
from resrepro.device import arithmetic, memory_format
from resrepro.errors import Diverged, Interrupted, RecordError
from resrepro.evaluation import measure, on_device
from resrepro.interrupts import Interrupts
from resrepro.metrics import Errors, ErrorSums
from resrepro.nets import net_of
from resrepro.optimizer import make_optimizer, set_learning_rate
from resrepro.recording import RunWriter
from resrepro.schedule import learning_rate, warmup_is_due
from resrepro.specs import Spec
from resrepro.watching import Sample, Watcher

LOOK_FOR_DIVERGENCE = 100  # iterations; each look waits for the device


class Trainer:
    """The state of one run: net, optimizer, batches, and how far it has come."""

    def __init__(
        self,
        spec: Spec,
        seed: int,
        dataset: Dataset,
        device: torch.device,
        writer: RunWriter,
        watcher: Watcher,
    ) -> None:
        self.spec, self.recipe, self.seed = spec, spec.recipe, seed
        self.dataset, self.device, self.writer, self.watcher = dataset, device, writer, watcher
        # The initial weights are drawn on the CPU, so that a seed means the same on every device.
        weights = torch.Generator().manual_seed(stream_seed(seed, INITIAL_WEIGHTS))
        net = net_of(
            self.recipe, spec.dataset, spec.depth, spec.plain, spec.shortcut, dataset.num_classes, weights
        )
        self.net: nn.Module = net.to(device).to(memory_format=memory_format(device))
        self.optimizer = make_optimizer(self.net, self.recipe)
        self.preparation = Preparation.from_training_images(self.recipe, dataset.train, device)
        self.batches = TrainingBatches(self.recipe, dataset.train, self.preparation, seed)
        self.held_out = {name: on_device(images, device) for name, images in dataset.held_out.items()}
        self.headline = next(iter(self.held_out))
        self.since_sample, self.since_look = ErrorSums(device), ErrorSums(device)
        self.done = 0
        self.warmup_switch: int | None = None
        self.last: dict[str, Errors] = {}
        self.best: dict[str, Any] | None = None
        self.seconds_before = 0.0  # spent by earlier sessions of this run
        self.session_start = self.mark = time.perf_counter()
        self.images_before_mark = 0

    def run(self) -> None:
        """Make the missing updates, sampling and checkpointing on the way, then close the record."""
        self.watcher.begin(
            self.spec.name, self.seed, self.done, self.recipe.iterations, self.recipe.batch_size
        )
        self.session_start = self.mark = time.perf_counter()
        self.images_before_mark = self.since_sample.count
        self.net.train()
        with Interrupts() as interrupts:
            while self.done < self.recipe.iterations:
                lr = self.step()
                if warmup_is_due(self.recipe, self.done, self.warmup_switch):
                    self.look_at_warmup()
                if self.done % self.recipe.eval_every == 0 or self.done == self.recipe.iterations:
                    self.sample(lr)
                    self.save()
                    self.mark, self.images_before_mark = time.perf_counter(), 0
                elif self.done % LOOK_FOR_DIVERGENCE == 0:
                    self.stop_if_diverged(self.since_sample.read())
                if interrupts.received and self.done < self.recipe.iterations:
                    self.stop(interrupts.received)
        exact_length = catalogue.find(self.spec.experiment).spec().recipe.iterations
        status = "shortened" if self.recipe.iterations < exact_length else "complete"
        self.writer.result(self.result(status))
        if interrupts.received:  # during the last step: the run is whole, but nothing may follow it
            raise Interrupted(f"{self.writer.folder} is finished; stopped there.", interrupts.received)

    def step(self) -> float:
        """One update (Section 3.4); returns the learning rate it was made at."""
        images, labels = self.batches[self.done]
        lr = learning_rate(self.recipe, self.done, self.warmup_switch)
        set_learning_rate(self.optimizer, lr, self.recipe.momentum_form)
        with arithmetic(self.recipe.precision, self.device):
            logits = self.net(images)
            loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.done += 1
        self.since_sample.add(loss.detach(), logits.detach(), labels)
        if self.recipe.warmup_lr and self.warmup_switch is None:
            self.since_look.add(loss.detach(), logits.detach(), labels)
        self.watcher.step(self.done, lr, self.since_sample.read)
        return lr

    def look_at_warmup(self) -> None:
        """End the warm-up once the training error has fallen below its bound (Section 4.2: 80 %)."""
        errors = self.since_look.read()
        self.since_look.reset()
        if errors.top1_err < self.recipe.warmup_until_err:
            self.warmup_switch = self.done
            self.watcher.say(
                f"Warm-up over after {self.done} iterations: training error {errors.top1_err:.1f} % "
                f"is below {self.recipe.warmup_until_err:g} %; learning rate {self.recipe.lr:g} from here."
            )

    def sample(self, lr: float) -> None:
        """Record the training error since the last sample and the errors on the held-out sets.

        Raises:
            Diverged: if a loss is not finite.
        """
        train = self.since_sample.read()  # waits for the device, so the time below is of finished work
        images = self.since_sample.count - self.images_before_mark
        speed = images / max(time.perf_counter() - self.mark, 1e-9)
        self.since_sample.reset()
        self.last = {"train": train} | {
            name: measure(self.net, pixels, labels, self.preparation, self.recipe.precision)
            for name, (pixels, labels) in self.held_out.items()
        }
        self.append_rows(lr, speed)
        self.stop_if_diverged(*self.last.values())
        headline = self.last[self.headline]
        if self.best is None or headline.top1_err < self.best["top1_err"]:
            self.best = {"iteration": self.done, "top1_err": round(headline.top1_err, 4)}
        self.watcher.sample(Sample(self.done, lr, self.last, speed))

    def stop_if_diverged(self, *measured: Errors) -> None:
        """Close the record if a loss is not finite.

        Raises:
            Diverged: then.
        """
        if all(math.isfinite(errors.loss) for errors in measured):
            return
        self.writer.result(self.result("diverged"))
        raise Diverged(
            f"the loss is no longer finite by iteration {self.done}: the run is stopped and "
            f"its record kept in {self.writer.folder}. A lower rate (--set lr=..) may help."
        )

    def append_rows(self, lr: float, speed: float) -> None:
        """Add one row per set to metrics.csv."""
        epoch = self.done * self.recipe.batch_size / len(self.dataset.train)
        self.writer.append(
            (
                self.done, f"{epoch:.4f}", name, f"{errors.loss:.6f}", f"{errors.top1_err:.4f}",
                f"{errors.top5_err:.4f}", f"{lr:.6g}", f"{speed:.1f}", f"{self.seconds():.2f}",
            )
            for name, errors in self.last.items()
        )  # fmt: skip

    def seconds(self) -> float:
        """Wall time of all sessions of this run, evaluation included."""
        return self.seconds_before + time.perf_counter() - self.session_start

    def result(self, status: str) -> dict[str, Any]:
        """The content of result.json."""
        figures = {
            name: {
                "loss": round(e.loss, 6),
                "top1_err": round(e.top1_err, 4),
                "top5_err": round(e.top5_err, 4),
            }
            for name, e in self.last.items()
            if math.isfinite(e.loss)
        }
        return {
            "status": status,
            "iteration": self.done,
            "iterations": self.recipe.iterations,
            "headline": self.headline,
            "last": figures,
            "best": self.best,
            "warmup_switch": self.warmup_switch,
            "seconds": round(self.seconds(), 1),
            "departures": self.departures(),
            "notices": list(self.dataset.notices),
        }

    def departures(self) -> list[str]:
        """How the run departs from the paper, by its settings and by its course."""
        told = catalogue.departures(self.spec)
        if self.recipe.warmup_lr and self.warmup_switch is None and self.done == self.recipe.iterations:
            told.append(f"the warm-up never ended: learning rate {self.recipe.warmup_lr:g} throughout")
        return told

    def save(self) -> None:
        """Write the checkpoint and, with it, how far the run has come."""
        sums = (self.since_sample, self.since_look)
        save_checkpoint(
            self.writer.checkpoint,
            {
                "digest": self.spec.digest,
                "spec": self.spec.to_json(),
                "num_classes": self.dataset.num_classes,
                "seed": self.seed,
                "data": dict(self.dataset.checksums),
                "mean": self.preparation.mean.cpu(),
                "iteration": self.done,
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "warmup_switch": self.warmup_switch,
                "sums": [(part.sums.cpu(), part.count) for part in sums],
                "best": self.best,
                "last": {name: list(vars(errors).values()) for name, errors in self.last.items()},
                "seconds": self.seconds(),
            },
        )
        self.writer.result(self.result("partial"))

    def resume(self) -> bool:
        """Go back to the checkpoint, if there is one; False if the run starts from nothing.

        Raises:
            RecordError: if the checkpoint is damaged, or the data are not those it was trained on.
        """
        if not self.writer.checkpoint.exists():
            return False
        state = load_checkpoint(self.writer.checkpoint)
        try:
            if state["digest"] != self.spec.digest or state["seed"] != self.seed:
                raise RecordError(f"{self.writer.checkpoint} is of another run: start anew with --fresh.")
            if state["data"] != dict(self.dataset.checksums):
                raise RecordError(
                    f"{self.writer.folder} was trained on other data (checksum differs): "
                    "name the same data folder, or start anew with --fresh."
                )
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            for sums, (values, count) in zip(
                (self.since_sample, self.since_look), state["sums"], strict=True
            ):
                sums.sums.copy_(values)
                sums.count = count
            self.done, self.warmup_switch = state["iteration"], state["warmup_switch"]
            self.best = state["best"]
            self.last = {name: Errors(*values) for name, values in state["last"].items()}
            self.seconds_before = state["seconds"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecordError(
                f"{self.writer.checkpoint} does not fit its run ({type(error).__name__}): "
                "start anew with --fresh."
            ) from None
        self.writer.cut_back(self.done)
        self.watcher.say(f"Going on from iteration {self.done:,} of {self.recipe.iterations:,}.")
        return True

    def stop(self, signal_number: int) -> None:
        """Checkpoint and leave because of a signal.

        Raises:
            Interrupted: always.
        """
        self.save()
        raise Interrupted(
            f"Stopped at iteration {self.done:,} of {self.recipe.iterations:,}, checkpoint written. "
            "The same command goes on from here.",
            signal_number,
        )
