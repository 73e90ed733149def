"""The loop: few frames from the command to the loss, and stretches that end where something happens."""

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from resrepro.cli import main
from resrepro.data.feeds import open_feed
from resrepro.data.loader import Loading
from resrepro.records.storage import Onlooker
from resrepro.spec import catalogue
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import split_batch
from resrepro.training.progress import Watcher

PACKAGE = Path(sys.modules["resrepro"].__file__ or "").parent


class Reached(Exception):
    """The loss is about to be computed."""


def test_the_loss_is_few_frames_below_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[traceback.FrameSummary] = []

    def note(*_: object, **__: object) -> None:
        frames.extend(frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents)
        raise Reached

    monkeypatch.setattr(F, "cross_entropy", note)
    words = "train --dataset digits --depth 8 --plain --iterations 2 --device cpu --runs"
    monkeypatch.setattr(sys, "argv", ["resrepro", *words.split(), str(tmp_path)])
    with pytest.raises(Reached):
        main()
    told = [f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.name}" for frame in frames]
    assert len(told) <= 7, told
    assert len({frame.filename for frame in frames}) <= 4, told


def trainer_of(**settings: Any) -> Trainer:
    spec = catalogue.derive(catalogue.find("digits-resnet8"), **settings)
    device = torch.device("cpu")
    feed = open_feed(spec, None, device, 0, Loading())
    split = split_batch(spec.recipe.batch_size, 1)
    return Trainer(spec, 0, feed, Target(device, split), Onlooker(Path("nowhere")), Watcher())


def test_a_stretch_ends_at_the_next_sample_look_or_end() -> None:
    warm = {"warmup_lr": 0.01, "warmup_window": 40}
    trainer = trainer_of(iterations=250, eval_every=60, batch_size=8, **warm)
    events = []
    while trainer.done < 250:
        trainer.done = trainer.next_event()
        events.append(trainer.done)
        if trainer.done == 80:
            trainer.warmup_switch = 80
    assert events == [40, 60, 80, 100, 120, 125, 180, 188, 200, 240, 250]
