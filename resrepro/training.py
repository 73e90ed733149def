"""Training one experiment: from its name to a finished record, or on from where it was interrupted."""

from collections.abc import Sequence
from pathlib import Path

import torch

from resrepro import catalogue
from resrepro.data import load_dataset
from resrepro.device import choose_device, use_precision, use_threads
from resrepro.errors import Diverged, UsageError
from resrepro.recording import describe_environment, open_run, run_folder
from resrepro.records import RESULT, read_json
from resrepro.specs import Value
from resrepro.trainer import Trainer
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
        data: folder of CIFAR-10 (see `resrepro.data.load_dataset`).
        runs: folder in which the run's own folder is made.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        threads: CPU threads; one per core by default.
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
    """
    spec = catalogue.derive(catalogue.find(experiment), shortcut, **settings)
    if seed < 0:
        raise UsageError(f"a seed is a whole number from 0, not {seed}.")
    target = choose_device(device)
    use_threads(threads)
    use_precision(spec.recipe.precision, target)
    watcher = watcher or Watcher()
    folder = run_folder(Path(runs), spec, seed)
    if not fresh and _already_over(folder, watcher):
        return folder
    dataset = load_dataset(spec.dataset, spec.recipe.split, data)
    if spec.recipe.batch_size > len(dataset.train):
        raise UsageError(f"a batch of {spec.recipe.batch_size} is larger than the training set.")
    writer = open_run(Path(runs), spec, seed, fresh=fresh)
    if writer.aside:
        watcher.say(f"The earlier run is kept in {writer.aside}.")
    for notice in dataset.notices:
        watcher.say(f"Note: {notice}.")
    trainer = Trainer(spec, seed, dataset, target, writer, watcher)
    env = describe_environment(arguments) | _describe_device(target)
    if trainer.resume():
        writer.add_session(trainer.done, env)
    else:
        command = catalogue.command_for(spec, seed)
        writer.begin(spec, seed, env | {"mode": "default", "data": dataset.describe(), "command": command})
        writer.result(trainer.result("partial"))
    try:
        trainer.run()
    finally:
        watcher.end()
    return folder


def _describe_device(device: torch.device) -> dict[str, object]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": device.type, "gpu": gpu, "threads": torch.get_num_threads()}


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
