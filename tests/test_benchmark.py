"""The benchmark: who takes part, turns and their end, the numbers that follow, tables and chart.

Contestants that are played by a script of a few lines need no torch; the real ones are in
test_benchmark_loops.py and test_cli_bench.py.
"""

import csv
import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from resrepro.bench import children, contest
from resrepro.bench.chart import draw, make_figure
from resrepro.bench.children import Child
from resrepro.bench.contestants import MODES, Contestant, Plan, check_plan, parse_modes
from resrepro.bench.projection import project, run_seconds, tell_time
from resrepro.bench.report import show, speed_records, time_records, to_csv, write_csv
from resrepro.bench.results import Entry, Outcome, Range, Turn
from resrepro.bench.work import first_convolution, multiply_adds, step_operations
from resrepro.errors import RecordError, ResreproError, UsageError
from resrepro.spec import catalogue
from resrepro.spec.architecture import architectures

MACHINE = {
    "date": "2015-12-10", "cpu": "a made-up CPU", "gpu": None, "device": "cpu", "cores": 2, "threads": 2,
    "torch": "2.6.0", "resrepro": "0.1.0",
}  # fmt: skip


def plan_of(**changed):
    standard = {
        "depths": (20,), "plain": False, "batch_size": 100, "rounds": 3, "seconds": 1.0,
        "modes": ("usual", "default", "fast"), "threads": None, "device": "cpu",
    }  # fmt: skip
    return Plan(**standard | changed)


def entry_of(mode, speeds, depth=20, workers=None, data=0.01, compile_seconds=0.0):
    turns = tuple(Turn(int(speed), 1.0) for speed in speeds)
    return Entry(Contestant(mode, depth, False, 100, workers), turns, data, 512.0, compile_seconds)


def outcome_of(*entries, **changed):
    return Outcome(plan_of(**changed), MACHINE, entries, {"float32": 1e12, "bf16": 4e12})


@pytest.fixture
def outcome():
    return outcome_of(
        entry_of("usual", (100, 200, 50), workers=0),
        entry_of("usual", (90, 150, 60), workers=2),
        entry_of("default", (300, 400, 200)),
        entry_of("fast", (500, 1200, 100), compile_seconds=30.0),
    )


# --- numbers ----------------------------------------------------------------------------------------


def test_multiply_adds_are_those_that_were_read_off_the_built_nets():
    cifar = [net for name, net in architectures().items() if name.startswith("cifar10")]
    assert {net.layers for net in cifar} == {20, 32, 44, 56, 110, 1202}
    for net in cifar:
        assert multiply_adds(net.layers) == net.multiply_adds
        assert first_convolution() == net.layer("conv1").multiply_adds


def test_the_ratio_is_taken_within_each_round(outcome):
    default, fast = outcome.find(20, "default"), outcome.find(20, "fast")
    assert outcome.ratio(default) == Range(3.0, 2.0, 4.0)
    assert outcome.ratio(fast) == Range(5.0, 2.0, 6.0)  # by medians of speed it would be 5 as well
    assert default.speed == Range(300, 200, 400)
    assert outcome.ratio(entry_of("default", (100, 600, 100))) == Range(2.0, 1.0, 3.0)


def test_of_the_usual_loop_the_better_number_of_workers_counts(outcome):
    assert outcome.find(20, "usual").contestant.workers == 0
    assert [entry.contestant.mode for entry in outcome.shown(20)] == ["usual", "default", "fast"]
    assert len(outcome.of(20)) == 4


def test_without_the_usual_loop_there_is_no_ratio():
    alone = outcome_of(entry_of("default", (100,)), modes=("default",))
    assert alone.ratio(alone.entries[0]) is None
    with pytest.raises(RecordError, match="must name both"):
        make_figure(alone)


def test_operations_and_their_share_of_the_peak_of_the_same_precision(outcome):
    default, fast = outcome.find(20, "default"), outcome.find(20, "fast")
    assert step_operations(20) == 2 * (3 * 40_551_040 - 27 * 16 * 32 * 32)
    assert default.operations_per_second == 300 * step_operations(20)
    assert outcome.share_of_peak(default) == pytest.approx(300 * step_operations(20) / 1e12)
    assert outcome.share_of_peak(fast) == pytest.approx(500 * step_operations(20) / 4e12)
    assert default.data_share == pytest.approx(0.01 / (100 / 300))


def test_an_engine_has_paid_when_it_has_saved_what_it_took():
    def paid(fast, eager, compile_seconds=30.0):
        entry = entry_of("fast", (fast,), compile_seconds=compile_seconds)
        found = outcome_of(entry, entry_of("fast-eager", (eager,)), modes=("fast", "fast-eager"))
        return found.breaks_even(entry)

    assert paid(200, 100) == 60  # 30 s at half a second saved per batch of 100
    assert paid(100, 100) is None
    assert paid(50, 100) is None
    assert paid(200, 100, compile_seconds=0.0) is None
    assert outcome_of(entry_of("fast", (1,), compile_seconds=1.0)).breaks_even(entry_of("fast", (1,))) is None


# --- projections ------------------------------------------------------------------------------------


def test_a_run_is_its_updates_and_a_third_of_a_step_for_each_image_measured():
    spec = catalogue.find("cifar10-resnet20").spec()  # 64,000 batches of 128, 64 evaluations
    assert run_seconds(spec, 100.0) == pytest.approx((64_000 * 128 + 64 * 10_000 / 3) / 100)
    split = catalogue.derive(catalogue.find("cifar10-resnet20"), split="45k5k", iterations=1_000)
    evaluations = -(-1_000 // split.recipe.eval_every)
    assert run_seconds(split, 1.0) == pytest.approx(1_000 * 128 + evaluations * 15_000 / 3)


def test_nets_that_were_not_measured_are_scaled_from_the_nearest_by_multiply_adds():
    entries = [entry_of("default", (400,), 20), entry_of("default", (100,), 110)]
    found = project(outcome_of(*entries, modes=("usual", "default"), depths=(20, 110)))
    by_name = {each.experiment: each for each in found}
    assert set(by_name) == {
        name for name, one in catalogue.experiments().items() if one.dataset == "cifar10" and one.exhibits
    }
    assert {each.mode for each in found} == {"default"}
    resnet20, plain20, resnet56 = (by_name[f"cifar10-{net}"] for net in ("resnet20", "plain20", "resnet56"))
    spec = catalogue.find("cifar10-resnet20").spec()
    assert (resnet20.seconds, resnet20.scaled_from) == (run_seconds(spec, 400), None)
    assert (plain20.seconds, plain20.scaled_from) == (resnet20.seconds, 20)
    speed56 = 100 * multiply_adds(110) / multiply_adds(56)  # 56 is nearer to 110 than to 20, by ratio
    assert (resnet56.seconds, resnet56.scaled_from) == (pytest.approx(run_seconds(spec, speed56)), 110)
    assert by_name["cifar10-resnet110"].runs == 5


def test_durations_are_told_in_a_fitting_unit():
    told = [tell_time(seconds) for seconds in (45, 120, 5 * 3600, 72 * 3600)]
    assert told == ["45 s", "2 min", "5.0 h", "3.0 days"]


# --- plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"depths": (21,)}, "nearest is 20 or 26"),
        ({"depths": (20, 20)}, "each --depth once"),
        ({"rounds": 0}, "--rounds"),
        ({"seconds": 0.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"batch_size": 50_001}, "--batch-size"),
        ({"threads": 0}, "--threads"),
    ],
)
def test_an_impossible_plan_is_refused(changed, part):
    with pytest.raises(UsageError, match=part):
        check_plan(plan_of(**changed))


def test_modes_are_parsed_and_unknown_ones_refused():
    assert parse_modes("usual, fast") == ("usual", "fast")
    assert parse_modes(",".join(MODES)) == tuple(MODES)
    for text in ("", "slow", "fast,fast"):
        with pytest.raises(UsageError):
            parse_modes(text)


# --- children ---------------------------------------------------------------------------------------

# Answers like a contestant, without torch; leaves a trace of itself and of its turns in a folder.
PLAYER = """
import json, os, subprocess, sys
folder = sys.argv[1]
asked = json.loads(sys.stdin.readline())
who = asked.get("contestant", {"mode": asked["part"]})
name = who["mode"] + str(who.get("workers") or "")
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(f"{folder}/{os.getpid()}.pid", "w") as file: file.write(str(worker.pid))
def tell(**answer): print(json.dumps(answer), flush=True)
tell(engine="eager", key="", data_seconds=0.1, compile_seconds=0.0, threads=2, device="cpu", gpu=None)
speeds = {"usual": 100, "usual2": 50, "default": 200, "fast": 300}
while line := sys.stdin.readline():
    with open(f"{folder}/turns", "a") as file: file.write(name + " ")
    if name == os.environ.get("FAILS"):
        sys.exit("the lights went out")
    seconds = json.loads(line)["seconds"]
    if name == "peak": tell(float32=1e12, bf16=2e12)
    else: tell(images=round(speeds[name] * seconds), seconds=seconds, memory_mib=100)
worker.kill()
"""


@pytest.fixture
def players(tmp_path, monkeypatch):
    """Let PLAYER play all contestants; the folder of their traces."""
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-c", PLAYER, str(tmp_path)))
    return tmp_path


def is_gone(pid):
    """Whether a process has ended, waiting a moment; one that nobody has collected yet has ended too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def assert_all_gone(folder, count):
    traces = list(folder.glob("*.pid"))
    assert len(traces) == count
    for trace in traces:
        assert is_gone(int(trace.stem))
        assert is_gone(int(trace.read_text()))  # what it started


def test_contestants_take_turns_each_round_beginning_with_another(players):
    outcome = contest.hold(plan_of(rounds=2, modes=("usual", "default")))
    turns = (players / "turns").read_text().split()
    assert turns == ["usual", "usual2", "default", "peak", "usual2", "default", "usual", "peak"]
    assert outcome.ratio(outcome.find(20, "default")) == Range(2.0, 2.0, 2.0)
    assert outcome.find(20, "usual").contestant.workers == 0
    assert outcome.peaks == {"float32": 1e12, "bf16": 2e12}
    assert (outcome.machine["threads"], outcome.machine["device"]) == (2, "cpu")
    assert_all_gone(players, 4)


def test_when_one_fails_all_are_ended_and_one_sentence_says_why(players, monkeypatch):
    monkeypatch.setenv("FAILS", "default")
    with pytest.raises(ResreproError, match=r"measured ResNet-20, default failed: the lights went out\.$"):
        contest.hold(plan_of())
    assert_all_gone(players, 5)


def test_ctrl_c_ends_all(players):
    def interrupt(text):
        if "round 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contest.hold(plan_of(), interrupt)
    assert_all_gone(players, 5)


def test_a_child_that_never_answers_is_one_sentence_and_its_own_errors_are_passed_on():
    def python(program):
        return [sys.executable, "-c", f"import sys; sys.stdin.readline(); {program}"]

    def told(program):
        with pytest.raises(ResreproError) as error:
            Child("a thing", {}, python(program))
        return type(error.value), str(error.value)

    assert told("raise ValueError('no.')")[1] == "the process that measured a thing failed: ValueError: no."
    assert "exit code 3" in told("sys.exit(3)")[1]
    assert "for want of memory" in told("import os; os.kill(os.getpid(), 9)")[1]
    assert "SIGSEGV" in told("import os; os.kill(os.getpid(), 11)")[1]
    answer = json.dumps({"error": "not so.", "code": 2})
    assert told(f"print({answer!r})") == (UsageError, "not so.")


def test_under_torchrun_no_benchmark_is_held(monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match="torchrun"):
        contest.hold(plan_of())


# --- what is shown ----------------------------------------------------------------------------------


def test_the_csv_reads_back_as_what_was_measured(outcome, tmp_path):
    projections = project(outcome)
    paths = write_csv(outcome, projections, tmp_path / "b.csv")
    assert [path.name for path in paths] == ["b.csv", "b-times.csv"]
    speeds, times = (list(csv.DictReader(io.StringIO(path.read_text()))) for path in paths)
    assert [(row["mode"], row["workers"], row["counted"]) for row in speeds] == [
        ("usual", "0", "True"), ("usual", "2", "False"), ("default", "", "True"), ("fast", "", "True"),
    ]  # fmt: skip
    for row, record in zip(speeds, speed_records(outcome), strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in record.items()}
    assert float(speeds[2]["ratio_to_usual_median"]) == 3.0
    assert float(speeds[3]["compile_s"]) == 30.0
    assert float(speeds[2]["images_per_s_min"]) == 200
    assert speeds[0]["cpu"] == MACHINE["cpu"]
    assert [row["experiment"] for row in times] == [each.experiment for each in projections]
    assert to_csv(time_records(projections)) == paths[1].read_text()


def test_the_tables_fit_80_columns_and_say_what_was_measured(outcome):
    text = shown(outcome)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    folded = " ".join(text.split())
    assert "ResNet-20 usual 100 1.00" in folded
    assert "default 300 3.00" in folded
    assert "200–400 2.00–4.00" in folded
    assert "0 for ResNet-20" in folded
    assert "float32 1,000, bf16 4,000 GFLOP/s" in folded
    assert "its engine takes 30.0 s to start." in folded
    assert "cifar10-resnet1202" in folded
    assert "scaled from 20" in folded
    assert "made up" in folded
    assert "ImageNet's experiments are left out" in folded


def shown(outcome):
    text = io.StringIO()
    Console(file=text, width=80, highlight=False).print(show(outcome, project(outcome)))
    return text.getvalue()


def test_large_numbers_still_fit():
    entries = [entry_of(mode, (123_456, 234_567, 98_765)) for mode in MODES]
    assert max(map(len, shown(outcome_of(*entries, modes=tuple(MODES))).splitlines())) <= 80


def test_the_chart_has_a_bar_and_whiskers_for_each_mode_and_net(outcome, tmp_path):
    axes = make_figure(outcome).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [3.0, 5.0]
    whiskers = [collection.get_segments()[0][:, 1].tolist() for collection in axes.collections]
    assert whiskers == [[2.0, 4.0], [2.0, 6.0]]
    assert {text.get_text() for text in axes.texts} == {"3.00", "5.00"}
    first, second = draw(outcome, tmp_path / "a"), draw(outcome, tmp_path / "b")
    assert [path.name for path in first] == ["bench.png", "bench.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
