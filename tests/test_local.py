"""Several runs at once: the same records, ends that are told, signals that reach all, and what is shown."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from runs import checkpoint_of, differences, json_of

from resrepro import launch
from resrepro.cli.view import EventView, RunsView, train_all
from resrepro.errors import Interrupted, UsageError
from resrepro.launch import local, pool_for
from resrepro.launch.local import Job, Outcome, RunPool, choose_places, device_kind, run_command
from resrepro.records.storage import locked
from resrepro.spec import catalogue
from resrepro.training import progress
from resrepro.training.measure import Errors
from resrepro.training.progress import Sample
from resrepro.training.session import train

DIGITS = {"experiment": "digits-resnet8", "batch_size": 16, "eval_every": 2, "lr": 0.01}
LONG = 120  # seconds that nothing here needs
GB = 2**30


def command(runs, iterations, seeds, *more):
    """A net with several seeds; the net is named twice, which makes no run twice."""
    words = f"train digits-resnet8 digits-resnet8 --seeds {seeds} --iterations {iterations} --runs {runs}"
    words += " --batch-size 16 --eval-every 2 --set lr=0.01 --device cpu --engine eager"
    return [sys.executable, "-m", "resrepro", *words.split(), *more]


def sampled(runs):
    """The folders of the runs that have measured their errors."""
    curves = runs.glob("*/seed*/metrics.csv")
    return sorted(each.parent for each in curves if "\n2," in each.read_text())


# --- whole commands ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_run_is_that_which_is_trained_alone_and_one_that_fails_stops_no_other(tmp_path):
    wanted = {"runs": tmp_path / "alone", "threads": 1, "engine": "eager", "iterations": 4}
    alone = [train(seed=seed, **wanted, **DIGITS) for seed in (0, 1)]
    here = tmp_path / "here"
    folders = [here / folder.parent.name / folder.name for folder in alone]
    with locked(folders[0].with_name("seed2")):
        words = command(here, 4, "2,0-1", "--jobs", str(local.cores()))
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "1 of 3 runs could not be done" in done.stderr
    for told in (done.stdout, done.stderr):  # when it happens, and at the end
        (failure,) = [line for line in told.splitlines() if "digits-resnet8, seed 2: " in line]
        assert "is being trained by" in failure
    for one, other in zip(folders, alone, strict=True):
        assert differences(one, other) == []
        assert json_of(one, "env")["threads"] == 1  # its share of the cores
        assert f"Record: {one}" in done.stdout
    assert "digits-resnet8, seed 1: iteration      4" in done.stdout


@pytest.mark.slow
def test_a_signal_stops_all_with_checkpoints(tmp_path):
    words = command(tmp_path, 60, "0-2", "--jobs", "2")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + LONG
        while len(sampled(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        folders = [sampled(tmp_path)[0].with_name(f"seed{seed}") for seed in range(3)]
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert "of 3 runs 2 stopped, 1 not begun): the same command goes on" in stderr
    assert stdout.count("checkpoint written") == 2
    assert all(0 < checkpoint_of(each)["iteration"] < 60 for each in folders[:2])
    assert [json_of(each, "result")["status"] for each in folders[:2]] == ["partial"] * 2
    assert not folders[2].exists()


# --- who trains next, and how it ends, with a program in place of ours --------------------------------

PROGRAM = """
import json, os, signal, sys, time
name, seed = sys.argv[1], int(sys.argv[2])
def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)
def stop(number, frame):
    print("Stopped.", file=sys.stderr)
    sys.exit(128 + number)
print("what a library says")
print(12)
if name == "dies":
    if seed == 0: os.kill(os.getpid(), signal.SIGKILL)
    if seed == 1: os._exit(7)
    if seed == 2: raise TypeError("nobody expected this")
    if seed == 3: sys.stderr.write("error: no such GPU.\\n"); sys.exit(2)
if name == "waits" and seed:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
if name == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
tell("begin", done=0, iterations=10)
if name == "shares":
    tell("finish", folder="there", run="net, seed 0")
    tell("fail", code=1, sentence="it diverged.", run="net, seed 1")
    os._exit(7)
if (name == "waits" and seed) or name == "deaf":
    time.sleep(120)
asked = "CUDA_VISIBLE_DEVICES" if name == "computes" else "OMP_NUM_THREADS"
tell("say", text=os.environ.get(asked, "all"))
"""


@pytest.fixture
def pool_of(monkeypatch):
    """A pool of small programs, each of which behaves as its name says."""
    before = {number: signal.getsignal(number) for number in progress.SIGNALS}
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", PROGRAM))

    def make(name, count=5, places=("", ""), **options):
        return RunPool([Job(name, seed, (name, str(seed))) for seed in range(count)], places, **options)

    yield make
    assert {number: signal.getsignal(number) for number in progress.SIGNALS} == before


def test_a_free_process_takes_the_next_run_and_never_are_there_more_than_asked(pool_of, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 7)
    pool, heard, most = pool_of("finishes"), [], []

    def hear(job, event):
        heard.append((job.seed, event["event"], event.get("text")))
        most.append(len(pool.running))

    pool.hear = hear
    pool.run()
    assert [seed for seed, kind, _ in heard if kind == "start"] == [0, 1, 2, 3, 4]
    assert {job.seed: outcome.code for job, outcome in pool.outcomes.items()} == dict.fromkeys(range(5), 0)
    for seed in range(5):
        of_it = [event for whose, *event in heard if whose == seed]
        assert of_it == [["start", None], ["begin", None], ["say", "3"]]
    assert max(most) == 2


def test_runs_that_share_a_command_begin_together_and_end_each_in_its_way(pool_of):
    """Of three runs one finishes and one fails; the third ends as the command does."""
    jobs = [Job("net", seed, ("shares", "0")) for seed in range(3)]
    heard, ended = [], []
    pool = RunPool(jobs, [""], hear=lambda job, event: heard.append((job.seed, event["event"])))
    pool.end = lambda job, outcome: ended.append(job.seed)
    pool.run()
    assert heard[:3] == [(seed, "start") for seed in range(3)]
    assert (heard.count((0, "finish")), (1, "finish") in heard) == (1, False)
    assert [pool.outcomes[job].code for job in jobs] == [0, 1, 7]
    assert pool.outcomes[jobs[1]].sentence == "it diverged."
    assert sorted(ended) == [0, 1, 2]


def test_each_run_sees_the_gpu_of_its_place_alone(pool_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    pool, seen, most = pool_of("computes", 6, ("3", "5", "3")), [], {"3": 0, "5": 0}

    def hear(job, event):
        seen.extend([event.get("text")] * (event["event"] == "say"))
        taken = [pool.places[place] for place in pool.taken.values()]
        most.update({gpu: max(before, taken.count(gpu)) for gpu, before in most.items()})

    pool.hear = hear
    pool.run()
    assert (len(seen), set(seen)) == (6, {"3", "5"})
    assert most == {"3": 2, "5": 1}
    pool = pool_of("computes", 1, ("",), hear=lambda job, event: seen.append(event.get("text")))
    pool.run()
    assert seen[-1] == "3,5"


def test_processes_that_die_in_whatever_way_are_told_and_stop_no_other(pool_of):
    pool = pool_of("dies")
    pool.run()
    ends = {job.seed: outcome for job, outcome in pool.outcomes.items()}
    assert "killed by SIGKILL" in ends[0].sentence
    assert ends[1] == Outcome(7, "its process ended with exit code 7 and said nothing of it.")
    assert ends[2].sentence == "TypeError: nobody expected this"
    assert "Traceback" in ends[2].trace
    assert ends[3] == Outcome(2, "no such GPU.")
    assert ends[4] == Outcome(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_no_further_run_begins(pool_of, number):
    pool = pool_of("waits")
    view, began = RunsView(pool.jobs, Console(file=io.StringIO())), []
    view_hear = view.hear

    def hear(job, event):
        view_hear(job, event)
        began.extend([job.seed] * (event["event"] == "begin"))
        if len(began) == 3:  # the first has ended, and the third taken its place
            os.kill(os.getpid(), number)
            began.append(-1)

    view.hear = hear
    with pytest.raises(Interrupted, match=r"of 5 runs 1 finished, 2 stopped, 2 not begun") as caught:
        train_all(pool, view)
    assert caught.value.exit_code == 128 + number
    assert [*view.states.values()] == ["finished", "stopped", "stopped", "waiting", "waiting"]


def test_a_second_ctrl_c_ends_all_at_once(pool_of, monkeypatch):
    monkeypatch.setattr(progress, "ECHO", -1)  # even if it comes at once
    pool, processes = pool_of("deaf"), []

    def hear(job, event):
        if event["event"] == "begin":
            processes.append(pool.running[job.words].process)
        if len(processes) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    pool.hear = hear
    with pytest.raises(KeyboardInterrupt):
        pool.run()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def test_a_command_alone_tells_its_end(pool_of):
    assert run_command(["finishes", "0"]) == Outcome(0)
    assert run_command(["dies", "3"]) == Outcome(2, "no such GPU.")


# --- how many at once ---------------------------------------------------------------------------------


def specs(count, experiment="cifar10-resnet20"):
    return [catalogue.derive(catalogue.find(experiment))] * count


@pytest.mark.parametrize(
    ("experiment", "count", "device", "cores", "memory", "jobs"),
    [
        ("cifar10-resnet20", 1, "cpu", 4, 16, 1),
        ("cifar10-resnet20", 3, "cpu", 4, 16, 3),
        ("cifar10-resnet20", 9, "cpu", 4, 16, 4),
        ("cifar10-resnet20", 9, "mps", 8, 16, 1),
        ("imagenet-resnet18", 9, "cpu", 16, 128, 1),
        ("cifar10-resnet110", 9, "cpu", 4, 5, 2),
        ("cifar10-resnet110", 9, "cpu", 4, 1, 1),
    ],
)
def test_as_many_as_the_machine_has_room_for(experiment, count, device, cores, memory, jobs, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: cores)
    monkeypatch.setattr(local, "free_memory", lambda: memory * GB)
    assert choose_places(None, specs(count, experiment), device) == [""] * jobs
    assert choose_places(8, specs(count, experiment), device) == [""] * min(8, count)


def test_what_sets_the_number_besides(monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 4)
    monkeypatch.setattr(local, "free_memory", lambda: 5 * GB)
    assert len(choose_places(None, specs(9, "cifar10-resnet110"), "cpu", micro_batch=8)) == 4
    assert choose_places(None, [*specs(2), *specs(1, "imagenet-resnet18")], "cpu") == [""]
    assert choose_places(None, [], "cpu") == [""]
    with pytest.raises(UsageError, match="--jobs must be at least 1, not 0"):
        choose_places(0, specs(3), "cpu")


@pytest.mark.parametrize(
    ("experiment", "free", "mps", "device", "jobs", "places"),
    [
        ("cifar10-resnet20", {"a": 80, "b": 80}, False, "auto", None, "ab"),
        ("cifar10-resnet20", {"a": 80, "b": 80}, True, "cuda", None, "ababababa"),
        ("cifar10-resnet20", {"a": 80}, True, "cuda", None, "aaaaaa"),
        ("cifar10-resnet20", {"a": 3, "b": 80}, True, "cuda", None, "ababbbbb"),
        ("cifar10-resnet20", {"a": 0, "b": 80}, False, "cuda", None, "b"),  # somebody fills the first
        ("cifar10-resnet20", {"a": 0, "b": 1}, False, "cuda", None, "b"),
        ("cifar10-resnet1202", {"a": 80, "b": 20}, True, "cuda", None, "abaaaa"),
        ("cifar10-resnet20", {"a": None, "b": 80}, True, "cuda", None, "abbbbbb"),
        ("cifar10-resnet20", {"a": 80, "b": 80}, False, "cuda", 5, "ababa"),
        ("imagenet-resnet50", {"a": 80, "b": 80}, True, "cuda", None, "ab"),
        # One that is named is taken alone, by the command itself.
        ("cifar10-resnet20", {"a": 1, "b": 4}, True, "cuda:1", None, ["", "", ""]),
        ("cifar10-resnet20", {"a": 1, "b": 4}, True, "cuda:0", None, [""]),
        ("cifar10-resnet20", {"a": 1, "b": 4}, True, "cuda:7", None, [""]),
        ("cifar10-resnet20", {"a": 1, "b": 4}, True, "cuda:x", None, [""]),
    ],
)
def test_runs_are_dealt_out_to_gpus_with_room(experiment, free, mps, device, jobs, places, monkeypatch):
    monkeypatch.setattr(local, "GPU_DRIVERS", ("/dev/null",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "cores", lambda: 16)
    monkeypatch.setattr(local, "free_memory", lambda: 0)  # the host's is not asked
    monkeypatch.setattr(local, "gpus_are_shared", lambda: mps)
    monkeypatch.setattr(local, "gpus", lambda: {gpu: gb and gb * GB for gpu, gb in free.items()})
    assert choose_places(jobs, specs(9, experiment), device) == list(places)


def test_a_gpu_is_seen_without_pytorch_and_can_be_hidden(monkeypatch):
    monkeypatch.setattr(local, "GPU_DRIVERS", ("/dev/null",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (device_kind("auto"), device_kind("cpu"), device_kind("cuda:1")) == ("cuda", "cpu", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_kind("auto") != "cuda"


# --- what is told and shown ---------------------------------------------------------------------------

JOBS = [Job("digits-resnet8", seed, ()) for seed in range(5)]


def errors(top1):
    return Errors(0.5, top1, top1 / 10, 100)


def test_events_are_lines_of_json_and_a_run_without_a_listener_is_stopped_once(capsys, monkeypatch):
    monkeypatch.setattr("resrepro.training.progress.LOOK_EVERY", 0.0)
    killed, view = [], EventView(parent=os.getppid())
    view.begin("digits-resnet8", 0, 2, 10, 128)
    view.step(3, 0.1, lambda: errors(50.0))
    view.sample(Sample(4, 0.1, {"train": errors(50.0), "test": errors(60.0)}, 1000.0))
    view.say("Hello.")
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in told] == ["begin", "step", "sample", "say"]
    assert told[2]["errors"] == [50.0, 60.0]
    assert "iteration      4  lr 0.1 " in told[2]["line"]
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    view = EventView(parent=-1)
    view.step(3, 0.1, lambda: errors(50.0))
    view.step(4, 0.1, lambda: errors(50.0))
    assert killed == [signal.SIGTERM]


def test_the_table_fits_into_80_columns_and_leaves_nothing_out():
    found = [Job("cifar10-resnet1202", seed, ()) for seed in range(5)]
    view = RunsView(found, Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))
    for told in (
        {"event": "start"}, {"event": "begin", "done": 12_000, "iterations": 64_000},
        {"event": "step", "done": 12_345, "images_per_s": 123_456.0, "loss": 2.30259, "left": "10:00:00"},
        {"event": "sample", "errors": [12.34, 56.78, 90.12], "line": "a line"},
    ):  # fmt: skip
        view.hear(found[0], told)
    view.hear(found[1], {"event": "start"})
    view.end(found[2], Outcome(1, "no more disk."))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(view.picture())
    *_, first, second, summary = console.file.getvalue().splitlines()
    assert first.split() == [
        "cifar10-resnet1202", "0", "12,345/64,000", "123,456", "2.3026", "12.34", "56.78", "10:00:00",
    ]  # fmt: skip
    assert second.split() == ["cifar10-resnet1202", "1", "starting"]
    assert summary.strip() == "5 runs: 2 running, 1 failed, 2 waiting"


def test_without_a_terminal_every_line_says_whose_it_is():
    told = io.StringIO()
    view = RunsView(JOBS[:2], Console(file=told, width=200))
    with view.live:
        view.hear(JOBS[0], {"event": "start"})
        view.hear(JOBS[0], {"event": "begin", "done": 0, "iterations": 1000})
        view.hear(JOBS[1], {"event": "sample", "errors": [1.0], "line": "iteration 5"})
        view.hear(JOBS[1], {"event": "say", "text": "Warm-up over."})
        view.end(JOBS[1], Outcome(1, "it broke."))
    assert told.getvalue().splitlines() == [
        "digits-resnet8, seed 0: 1,000 iterations",
        "digits-resnet8, seed 1: iteration 5",
        "digits-resnet8, seed 1: Warm-up over.",
        "digits-resnet8, seed 1: it broke.",
    ]


# --- which runs share a command ----------------------------------------------------------------------


def shared(monkeypatch, places, free, *names, how=(None, "cuda", "lanes")):
    """The words of the commands of some nets with seeds 0, 1 and 2, on GPUs that have so much free."""
    monkeypatch.setattr(launch, "gpus", lambda: free)
    monkeypatch.setattr(launch, "choose_places", lambda *asked: places)
    monkeypatch.setattr(launch, "find_spec", lambda name: name)
    wanted = [(spec, seed) for name in names for spec in specs(1, name) for seed in range(3)]
    pool = pool_for(wanted, ["--fast"], *how)
    assert {(job.run, job.seed) for job in pool.jobs} == {(spec.experiment, seed) for spec, seed in wanted}
    return list(dict.fromkeys(job.words for job in pool.jobs))


NETS = ["cifar10-plain20", "cifar10-resnet20"]
LARGE = 80 * 2**30


def test_nets_of_one_depth_and_recipe_share_a_command_on_a_gpu(monkeypatch):
    nets = [*NETS, "cifar10-resnet56", "folder-resnet18"]
    words = shared(monkeypatch, ["GPU-1"], {"GPU-1": LARGE, "GPU-2": 2**20}, *nets)
    assert words[:2] == [
        ("train", *NETS, "--seeds", "0,1,2", "--fast"),
        ("train", "cifar10-resnet56", "--seeds", "0,1,2", "--fast"),
    ]
    assert words[2:] == [("train", "folder-resnet18", "--seed", str(seed), "--fast") for seed in range(3)]
    assert shared(monkeypatch, [""], {}, *NETS) == words[:1]


def test_a_command_has_no_more_runs_than_its_gpu_holds_and_each_gpu_is_busy(monkeypatch):
    four = [f"GPU-{number}" for number in range(4)]
    words = shared(monkeypatch, four, dict.fromkeys(four, LARGE), *NETS)
    assert [each[-2] for each in words] == ["0", "1", "2"]
    six = [*four, "GPU-4", "GPU-5"]
    assert len(shared(monkeypatch, six, dict.fromkeys(six, LARGE), *NETS)) == 6
    words = shared(monkeypatch, four[:2], dict.fromkeys(four, LARGE), *NETS, "cifar10-resnet110")
    assert [each[1:-1] for each in words] == [
        (*NETS, "--seeds", "0,1,2"),
        ("cifar10-resnet110", "--seeds", "0,1"), ("cifar10-resnet110", "--seed", "2"),
    ]  # fmt: skip
    for room, seeds in ((4, ["0,1", "2"]), (1, ["0", "1", "2"] * 2), (0, ["0", "1", "2"] * 2)):
        narrow = {"GPU-1": local.BASE_BYTES + room * local.LAYER_BYTES * 20 * 128}
        assert [each[-2] for each in shared(monkeypatch, ["GPU-1"], narrow, *NETS)] == seeds


@pytest.mark.parametrize(
    ("how", "pays"),
    [
        ((None, "cuda", "auto", None, True), True), ((3, "cuda", "auto", None, True), False),
        ((None, "cuda", "auto", 64, True), False), ((None, "cuda", "auto"), False),
        ((None, "cuda", "graph", None, True), False), ((3, "cuda", "lanes"), True),
        ((None, "cpu", "auto", None, True), False),
    ],
)  # fmt: skip
def test_when_runs_share_commands(monkeypatch, how, pays):
    assert (len(shared(monkeypatch, ["GPU-1"], {}, *NETS, how=how)) == 1) == pays
