"""Training one experiment: from its name to a finished record, or on from where it was interrupted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from resrepro import catalogue
from resrepro.data.loading import Loading
from resrepro.device import choose_device, telling_memory, use_precision, use_threads
from resrepro.distributed import join, on_first, told_as_lost
from resrepro.errors import Diverged, RecordError, UsageError
from resrepro.feeds import Feed, open_feed
from resrepro.processes import is_first, world_size
from resrepro.recording import Onlooker, RunWriter, describe_environment, open_run, run_folder
from resrepro.records import ENV, RESULT, read_json
from resrepro.specs import FAMILIES, Spec, Value
from resrepro.spread import Spread, bn_group_for, spread_batch
from resrepro.trainer import Target, Trainer
from resrepro.watching import Watcher


def train(
    experiment: str,
    seed: int = 0,
    *,
    shortcut: str | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    micro_batch: int | None = None,
    sync_bn: bool = False,
    loading: Loading | None = None,
    fresh: bool = False,
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
        threads: CPU threads; one per core by default.
        micro_batch: images per forward and backward pass; fewer than the batch (or than a process's share
            of it) accumulate gradients.
        sync_bn: BN statistics over all processes of a `torchrun` together, instead of each its own.
        loading: how image files are read.
        fresh: set an existing run aside and start anew.
        watcher: hears of every event; silent by default.
        arguments: the command line, for the record.
        **settings: settings of the recipe to change, such as `iterations=2000` or `split="45k5k"`.

    Returns:
        The run's folder. A finished run is left as it is.

    Raises:
        UsageError: for a wrong name, setting or device.
        DataError: if the data are missing or damaged.
        RecordError: if the record cannot be written.
        Diverged: if the loss became infinite or NaN; the record is kept.
        Interrupted: if a signal stopped the run; its checkpoint is written.
        PeerLost: if another process of the run ended.
    """
    device_used = choose_device(device)
    watcher = (watcher if is_first() else None) or Watcher()
    join(device_used)
    with told_as_lost():
        spec, spread = on_first(lambda: plan(experiment, shortcut, micro_batch, sync_bn, settings))
        if seed < 0:
            raise UsageError(f"a seed is a whole number from 0, not {seed}.")
        use_threads(threads)
        use_precision(spec.recipe.precision, device_used)
        folder = run_folder(Path(runs), spec, seed)
        if not fresh and on_first(lambda: _already_over(folder, watcher)):
            if FAMILIES[spec.dataset] == "imagenet":  # of which there are as many as there are users
                about = open_feed(spec, data, device_used, seed, loading or Loading(), watcher.say).about
                on_first(lambda: _check_same_images(folder, about.checksums))
            return folder
        smaller = max(1, spread.micro // 2)
        with telling_memory(
            f"{spread.micro} images per pass: try --micro-batch {smaller} "
            "(gradients are accumulated; BN groups must fit into it)"
        ):
            feed = open_feed(spec, data, device_used, seed, loading or Loading(), watcher.say)
            writer = _open_writer(spec, seed, feed, Path(runs), fresh)
            _say_first(writer, spec, spread, feed.about.notices, watcher)
            trainer = Trainer(spec, seed, feed, Target(device_used, spread), writer, watcher)
            _open_record(trainer, arguments)
            try:
                trainer.run()
            finally:
                watcher.end()
    return folder


def _open_writer(spec: Spec, seed: int, feed: Feed, runs: Path, fresh: bool) -> RunWriter:
    """The record of a run on these data, which the first process alone writes.

    Raises:
        UsageError: if the data do not fill a batch, or the folder holds a run of another specification.
        RecordError: if the folder cannot be written.
    """
    if spec.recipe.batch_size > feed.about.sizes["train"]:
        raise UsageError(
            f"a batch of {spec.recipe.batch_size} is larger than the training set of "
            f"{feed.about.sizes['train']:,} images: choose a smaller --batch-size."
        )
    writer = on_first(lambda: open_run(runs, spec, seed, fresh=fresh))
    return writer if is_first() else Onlooker(writer.folder)


def _check_same_images(folder: Path, checksums: Mapping[str, str]) -> None:
    """Refuse to offer a finished run as the result for other images.

    Raises:
        RecordError: if the run was trained on images with other checksums.
    """
    if read_json(folder / ENV).get("data", {}).get("sha256") != dict(checksums):
        raise RecordError(
            f"{folder} holds a finished run on other images (checksum differs): "
            "keep the two apart with --runs, or start anew with --fresh."
        )


def _open_record(trainer: Trainer, arguments: Sequence[str] | None) -> None:
    """Begin the record of a run, or note in it that another session goes on."""
    writer, spec = trainer.writer, trainer.spec
    env = describe_environment(arguments) | _describe_device(trainer.target)
    if trainer.resume():
        writer.add_session(trainer.done, env)
        return
    command = catalogue.command_for(spec, trainer.seed)
    told = env | {"mode": "default", "data": trainer.feed.about.describe(), "command": command}
    writer.begin(spec, trainer.seed, told)
    writer.result(trainer.result("partial"))


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


def _describe_device(target: Target) -> dict[str, object]:
    device = target.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "micro_batch": target.spread.micro,
    }


def _already_over(folder: Path, watcher: Watcher) -> bool:
    """Whether the run in this folder is finished; says so.

    Raises:
        Diverged: if it ended with a loss that is not finite.
    """
    if not (folder / RESULT).exists():
        return False
    status = read_json(folder / RESULT).get("status")
    if status == "diverged":
        raise Diverged(f"{folder} diverged earlier and is kept: start it anew with --fresh.")
    if status in ("complete", "shortened"):
        watcher.say(f"{folder} is finished already ({status}); --fresh would train it anew.")
        return True
    return False
