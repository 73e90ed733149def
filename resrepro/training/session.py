"""Training one experiment: from its name to a finished record, or on from where it was interrupted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resrepro.data.feeds import Feed, open_feed
from resrepro.data.loader import Loading
from resrepro.data.photos import told
from resrepro.errors import Diverged, RecordError, ResreproError, UsageError
from resrepro.machine import describe_environment
from resrepro.nets.cpu import load_kernels
from resrepro.records import read_run
from resrepro.records.reading import ENV, FORMAT, RESULT, read_json
from resrepro.records.storage import Onlooker, has_checkpoint, locked, open_run, run_folder
from resrepro.spec import command_for
from resrepro.spec.recipe import FAMILIES, Value
from resrepro.training import engine as engines
from resrepro.training import is_first, lane_group, world_size
from resrepro.training.checkpoint import differences, load_newest, restore
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import join, on_first, plan, process_group, told_as_lost
from resrepro.training.progress import CheckpointInterval, Interrupts, Watcher


def train(
    experiment: str, seed: int = 0, *, shortcut: str | None = None, data: str | Path | None = None,
    runs: str | Path = "runs", device: str = "auto", threads: int | None = None, fast: bool = False,
    engine: str = "auto", micro_batch: int | None = None, loading: Loading | None = None,
    fresh: bool = False, checkpoint_every: str | None = None, break_lock: bool = False,
    watcher: Watcher | None = None, **settings: Value | None,
) -> Path:  # fmt: skip
    """Train one experiment, such as "cifar10-plain56", with one seed, or go on where it was interrupted.

    Args:
        experiment, seed, shortcut: the net; the seed decides initial weights, order and augmentation.
        data: folder of CIFAR-10, or of photographs in `train/<class>/` and `val/<class>/`.
        runs: folder in which the run's own folder is made.
        device, threads: "auto", "cpu", "cuda", "cuda:1" or "mps"; CPU threads, by default one per core.
        fast: bf16 arithmetic where the hardware has it (fp16 on older GPUs) instead of float32.
        engine: "auto", "eager", "kernels", "graph" or "lanes": see `training.engine.choose_engine`.
        micro_batch: images per pass; fewer than a process's share of a batch accumulate gradients.
        loading: how image files are read.
        fresh: set an existing run aside and start anew.
        checkpoint_every: "500" iterations, "10m" minutes, or "500,10m"; by default as cheap as 1 %.
        break_lock: go on with a run that a process on another machine has not given back.
        watcher: hears of every event.
        **settings: settings of the recipe to change, such as `iterations=2000` or `split="45k5k"`.

    Returns:
        The run's folder. A finished run is left as it is.

    Raises:
        UsageError, DataError, RecordError: for what is asked, the data, the record and its lock.
        Diverged, Interrupted, PeerLost: the run was stopped; its record is kept.
    """
    join(engines.choose_device(device))
    with told_as_lost(), Interrupts() as interrupts, engines.threads_used(threads):
        session = Session(
            experiment, seed, shortcut=shortcut, data=data, runs=runs, device=device, fast=fast,
            engine=engine, micro_batch=micro_batch, loading=loading, fresh=fresh,
            checkpoint_every=checkpoint_every, break_lock=break_lock, watcher=watcher, **settings,
        )  # fmt: skip
        if not session.is_over():
            with session.opened() as trainer:
                trainer.run(interrupts)
    return session.folder


def train_side_by_side(sessions: "Sequence[Session]") -> "Iterator[tuple[Session, ResreproError | None]]":
    """Train runs of one group (see `training.lane_group`); tells of each that it has ended, or why it failed.
    Those of the engine `lanes` that stand at the same update are made together, others one after the other.
    """
    opened = dict[Trainer, Session]()
    join(sessions[0].device)
    with Interrupts() as interrupts, ExitStack() as stack:
        for session in sessions:
            try:
                if session.is_over():
                    yield session, None
                else:
                    opened[stack.enter_context(session.opened())] = session
            except ResreproError as error:
                yield session, error
        groups: dict[object, list[Trainer]] = {}
        for run in opened:
            together = run.target.engine == engines.LANES
            groups.setdefault((lane_group(run.spec), run.done) if together else run, []).append(run)
        for group in groups.values():
            failed = dict[Trainer, ResreproError]()
            if group[0].target.engine == engines.LANES:
                from resrepro.training.lanes import run_side_by_side  # imports Triton

                failed = run_side_by_side(group, interrupts)
            else:
                try:
                    group[0].run(interrupts)
                except ResreproError as error:
                    failed[group[0]] = error
            yield from ((opened[run], failed.get(run)) for run in group)


class Session:
    """A run as one call of `train` wants it; UsageError if what it says does not fit together."""

    def __init__(
        self, experiment: str, seed: int, *, shortcut: str | None, data: str | Path | None, runs: str | Path,
        device: str, fast: bool, engine: str, micro_batch: int | None, loading: Loading | None, fresh: bool,
        checkpoint_every: str | None, break_lock: bool, watcher: Watcher | None, **settings: Value | None,
    ) -> None:  # fmt: skip
        self.seed, self.data, self.device_name, self.engine = seed, data, device, engine
        self.loading, self.fresh, self.break_lock = loading or Loading(), fresh, break_lock
        self.device, self.interval = engines.choose_device(device), CheckpointInterval.parse(checkpoint_every)
        self.watcher = (watcher if is_first() else None) or Watcher()
        if seed < 0:
            raise UsageError(f"a seed is a whole number from 0, not {seed}.")
        if fast and settings.get("precision") is not None:
            raise UsageError("--fast chooses the precision itself: leave one of the two out.")
        if fast:
            settings["precision"] = engines.fast_precision(self.device)
            if settings["precision"] == "float32":
                what = "so --fast computes in float32 like the default"
                self.watcher.say(f"Note: this machine has no bf16 arithmetic, {what}.")
        self.spec, self.split = on_first(lambda: plan(experiment, shortcut, micro_batch, settings))
        self.folder = run_folder(Path(runs), self.spec, seed)

    def feed(self, device: torch.device) -> Feed:
        """The data of the run."""
        say = self.watcher.say
        return open_feed(self.spec, self.data, device, self.seed, self.loading, say, process_group())

    def is_over(self) -> bool:
        """Whether the run is finished on these data, its record whole; says so. Diverged if it was;
        RecordError if the data are others, or the record is broken and there is no checkpoint to restore it
        from.
        """
        if self.fresh or not on_first(self._has_ended):
            return False
        if FAMILIES[self.spec.dataset] == "imagenet":  # of which there are as many as there are users
            feed = self.feed(self.device)
            on_first(lambda: self.check_images(read_json(self.folder / ENV)["data"]["sha256"], feed))
        return True

    def _has_ended(self) -> bool:
        if not (self.folder / RESULT).exists():
            return False
        try:
            run = read_run(self.folder)
        except RecordError:
            if has_checkpoint(self.folder):
                return False
            raise
        if self.spec.recipe.densely_by_hand and run.digest != self.spec.digest:
            return False  # it was sampled less densely than is asked for; going on says so
        if run.status == "diverged":
            raise Diverged(f"{self.folder} diverged earlier and is kept: start it anew with --fresh.")
        if run.finished:
            way_on = "--fresh would train it anew"
            self.watcher.say(f"{self.folder} is finished already ({run.status}); {way_on}.")
        return run.finished

    def check_images(self, trained_on: Mapping[str, str], feed: Feed) -> None:
        """Refuse to go on, or to offer a finished run as the result, on other images than its own."""
        if dict(trained_on) != dict(feed.about.checksums):
            raise RecordError(
                f"{self.folder} was trained on other data (checksum differs): name the same data folder, "
                "keep the two apart with --runs, or start anew with --fresh."
            )

    @contextmanager
    def opened(self) -> Iterator[Trainer]:
        """The trainer of the run, whose lock the first process holds; a full memory is told in a sentence."""
        missing = [parent for parent in self.folder.parents if not parent.exists()]
        lock = locked(self.folder, break_lock=self.break_lock, say=self.watcher.say)
        hint = (
            f"{self.split.micro} images per pass: try --micro-batch {max(1, self.split.micro // 2)} "
            "(gradients are accumulated; BN groups must fit into it), or fewer runs at once with --jobs"
        )
        try:
            with ExitStack() as stack, engines.telling_memory(hint):
                on_first(lambda: stack.enter_context(lock))
                trainer = self.open()
                try:
                    yield trainer
                finally:
                    with suppress(RecordError):  # a run that ends well has waited for it
                        trainer.checkpoints.finish()
        finally:
            for parent in missing if is_first() else []:  # of a run that is refused nothing remains
                with suppress(OSError):
                    parent.rmdir()

    def open(self) -> Trainer:
        """The trainer of the run, its record begun or brought to the state of its checkpoint."""
        spec, say = self.spec, self.watcher.say
        state, notice = (None, "") if self.fresh else on_first(lambda: load_newest(self.folder))
        if state and (state.get("digest"), state.get("seed")) != (spec.digest, self.seed):
            raise RecordError(f"the checkpoint in {self.folder} is of another run: start anew with --fresh.")
        env, device = state["env"] if state else {}, self.device
        if (kind := env.get("device", device.type)) != device.type:
            if self.device_name != "auto" or world_size() > 1:
                raise UsageError(
                    f"this run was begun on {kind}, and {device.type} would round differently: say "
                    f"--device {kind}, or start anew with --fresh."
                )
            device = engines.choose_device(kind)
        ahead = spec.recipe.iterations - (state["iteration"] if state else 0)
        begun, micro = env.get("engine"), self.split.micro
        engines.use_precision(spec.recipe.precision, device)
        name = on_first(lambda: engines.choose_engine(self.engine, device, spec, micro, ahead, begun, say))
        feed = self.feed(device)
        if spec.recipe.batch_size > feed.about.sizes["train"]:
            raise UsageError(
                f"a batch of {spec.recipe.batch_size} is larger than the training set of "
                f"{feed.about.sizes['train']:,} images: choose a smaller --batch-size."
            )
        writer = on_first(lambda: open_run(self.folder, spec, fresh=self.fresh))
        if writer.aside:
            say(f"The earlier run is kept in {writer.aside}.")
        for sentence in feed.about.notices:
            say(f"Note: {sentence}.")
        if feed.about.classes:
            say(f"Classes in order: {told(feed.about.classes)}.")
        if sentence := self.split.describe(spec.recipe):
            say(sentence)
        writer = writer if is_first() else Onlooker(writer.folder)
        trainer = Trainer(spec, self.seed, feed, Target(device, self.split, name), writer, self.watcher)
        trainer.interval = self.interval
        if name == engines.LANES:
            from resrepro.training.lanes import LaneUpdates  # imports Triton

            trainer.updates = LaneUpdates([trainer])
        now = {"format": FORMAT} | describe_environment() | engines.describe_device(device, self.split.micro)
        code = load_kernels().key if name == engines.KERNELS else None
        now |= {"engine": name, "kernels": f"triton {version('triton')}" if name == engines.LANES else code}
        if state:
            self.go_on(trainer, state, notice, now)
        else:
            self.begin(trainer, now)
        return trainer

    def begin(self, trainer: Trainer, now: Mapping[str, Any]) -> None:
        """Begin the record of a run, and write its first checkpoint."""
        if self.fresh:
            trainer.way_on = "The same command without --fresh goes on from here."
        mode = "fast" if self.spec.recipe.precision in engines.NARROW else "default"
        about = {"mode": mode, "data": trainer.feed.about.describe()}
        env = {**now, **about, "command": command_for(self.spec, self.seed)}
        on_first(lambda: trainer.writer.begin(self.spec, self.seed, env))
        on_first(lambda: trainer.writer.result(trainer.result("partial")))
        trainer.save()  # so that there is always one to go on from; it also shows what the next will cost

    def go_on(self, trainer: Trainer, state: Mapping[str, Any], notice: str, now: Mapping[str, Any]) -> None:
        """Take up a checkpoint, and note in the record that another session goes on."""
        writer, say = trainer.writer, self.watcher.say
        on_first(lambda: self.check_images(state["data"], trainer.feed))
        restore(trainer, state)
        env, curve, result = state["env"], state["curve"].encode(), trainer.result("partial")
        if notice:
            say(notice)
        if restored := on_first(lambda: writer.go_on(self.spec, self.seed, env, curve, result)):
            say(f"Damaged or missing, and restored from the checkpoint: {', '.join(restored)}.")
        if other := differences(env, now):
            say(f"Note: not the machine of the first start, so rounding may differ: {'; '.join(other)}.")
        on_first(lambda: writer.add_session(trainer.done, now))
        say(f"Going on from iteration {trainer.done:,} of {trainer.recipe.iterations:,}.")
