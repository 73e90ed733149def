"""Training one experiment: from its name to a finished record, or on from where it was interrupted."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from resrepro.data.feeds import Feed, open_feed
from resrepro.data.loader import Loading
from resrepro.errors import Diverged, Interrupted, RecordError, UsageError
from resrepro.records import read_run
from resrepro.records.locking import locked
from resrepro.records.reading import ENV, MALFORMED, RESULT, SPEC, read_json
from resrepro.records.write import (
    Onlooker,
    RunWriter,
    describe_environment,
    has_checkpoint,
    open_run,
    run_folder,
)
from resrepro.spec import Spec, command_for, digest_of
from resrepro.spec.recipe import FAMILIES, Value
from resrepro.training.checkpoint import differences, frozen_device, frozen_threads, load_state, restore
from resrepro.training.engine import (
    choose_device,
    choose_engine,
    describe_device,
    describe_engine,
    fast_settings,
    mode_of,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import join, on_first, plan, process_group, told_as_lost
from resrepro.training.processes import is_first
from resrepro.training.progress import CheckpointInterval, Interrupts, StoppedEarly, Watcher


def train(
    experiment: str,
    seed: int = 0,
    *,
    shortcut: str | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    fast: bool = False,
    compiling: str = "auto",
    micro_batch: int | None = None,
    loading: Loading | None = None,
    fresh: bool = False,
    checkpoint_every: str | None = None,
    break_lock: bool = False,
    watcher: Watcher | None = None,
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
        fast: bf16 arithmetic where the hardware has it (fp16 on older GPUs) instead of float32.
        compiling: "auto", "on" or "off": see `training.engine.choose_engine`. A run that goes on keeps its
            engine.
        micro_batch: images per forward and backward pass; fewer than the batch (or than a process's share
            of it) accumulate gradients.
        loading: how image files are read.
        fresh: set an existing run aside and start anew.
        checkpoint_every: "500" iterations, "10m" minutes, or "500,10m" for whichever is first; by default
            as often as costs less than 1 % of the time.
        break_lock: go on with a run that a process on another machine has not given back.
        watcher: hears of every event; silent by default.
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
    requested, interval = choose_device(device), CheckpointInterval.parse(checkpoint_every)
    loading, watcher = loading or Loading(), (watcher if is_first() else None) or Watcher()
    join(requested)
    if fast:
        settings |= fast_settings(requested, settings.get("precision"), watcher.say)
    with told_as_lost():
        spec, split = on_first(lambda: plan(experiment, shortcut, micro_batch, settings))
        if seed < 0:
            raise UsageError(f"a seed is a whole number from 0, not {seed}.")
        folder = run_folder(Path(runs), spec, seed)
        if not fresh and on_first(lambda: already_over(folder, watcher)):
            if FAMILIES[spec.dataset] == "imagenet":  # of which there are as many as there are users
                about = open_feed(spec, data, requested, seed, loading, watcher.say, process_group()).about
                trained_on = on_first(lambda: read_json(folder / ENV)["data"]["sha256"])
                on_first(lambda: check_same_images(folder, trained_on, about.checksums))
            return folder
        if not fresh and settings.get("bn_group") is None:
            on_first(lambda: check_no_twin(folder, spec, seed))
        with (
            _telling_early_stop(folder, fresh) as interrupts,
            _alone(folder, break_lock, watcher),
            telling_memory(
                f"{split.micro} images per pass: try --micro-batch {max(1, split.micro // 2)} "
                "(gradients are accumulated; BN groups must fit into it)"
            ),
        ):
            state, notice = (None, "") if fresh else on_first(lambda: load_state(folder, spec, seed))
            env = state["env"] if state else None
            used = frozen_device(device, requested, env)
            with threads_used(frozen_threads(threads, used, env)):
                done = state["iteration"] if state else 0
                ahead, begun = spec.recipe.iterations - done, env["engine"] if env else None
                engine = on_first(lambda: choose_engine(compiling, used, ahead, begun, watcher.say))
                use_precision(spec.recipe.precision, used)
                feed = open_feed(spec, data, used, seed, loading, watcher.say, process_group())
                writer = _open_writer(folder, spec, seed, feed, fresh)
                if writer.aside:
                    watcher.say(f"The earlier run is kept in {writer.aside}.")
                for sentence in feed.about.notices:
                    watcher.say(f"Note: {sentence}.")
                if sentence := split.describe(spec.recipe):
                    watcher.say(sentence)
                trainer = Trainer(spec, seed, feed, Target(used, split, engine), writer, watcher)
                trainer.interval = interval
                if fresh:
                    trainer.way_on = "The same command without --fresh goes on from here."
                now = describe_environment() | describe_device(used, split.micro)
                now |= describe_engine(engine)
                if state:
                    _go_on(trainer, state, notice, now)
                else:
                    _begin(trainer, now)
                try:
                    trainer.run(interrupts)
                finally:
                    watcher.end()
    return folder


# --- what there is of the run already ------------------------------------------------------------------


def already_over(folder: Path, watcher: Watcher) -> bool:
    """Whether the run in this folder is finished and its record whole; says so.

    A broken record is no end: it is restored by going on from the checkpoint, where there is one.

    Raises:
        Diverged: if it ended with a loss that is not finite.
        RecordError: if the record is broken and there is no checkpoint.
    """
    if not (folder / RESULT).exists():
        return False
    try:
        run = read_run(folder)
    except RecordError:
        if has_checkpoint(folder):
            return False
        raise
    if run.status == "diverged":
        raise Diverged(f"{folder} diverged earlier and is kept: start it anew with --fresh.")
    if run.finished:
        watcher.say(f"{folder} is finished already ({run.status}); --fresh would train it anew.")
    return run.finished


def check_same_images(folder: Path, trained_on: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to go on with a run, or to offer a finished one as the result, on other images than its own.

    Raises:
        RecordError: if a checksum differs.
    """
    if dict(trained_on) != dict(here):
        raise RecordError(
            f"{folder} was trained on other data (checksum differs): name the same data folder, keep the two "
            "apart with --runs, or start anew with --fresh."
        )


def check_no_twin(folder: Path, spec: Spec, seed: int) -> None:
    """Refuse to begin a run that was begun already with other BN groups, from which it would go on.

    The number of processes and of passes decides on the groups where nobody asked for any.

    Raises:
        UsageError: if there is such a run; it is named.
    """
    if folder.exists():
        return
    runs, base = folder.parent.parent, folder.parent.name.partition("+")[0]
    for other in [runs / base / folder.name, *sorted(runs.glob(f"{base}+*/{folder.name}"))]:
        group = _group_of_twin(other, spec) if has_checkpoint(other) else None
        if group is not None:
            whose = f"groups of {group}" if group else "the whole batch"
            raise UsageError(
                f"{other} is this run, begun with BN over {whose}: go on with it by --bn-group {group}, "
                f"or say --bn-group {spec.recipe.bn_group} for a run of its own."
            )


def _group_of_twin(folder: Path, spec: Spec) -> int | None:
    """The BN group of a run that differs in nothing else and is not finished; None if it is another."""
    try:
        content, result = read_json(folder / SPEC)["spec"], read_json(folder / RESULT)
        group = content["recipe"]["bn_group"]
        wanted = replace(spec, recipe=replace(spec.recipe, bn_group=group))
        same = digest_of(content) == wanted.digest and group != spec.recipe.bn_group
        return int(group) if same and result["status"] == "partial" else None
    except (RecordError, *MALFORMED):
        return None


# --- alone, stoppable, in words ------------------------------------------------------------------------


@contextmanager
def _telling_early_stop(folder: Path, fresh: bool) -> Iterator[Interrupts]:
    """While active signals end the set-up at once; within the training they wait for its step."""
    try:
        with Interrupts() as interrupts:
            yield interrupts
    except StoppedEarly as stop:
        way = " without --fresh" if fresh and has_checkpoint(folder) else ""
        raise Interrupted(
            f"Stopped before the first update of {folder}: the same command{way} starts again.",
            stop.signal_number,
        ) from None


@contextmanager
def _alone(folder: Path, break_lock: bool, watcher: Watcher) -> Iterator[None]:
    """While active, no other process trains this run; the first process of a run holds its lock."""
    with ExitStack() as stack:

        def take() -> None:
            for missing in [parent for parent in folder.parents if not parent.exists()][::-1]:
                stack.callback(_remove_if_empty, missing)  # of a run that was refused nothing remains
            stack.enter_context(locked(folder, break_lock=break_lock, say=watcher.say))

        on_first(take)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _open_writer(folder: Path, spec: Spec, seed: int, feed: Feed, fresh: bool) -> RunWriter:
    """The record of a run on these data, which the first process alone writes."""
    if spec.recipe.batch_size > feed.about.sizes["train"]:
        raise UsageError(
            f"a batch of {spec.recipe.batch_size} is larger than the training set of "
            f"{feed.about.sizes['train']:,} images: choose a smaller --batch-size."
        )
    writer = on_first(lambda: open_run(folder.parents[1], spec, seed, fresh=fresh))
    return writer if is_first() else Onlooker(writer.folder)


def _begin(trainer: Trainer, now: Mapping[str, Any]) -> None:
    """Begin the record of a run, and write its first checkpoint."""
    writer, spec, seed = trainer.writer, trainer.spec, trainer.seed
    about = {"mode": mode_of(spec.recipe), "data": trainer.feed.about.describe()}
    env = {**now, **about, "command": command_for(spec, seed)}
    on_first(lambda: writer.begin(spec, seed, env))
    on_first(lambda: writer.result(trainer.result("partial")))
    trainer.save()  # so that there is always one to go on from; it also shows what the next will cost


def _go_on(trainer: Trainer, state: Mapping[str, Any], notice: str, now: Mapping[str, Any]) -> None:
    """Take up a checkpoint, and note in the record that another session goes on."""
    writer, watcher = trainer.writer, trainer.watcher
    on_first(lambda: check_same_images(writer.folder, state["data"], trainer.feed.about.checksums))
    restore(trainer, state)
    trainer.saved = trainer.done, trainer.sampled
    sentences = [notice] if notice else []
    restored = on_first(
        lambda: writer.go_on(
            trainer.spec, trainer.seed, state["env"], state["curve"].encode(), trainer.result("partial")
        )
    )
    if restored:
        sentences.append(f"Damaged or missing, and restored from the checkpoint: {', '.join(restored)}.")
    if other := differences(state["env"], now):
        sentences.append(
            f"Note: not the machine of the first start, so rounding may differ: {'; '.join(other)}."
        )
    on_first(lambda: writer.add_session(trainer.done, now))
    for sentence in sentences:
        watcher.say(sentence)
    watcher.say(f"Going on from iteration {trainer.done:,} of {trainer.recipe.iterations:,}.")
