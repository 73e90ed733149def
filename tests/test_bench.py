"""`resrepro bench`: the usual loop computes what ours does, turns and their end, the table and the CSV."""

import csv
import io
from pathlib import Path

import players
import pytest
import torch
from commands import call
from rich.console import Console

from resrepro import bench
from resrepro.bench import Loop, Speed, compare_with_usual, loops_of, made_up_images, usual_net
from resrepro.cli.measure import speed_table, to_csv
from resrepro.errors import ResreproError, UsageError
from resrepro.nets import build_net
from resrepro.training.loop import Trainer

CPU = torch.device("cpu")
MACHINE = {"date": "2015-12-10", "cpu": "a made-up CPU", "gpu": None, "device": "cpu", "threads": 2}
LOOPS = loops_of("usual,default,fast", 20, batch_size=100)
REACHED = [(100.0, 200.0, 50.0), (90.0, 150.0, 60.0), (300.0, 400.0, 200.0), (500.0, 1200.0, 100.0)]
SPEEDS = compare_with_usual(LOOPS, REACHED)


# --- the loops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 20])
def test_the_usual_net_is_ours_in_plain_words(depth):
    ours, usual = build_net("cifar10", depth), usual_net(depth)
    usual.load_state_dict(ours.state_dict())  # raises if a name or shape differs
    images = torch.randn(6, 3, 32, 32)
    for mode in (True, False):  # in training first: it moves the averages that evaluation uses
        torch.testing.assert_close(usual.train(mode)(images), ours.train(mode)(images), rtol=1e-4, atol=1e-4)
    kinds = {type(module) for module in usual.modules() if "Norm" in type(module).__name__}
    assert kinds == {torch.nn.BatchNorm2d}


def test_the_usual_pipeline_gives_augmented_normalised_images():
    torch.manual_seed(0)
    images = made_up_images(4)
    dataset = bench.UsualImages(images)
    shown = torch.stack([dataset[0][0] for _ in range(20)])
    assert (len(dataset), dataset[0][1]) == (4, images.labels[0])
    assert (shown.shape, abs(float(shown.mean())) < 1) == ((20, 3, 32, 32), True)
    assert not torch.equal(shown[:-1], shown[1:])


@pytest.mark.parametrize(("precision", "layout"), [("float32", False), ("bf16", True)])
def test_the_usual_loop_makes_updates(precision, layout, monkeypatch):
    monkeypatch.setattr(bench, "TRAINING_IMAGES", 8)
    nets, seen = [], []
    monkeypatch.setattr(bench, "usual_net", lambda *net: nets.append(usual_net(*net)) or nets[0])
    updates = bench.usual_updates(Loop("usual", 8, batch_size=8, workers=0), CPU, precision)
    next(updates)
    nets[0].conv1.register_forward_hook(lambda module, maps, output: seen.append((maps[0], output)))
    before = {name: value.clone() for name, value in nets[0].state_dict().items()}
    for _ in range(2):
        next(updates)
    after = nets[0].state_dict()
    assert after["bn1.num_batches_tracked"] == 3
    assert not any(torch.equal(before[name], after[name]) for name in after if "conv" in name)
    images, maps = seen[-1]
    assert images.is_contiguous(memory_format=torch.channels_last) == layout
    assert maps.dtype == (torch.bfloat16 if layout else torch.float32)


def test_on_an_nvidia_gpu_there_are_other_modes_and_shorter_turns(monkeypatch):
    monkeypatch.setattr(bench.engines, "choose_device", torch.device)
    monkeypatch.setattr(bench, "cores", lambda: 6)
    current = []
    monkeypatch.setattr(bench, "join", current.append)
    monkeypatch.setattr(
        bench.engines, "trouble_with_kernels",
        lambda device, spec: "" if current[-1:] == [device] else "not the current one",
    )  # fmt: skip
    modes = {"bf16": "usual,usual-fast,eager-fast,graph,graph-fast,lanes-fast", "fp16": "usual,eager,graph"}
    for precision in modes:
        monkeypatch.setattr(bench.engines, "fast_precision", lambda device, own=precision: own)
        assert bench.defaults_on("cuda:1") == (modes[precision], 1.0, (6,))
    assert bench.defaults_on("cpu") == ("usual,default,fast", 3.0, (0, 2))


@pytest.mark.parametrize(
    ("mode", "precision", "choice"),
    [("default", "float32", "auto"), ("fast", "bf16", "auto"), ("graph-fast", "bf16", "graph")],
)
def test_our_loop_is_the_real_trainer_on_the_papers_recipe(mode, precision, choice, monkeypatch):
    trainers, asked = [], []

    class Noted(Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trainers.append(self)

    monkeypatch.setattr(bench, "TRAINING_IMAGES", 16)
    monkeypatch.setattr(bench, "Trainer", Noted)
    monkeypatch.setattr(bench.engines, "choose_engine", lambda choice, *rest: asked.append(choice) or "eager")
    updates = bench.our_updates(Loop(mode, 8, batch_size=16), CPU, precision)
    next(updates)
    next(updates)
    [trainer] = trainers
    recipe = trainer.spec.recipe
    assert (recipe.precision, recipe.batch_size, recipe.lr) == (precision, 16, 0.1)
    assert (trainer.since_sample.count, trainer.net.training, asked) == (32, True, [choice])


def test_lanes_of_the_bench_make_their_updates_together(monkeypatch):
    """Two nets whose kernels do nothing: the images are drawn, and each batch counts twice."""
    lanes = pytest.importorskip("resrepro.training.lanes")
    monkeypatch.setattr(lanes.Lanes, "update", lambda self: self.seen.add_(1))
    monkeypatch.setattr(bench, "TRAINING_IMAGES", 16)
    monkeypatch.setattr(bench.engines, "choose_engine", lambda choice, *rest: choice)
    loop = Loop("lanes", 8, batch_size=2, nets=2)
    updates = bench.our_updates(loop, CPU, "float32")
    next(updates)
    monkeypatch.setattr(bench, "ready", (loop, updates, CPU, 1), raising=False)
    monkeypatch.setattr(bench, "SETTLE", 0)
    monkeypatch.setattr(bench.time, "perf_counter", iter([0.0, 1.0, 2.0]).__next__)
    assert bench.take_turn(0.5) == 1 * 2 * 2 / 2.0


# --- turns ------------------------------------------------------------------------------------------


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure some players."""
    for name in ("prepare", "take_turn"):
        monkeypatch.setattr(bench, name, getattr(players, name))

    def run(*modes):
        loops = [players.Player(mode, tmp_path, 100.0 * at) for at, mode in enumerate(modes, 1)]
        return bench.measure_speeds(loops, 2, 1.0, "cpu", 2, print)

    return run


def test_loops_take_turns_each_round_beginning_with_another(measure, tmp_path):
    speeds, machine = measure("usual", "default", "fast")
    assert (tmp_path / "turns").read_text() == "usual default fast default fast usual "
    assert [speed.ratios for speed in speeds] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert (machine["threads"], machine["device"]) == (2, "cpu")


@pytest.mark.parametrize(
    ("mode", "why"),
    [("failing", r"RuntimeError: the lights went out\.$"), ("dying", "its process has ended")],
)
def test_when_one_fails_one_sentence_says_why(mode, why, measure):
    with pytest.raises(ResreproError, match=f"^ResNet-20, {mode} failed: {why}"):
        measure("usual", mode)


# --- what is shown ----------------------------------------------------------------------------------


def test_the_ratio_is_taken_within_each_round_to_the_better_number_of_workers():
    assert [speed.ratios for speed in SPEEDS[2:]] == [(3.0, 2.0, 4.0), (5.0, 6.0, 2.0)]
    assert [speed.counted for speed in SPEEDS] == [True, False, True, True]
    assert [(speed.loop.mode, speed.loop.workers) for speed in SPEEDS[:3]] == [
        ("usual", 0), ("usual", 2), ("default", None),
    ]  # fmt: skip
    [alone] = compare_with_usual(LOOPS[2:3], REACHED[2:3])
    assert alone == Speed(LOOPS[2], REACHED[2])


def test_the_csv_reads_back_as_what_was_measured():
    rows = list(csv.DictReader(io.StringIO(to_csv(SPEEDS, MACHINE, 4.0))))
    assert [(row["mode"], row["workers"], row["counted"]) for row in rows] == [
        ("usual", "0", "True"), ("usual", "2", "False"), ("default", "", "True"), ("fast", "", "True"),
    ]  # fmt: skip
    told = [rows[2][key] for key in ("cpu", "images_per_s_min", "ratio_to_usual_median", "turn_s")]
    assert told == [MACHINE["cpu"], "200.0", "3.0", "4.0"]


def test_the_table_fits_80_columns_and_says_what_was_measured():
    large = [Speed(loop, (123_456.0, 234_567.0, 98_765.0), (1.0, 2.0, 3.0)) for loop in LOOPS]
    console = Console(file=io.StringIO(), width=80, highlight=False)
    for speeds in (SPEEDS, large):
        console.print(speed_table(speeds))
    text = console.file.getvalue()
    assert (max(map(len, text.splitlines())) <= 80, "…" in text) == (True, False)
    folded = " ".join(text.split())
    assert "ResNet-20 usual 0 1,000.0 100.0 (50.0–200.0) 1.00 (1.00–1.00)" in folded
    assert "default 333.3 300 (200–400) 3.00 (2.00–4.00)" in folded


def test_modes_are_parsed_and_unknown_ones_refused():
    assert [loop.mode for loop in loops_of("default, fast", 20, 128)] == ["default", "fast"]
    several = loops_of("graph,lanes", 20, 128, nets=(1, 5))
    assert [loop.name for loop in several] == ["graph", "lanes", "lanes x 5"]
    for text in ("", "slow", "fast,fast"):
        with pytest.raises(UsageError):
            loops_of(text, 20, 128)


@pytest.mark.slow
def test_bench_measures_and_writes(empty_folder):
    words = "bench --depth 8 --batch-size 16 --rounds 1 --seconds 0.1 --threads 1 --device cpu"
    code, stdout, stderr = call(words, "--modes usual,fast --csv out/bench.csv")
    assert (code, "ResNet-8" in stdout) == (0, True), stderr
    rows = list(csv.DictReader(io.StringIO(Path("out/bench.csv").read_text())))
    assert [(row["mode"], row["workers"]) for row in rows] == [("usual", "0"), ("usual", "2"), ("fast", "")]
    assert all(float(row["images_per_s_median"]) > 0 for row in rows)


def test_under_torchrun_no_benchmark_is_held(monkeypatch):
    monkeypatch.setattr("resrepro.cli.measure.world_size", lambda: 2)
    code, _, stderr = call("bench")
    assert (code, "torchrun" in stderr) == (2, True)
