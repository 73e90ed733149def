"""Training one experiment: from its name to a finished record, or on from where it was interrupted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resrepro.data.feeds import Feed, open_feed
from resrepro.data.loader import Loading
from resrepro.errors import Interrupted, UsageError
from resrepro.processes import is_first, world_size
from resrepro.records.environment import describe_environment
from resrepro.records.locking import Breaks, Lock, locked
from resrepro.records.recording import Onlooker, RunWriter, has_checkpoint, open_run, run_folder
from resrepro.spec import catalogue
from resrepro.spec.specs import FAMILIES, Spec, Value
from resrepro.training.cadence import Cadence, Every, parse_every
from resrepro.training.device import (
    choose_device,
    describe_device,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.distributed import join, on_first, process_group, told_as_lost
from resrepro.training.earlier import already_over, check_same_images
from resrepro.training.engines import Plan, choose_engine, describe_engine
from resrepro.training.freezing import check_no_twin, differences, frozen_device, frozen_threads
from resrepro.training.interrupts import Interrupts, StoppedEarly
from resrepro.training.modes import fast_settings, mode_of
from resrepro.training.resuming import check_same_data, find_state, go_back
from resrepro.training.spread import Spread, bn_group_for, spread_batch
from resrepro.training.trainer import Target, Trainer
from resrepro.training.watching import Watcher


def train(
    experiment: str,
    seed: int = 0,
    *,
    shortcut: str | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    threads_if_new: int | None = None,
    fast: bool = False,
    compiling: str = "auto",
    micro_batch: int | None = None,
    sync_bn: bool = False,
    loading: Loading | None = None,
    fresh: bool = False,
    checkpoint_every: str | None = None,
    break_lock: Breaks = False,
    watcher: Watcher | None = None,
    arguments: Sequence[str] | None = None,
    **settings: Value | None,
) -> Path:
    """Train one experiment with one seed, or go on with it where it was interrupted.

    Args:
        experiment: a name such as "cifar10-plain56" or "digits-resnet20".
        seed: decides initial weights, order and augmentation.
        shortcut: "A", "B" or "C" for residual nets; the paper's A by default.
        data: folder of CIFAR-10 (see `resrepro.data.load_dataset`), or of photographs in `train/<class>/`
            and `val/<class>/`.
        runs: folder in which the run's own folder is made.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        threads: CPU threads; one per core by default. A run that goes on keeps device and threads.
        threads_if_new: CPU threads of a run that does not go on, where `threads` are not given.
        fast: bf16 arithmetic where the hardware has it (fp16 on older GPUs) instead of float32.
        compiling: "auto", "on" or "off": see `training.engines.choose_engine`. A run that goes on keeps its
            engine.
        micro_batch: images per forward and backward pass; fewer than the batch (or than a process's share
            of it) accumulate gradients.
        sync_bn: BN statistics over all processes of a `torchrun` together, instead of each its own.
        loading: how image files are read.
        fresh: set an existing run aside and start anew.
        checkpoint_every: "500" iterations, "10m" minutes, or "500,10m" for whichever is first; by default
            as often as costs less than 1 % of the time.
        break_lock: go on with a run that a process on another machine has not given back; or a function
            that knows whether the holder of a lock has ended.
        watcher: hears of every event; silent by default.
        arguments: the command line, for the record.
        **settings: settings of the recipe to change, such as `iterations=2000` or `split="45k5k"`.

    Returns:
        The run's folder. A finished run is left as it is.

    Raises:
        UsageError: for a wrong name, setting or device.
        DataError: if the data are missing or damaged.
        RecordError: if the record cannot be written, or another process is training the run.
        Diverged: if the loss became infinite or NaN; the record is kept.
        Interrupted: if a signal stopped the run; its checkpoint is written.
        PeerLost: if another process of the run ended.
    """
    chosen, every = choose_device(device), parse_every(checkpoint_every)
    watcher = (watcher if is_first() else None) or Watcher()
    join(chosen)
    if fast:
        settings |= fast_settings(chosen, settings.get("precision"), watcher.say)
    with told_as_lost():
        spec, spread = on_first(lambda: plan(experiment, shortcut, micro_batch, sync_bn, settings))
        if seed < 0:
            raise UsageError(f"a seed is a whole number from 0, not {seed}.")
        asked = Asked(spec, seed, spread, Path(runs), data, loading or Loading(), fresh, watcher)
        if not fresh and on_first(lambda: already_over(asked.folder, watcher)):
            if FAMILIES[spec.dataset] == "imagenet":  # of which there are as many as there are users
                about = open_feed(spec, data, chosen, seed, asked.loading, watcher.say, process_group()).about
                on_first(lambda: check_same_images(asked.folder, about.checksums))
            return asked.folder
        if not fresh and settings.get("bn_group") is None:
            on_first(lambda: check_no_twin(asked.folder, spec, seed))
        _train(asked, Means(device, chosen, threads, threads_if_new, compiling, every, break_lock, arguments))
    return asked.folder


@dataclass(frozen=True)
class Asked:
    """A run that was asked for, as far as it does not depend on the machine."""

    spec: Spec
    seed: int
    spread: Spread
    runs: Path
    data: str | Path | None
    loading: Loading
    fresh: bool
    watcher: Watcher

    @property
    def folder(self) -> Path:
        """Where its record lies."""
        return run_folder(self.runs, self.spec, self.seed)


@dataclass(frozen=True)
class Means:
    """What was asked of this machine; the device as it was named and as `chosen`."""

    device: str
    chosen: torch.device
    threads: int | None
    threads_if_new: int | None
    compiling: str
    every: Every
    break_lock: Breaks
    arguments: Sequence[str] | None


def _train(asked: Asked, means: Means) -> None:
    """Begin the run or go on with it, to its end, while nobody else does."""
    with (
        _telling_early_stop(asked) as interrupts,
        _alone(asked.folder, means.break_lock, asked.watcher) as lock,
        _telling_memory_of(asked.spread),
    ):
        found = None if asked.fresh else on_first(lambda: find_state(asked.folder, asked.spec, asked.seed))
        env = None if found is None else found[0]["env"]
        device = frozen_device(means.device, means.chosen, env)
        with threads_used(frozen_threads(means.threads, device, env, means.threads_if_new)):
            done, begun = (0, None) if found is None else (found[0]["iteration"], found[0]["env"]["engine"])
            ahead = Plan(asked.spec, device, asked.spec.recipe.iterations - done)
            engine = on_first(lambda: choose_engine(means.compiling, ahead, begun, asked.watcher.say))
            trainer = _prepare(asked, Target(device, asked.spread, engine))
            trainer.cadence = Cadence(means.every)
            if lock is not None:
                trainer.writer.still_ours = lock.check
            if asked.fresh:
                trainer.way_on = "The same command without --fresh goes on from here."
            _open_record(trainer, found, means.arguments)
            try:
                trainer.run(interrupts)
            finally:
                asked.watcher.end()


@contextmanager
def _telling_early_stop(asked: Asked) -> Iterator[Interrupts]:
    """While active signals end the set-up at once; within the training they wait for its step.

    Raises:
        Interrupted: after a signal that came before the training.
    """
    try:
        with Interrupts() as interrupts:
            yield interrupts
    except StoppedEarly as stop:
        way = " without --fresh" if asked.fresh and has_checkpoint(asked.folder) else ""
        raise Interrupted(
            f"Stopped before the first update of {asked.folder}: the same command{way} starts again.",
            stop.signal_number,
        ) from None


def _prepare(asked: Asked, target: Target) -> Trainer:
    """The run with its data and its folder, ready to begin or to go on."""
    spec, watcher, device = asked.spec, asked.watcher, target.device
    use_precision(spec.recipe.precision, device)
    feed = open_feed(spec, asked.data, device, asked.seed, asked.loading, watcher.say, process_group())
    writer = _open_writer(asked, feed)
    _say_first(writer, spec, asked.spread, feed.about.notices, watcher)
    return Trainer(spec, asked.seed, feed, target, writer, watcher)


@contextmanager
def _alone(folder: Path, break_lock: Breaks, watcher: Watcher) -> Iterator[Lock | None]:
    """While active, no other process trains this run; the first process of a run holds its lock.

    Raises:
        RecordError: if another one does already.
    """
    held: list[Lock] = []
    with ExitStack() as stack:

        def take() -> None:
            for missing in [each for each in folder.parents if not each.exists()][::-1]:
                stack.callback(_remove_if_empty, missing)  # of a run that was refused nothing remains
            held.append(stack.enter_context(locked(folder, break_lock=break_lock, say=watcher.say)))

        on_first(take)
        yield held[0] if held else None


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _telling_memory_of(spread: Spread) -> AbstractContextManager[None]:
    smaller = max(1, spread.micro // 2)
    return telling_memory(
        f"{spread.micro} images per pass: try --micro-batch {smaller} "
        "(gradients are accumulated; BN groups must fit into it)"
    )


def _open_writer(asked: Asked, feed: Feed) -> RunWriter:
    """The record of a run on these data, which the first process alone writes.

    Raises:
        UsageError: if the data do not fill a batch, or the folder holds a run of another specification.
        RecordError: if the folder cannot be written.
    """
    if asked.spec.recipe.batch_size > feed.about.sizes["train"]:
        raise UsageError(
            f"a batch of {asked.spec.recipe.batch_size} is larger than the training set of "
            f"{feed.about.sizes['train']:,} images: choose a smaller --batch-size."
        )
    writer = on_first(lambda: open_run(asked.runs, asked.spec, asked.seed, fresh=asked.fresh))
    return writer if is_first() else Onlooker(writer.folder)


def _open_record(
    trainer: Trainer, found: tuple[dict[str, Any], str] | None, arguments: Sequence[str] | None
) -> None:
    """Begin the record of a run, or take up its newest checkpoint and note that another session goes on."""
    writer, spec, seed = trainer.writer, trainer.spec, trainer.seed
    now = describe_environment(arguments) | describe_device(trainer.device, trainer.target.spread.micro)
    now |= describe_engine(trainer.target.engine)
    if found is not None:
        _go_on(trainer, *found, now)
        return
    command = catalogue.command_for(spec, seed)
    told = now | {"mode": mode_of(spec.recipe), "data": trainer.feed.about.describe(), "command": command}
    on_first(lambda: writer.begin(spec, seed, told))
    on_first(lambda: writer.result(trainer.result("partial")))
    trainer.save()  # so that there is always one to go on from; it also shows what the next will cost


def _go_on(trainer: Trainer, state: Mapping[str, Any], notice: str, now: Mapping[str, Any]) -> None:
    writer, watcher = trainer.writer, trainer.watcher
    on_first(lambda: check_same_data(writer.folder, state["data"], trainer.feed.about.checksums))
    go_back(trainer, state)
    trainer.saved = trainer.done, trainer.sampled
    told = [notice] if notice else []
    restored = on_first(
        lambda: writer.go_on(
            trainer.spec, trainer.seed, state["env"], state["curve"].encode(), trainer.result("partial")
        )
    )
    if restored:
        told.append(f"Damaged or missing, and restored from the checkpoint: {', '.join(restored)}.")
    if other := differences(state["env"], now):
        told.append(f"Note: not the machine of the first start, so rounding may differ: {'; '.join(other)}.")
    on_first(lambda: writer.add_session(trainer.done, now))
    for sentence in told:
        watcher.say(sentence)
    watcher.say(f"Going on from iteration {trainer.done:,} of {trainer.recipe.iterations:,}.")


def plan(
    experiment: str,
    shortcut: str | None,
    micro_batch: int | None,
    sync_bn: bool,
    settings: Mapping[str, Value | None],
) -> tuple[Spec, Spread]:
    """The run that these options ask for on these processes, and how its batch is spread over them.

    Raises:
        UsageError: if an option is wrong, or the batch cannot be spread so.
    """
    found = catalogue.find(experiment)
    spec = catalogue.derive(found, shortcut, **settings)
    spread = spread_batch(spec.recipe.batch_size, world_size(), micro_batch)
    given = settings.get("bn_group") is not None
    group = bn_group_for(spec.recipe, spread, given=given, sync_bn=sync_bn)
    return catalogue.derive(found, shortcut, **dict(settings) | {"bn_group": group}), spread


def _say_first(
    writer: RunWriter, spec: Spec, spread: Spread, notices: Sequence[str], watcher: Watcher
) -> None:
    if writer.aside:
        watcher.say(f"The earlier run is kept in {writer.aside}.")
    for notice in notices:
        watcher.say(f"Note: {notice}.")
    if world_size() > 1 or spread.micro < spread.local:
        group = spec.recipe.bn_group
        passes = spread.local // spread.micro
        watcher.say(
            f"Each batch of {spec.recipe.batch_size}: {world_size()} process{'es' * (world_size() > 1)}, "
            f"{passes} pass{'es' * (passes > 1)} of {spread.micro} images; BN over "
            f"{f'groups of {group}' if group else 'the whole batch'}."
        )
