"""Looking at finished runs and comparing them bit by bit, for the tests that train."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resrepro.data import Dataset
from resrepro.data.feeds import MemoryFeed, open_feed
from resrepro.data.loader import Loading
from resrepro.records.storage import Onlooker
from resrepro.spec import catalogue
from resrepro.training.engine import use_precision
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import split_batch
from resrepro.training.progress import Watcher

TIMES = ("images_per_s", "wall_s")  # columns that differ between equal runs
OF_TIMES = {"seconds", "checksum", "metrics"}  # entries of result.json that depend on them


def trainer_of(
    experiment: str, device: Any, engine: str, *, seed: int = 0, data: Path | Dataset | None = None,
    shortcut: str | None = None, micro: int | None = None, watcher: Watcher | None = None, **settings: Any,
) -> Trainer:  # fmt: skip
    """The trainer of a run that leaves no record; `data` is a folder of photographs, or images in memory."""
    device, spec = torch.device(device), catalogue.derive(catalogue.find(experiment), shortcut, **settings)
    use_precision(spec.recipe.precision, device)
    if isinstance(data, Dataset):
        feed = MemoryFeed(spec.recipe, data, device, seed)
    else:
        feed = open_feed(spec, data, device, seed, Loading(workers=0))
    target = Target(device, split_batch(spec.recipe.batch_size, 1, micro), engine)
    trainer = Trainer(spec, seed, feed, target, Onlooker(Path("nowhere")), watcher or Watcher())
    trainer.save = lambda: None
    return trainer


def rows_of(folder: Path, *left_out: str) -> list[dict[str, str]]:
    """The rows of metrics.csv, without some columns."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in left_out} for row in csv.DictReader(file)]


def json_of(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run."""
    return json.loads((folder / f"{name}.json").read_text())


env_of = partial(json_of, name="env")  # the machine and choices of a run's first start


def result_of(folder: Path, *left_out: str) -> dict[str, Any]:
    """The content of result.json, without some entries."""
    return {key: value for key, value in json_of(folder, "result").items() if key not in left_out}


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, read by PyTorch alone."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def net_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and BN statistics of the newest checkpoint."""
    return checkpoint_of(folder)["net"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether weights and BN statistics agree bit by bit."""
    ours, theirs = net_of(one), net_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def differences(one: Path, other: Path) -> list[str]:
    """Where two ends of one run differ: weights, BN statistics, momentum, scale, curves, result."""
    ours, theirs = checkpoint_of(one), checkpoint_of(other)
    found = [f"net.{name}" for name in ours["net"] if not torch.equal(ours["net"][name], theirs["net"][name])]
    for key, state in ours["optimizer"]["state"].items():
        same = torch.equal(state["momentum_buffer"], theirs["optimizer"]["state"][key]["momentum_buffer"])
        found += [] if same else [f"momentum {key}"]
    found += [] if ours["scaler"] == theirs["scaler"] else ["scaler"]
    found += [] if rows_of(one, *TIMES) == rows_of(other, *TIMES) else ["metrics.csv"]
    return found + ([] if result_of(one, *OF_TIMES) == result_of(other, *OF_TIMES) else ["result.json"])
