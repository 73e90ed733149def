"""Jobs of a cluster without one: what sbatch is told, a job as submitit runs and requeues it, and status."""

import json
import os
import signal
import sys

import pytest
from commands import call
from conftest import write_run
from submitit.core.submission import process_job

from resrepro.errors import ResreproError, UsageError
from resrepro.launch import slurm
from resrepro.launch.slurm import QueuedRun, QueueError, jobs_of, submit

NET = "digits-resnet8"
RUN = f"{NET}+iterations=6"


@pytest.fixture
def sbatch(queue):
    """A queue that takes jobs as number 17, and is never asked by submitit what became of them."""
    queue.answers("sbatch", "Submitted batch job 17\n")
    for program in ("srun", "scontrol", "sacct"):
        queue.answers(program)
    return queue


@pytest.fixture
def on_node(monkeypatch):
    """Runs job 17 as submitit does on a node, from its folder."""
    told = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "1"}
    for key, value in (told | {"SUBMITIT_FOLDER": ""}).items():  # the last is set by submitit itself
        monkeypatch.setenv(key, value)
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield process_job
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def place_in(runs, run=RUN, seed=0):
    return runs / "slurm" / run / f"seed{seed}"


def line(job, state, where, place):
    """What squeue says of a job."""
    return f"{job}|{state}|12:30|{where}|{place}/submission_file_ab12.sh\n"


def note(runs, run, seed, **changed):
    """A lock as another process leaves it."""
    lock = runs / run / f".seed{seed}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    told = {"pid": 4321, "host": "node3", "since": "2026-11-24 09:12"} | changed
    lock.with_suffix(".lock.json").write_text(json.dumps(told))


# --- submitting -----------------------------------------------------------------------------------------


def test_the_command_submits_a_job_for_each_run_and_says_how_to_look_after_them(tmp_path, sbatch):
    words = ["train", NET, "--seeds", "0-1", "--iterations", 6, "--runs", tmp_path, "--threads", 3, "--fast"]
    code, told, error = call(*words, "--launcher", "slurm", "--slurm", "partition=gpu", "--slurm", "gpus=1",
                             "--slurm", "time=1-12", "--slurm", "exclusive=")  # fmt: skip
    assert code == 0, error
    run = f"{RUN}+precision=bf16"  # in a queue --fast is that of newer hardware
    assert told.splitlines() == [
        f"{run}, seed 0: job 17", f"{run}, seed 1: job 17", f"Next: resrepro status --runs {tmp_path}",
    ]  # fmt: skip
    (script,) = place_in(tmp_path, run).glob("*_submission.sh")
    assert script.read_text().count("--job-name=") == script.read_text().count("--job-name=resrepro") == 1
    assert set(script.read_text().splitlines()) >= {
        "#SBATCH --partition=gpu", "#SBATCH --gpus=1", "#SBATCH --time=1-12", "#SBATCH --exclusive",
        "#SBATCH --cpus-per-task=3", "#SBATCH --requeue", "#SBATCH --signal=USR2@90",
    }  # fmt: skip


def test_what_waits_or_runs_already_is_not_submitted_again(tmp_path, sbatch):
    place_in(tmp_path).mkdir(parents=True)
    sbatch.answers("squeue", line("16", "RUNNING", "node3", place_in(tmp_path)))
    wanted = [QueuedRun(RUN, seed, ()) for seed in (0, 1)]
    done = list(submit(wanted, tmp_path, {}, None))
    assert [(str(run), job, there and there.state) for run, job, there in done] == [
        (f"{RUN}, seed 0", "16", "RUNNING"), (f"{RUN}, seed 1", "17", None),
    ]  # fmt: skip
    assert len(sbatch.asked("sbatch")) == 1


def test_what_cannot_be_submitted_is_told_in_a_sentence(tmp_path, sbatch, monkeypatch):
    wanted = [QueuedRun(RUN, 0, ())]
    sbatch.answers("sbatch", trouble="sbatch: error: invalid partition specified: nowhere", code=1)
    with pytest.raises(ResreproError, match=r"sbatch refused the jobs: .*nowhere") as caught:
        list(submit(wanted, tmp_path, {}, None))
    assert "\n" not in str(caught.value)
    (sbatch.folder / "srun").unlink()
    monkeypatch.setenv("PATH", str(sbatch.folder))
    with pytest.raises(UsageError, match="submit from a login node"):
        list(submit(wanted, tmp_path, {}, None))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match="pip install submitit"):
        list(submit(wanted, tmp_path, {}, None))


# --- the queue ------------------------------------------------------------------------------------------


def test_the_jobs_of_a_runs_folder_are_known_by_their_scripts(tmp_path, sbatch):
    here, there = tmp_path / "runs", tmp_path / "others"
    assert jobs_of(here) == {}
    assert sbatch.asked("squeue") == []  # where nothing was submitted nothing is asked
    place_in(here).mkdir(parents=True)
    sbatch.answers("squeue", "".join((
        line("7", "RUNNING", "node3", place_in(here)),
        line("8", "PENDING", "(Priority)", place_in(here, seed=1)),
        line("9", "RUNNING", "node3", place_in(there)), "10_[1-9]|PENDING|0:00|(None)|/home/a|b.sh\n",
    )))  # fmt: skip
    assert {place: str(job) for place, job in jobs_of(here).items()} == {
        (RUN, 0): "job 7 on node3, 12:30", (RUN, 1): "job 8: Priority",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"trouble": "slurm_load_jobs error: Unable to contact", "code": 1}, "squeue failed: slurm_load_"),
        ({"seconds": 5}, "squeue cannot be asked"),
    ],
)
def test_a_queue_that_does_not_answer_is_told(tmp_path, sbatch, monkeypatch, answer, sentence):
    monkeypatch.setattr(slurm, "PATIENCE", 0.5)
    place_in(tmp_path).mkdir(parents=True)
    sbatch.answers("squeue", **answer)
    with pytest.raises(QueueError, match=sentence):
        jobs_of(tmp_path)


# --- on a node ------------------------------------------------------------------------------------------


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
log = Path(sys.argv[1])
with log.open("a") as file:
    print(*sys.argv[2:], file=file)
if sys.argv[2] == "train" and "waits" in sys.argv:
    signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.kill(os.getppid(), int(sys.argv[-1]))  # as if Slurm had sent it to the job
    time.sleep(60)
sys.exit(1 if "fails" in sys.argv else 0)
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A program in place of ours; returns what it was asked, a line a command."""
    log = tmp_path / "asked"
    monkeypatch.setattr(slurm, "COMMAND", (sys.executable, "-c", PROGRAM, str(log)))
    return lambda: log.read_text().splitlines()


def submitted(runs, *words, measures=()):
    wanted = QueuedRun(RUN, 0, ("train", *words), tuple(("eval", what) for what in measures))
    list(submit([wanted], runs, {}, None))
    return place_in(runs)


def test_a_job_measures_what_is_missing_once_its_run_is_trained(tmp_path, sbatch, on_node, asked):
    on_node(submitted(tmp_path, measures=("responses", "ten_crop")))
    assert asked() == ["train", "eval responses", "eval ten_crop"]
    with pytest.raises(SystemExit) as caught:
        on_node(submitted(tmp_path, "fails", measures=("responses",)))
    assert (caught.value.code, asked()[3:]) == (1, ["train fails"])


@pytest.mark.parametrize(
    ("number", "state", "requeued"),
    [
        (signal.SIGUSR2, "RUNNING", True),  # before the time limit
        (signal.SIGTERM, "RUNNING", True),  # preempted, with a grace time
        (signal.SIGTERM, "COMPLETING", False),  # preempted without one, or cancelled
    ],
)
def test_a_job_that_is_to_go_lets_its_command_end_and_is_requeued_where_slurm_has_not_decided(
    tmp_path, sbatch, on_node, asked, number, state, requeued
):
    place = submitted(tmp_path, "waits", str(number.value))
    sbatch.answers("squeue", line("17", state, "node3", place))
    with pytest.raises(SystemExit):
        on_node(place)
    assert sbatch.asked("scontrol") == ["requeue 17 "] * requeued
    assert len(asked()) == 1


def test_a_job_that_begins_again_takes_the_lock_of_its_last_node(
    tmp_path, sbatch, on_node, asked, monkeypatch
):
    place = submitted(tmp_path, "--fresh")
    on_node(place)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    on_node(place)
    assert asked() == ["train --fresh", "train --break-lock"]


# --- status ---------------------------------------------------------------------------------------------


def test_status_tells_of_every_run_here_and_in_the_queue(tmp_path, sbatch):
    partly = {"iterations": 6, "curve": [(4, 50.0, 60.0)]}
    write_run(tmp_path, NET, 0, iterations=6)
    write_run(tmp_path, NET, 1, status="diverged", **partly)
    for seed in (2, 3, 4):
        write_run(tmp_path, NET, seed, **partly)
    note(tmp_path, RUN, 3, pid=os.getpid(), host=os.uname().nodename)
    note(tmp_path, RUN, 8)  # begun on another host
    note(tmp_path, RUN, 9, pid=2**22 + 1, host=os.uname().nodename)  # left behind before it began
    place_in(tmp_path, seed=7).mkdir(parents=True)
    sbatch.answers("squeue", "".join((
        line("7", "RUNNING", "node3", place_in(tmp_path, seed=4)),
        line("8", "PENDING", "(Priority)", place_in(tmp_path, seed=6)),
        line("5", "RUNNING", "node3", place_in(tmp_path, seed=0)),  # it is being measured
    )))  # fmt: skip
    code, told, _ = call("status", "--runs", tmp_path)
    assert code == 0
    assert [" ".join(each.split()) for each in told.splitlines()] == [
        RUN,
        "seed 0 finished 6/6 5.00 % 10.00 % job 5 on node3, 12:30",
        "seed 1 diverged 4/6 50.00 % 60.00 %",
        "seed 2 interrupted 4/6 50.00 % 60.00 %",
        f"seed 3 running 4/6 50.00 % 60.00 % process {os.getpid()} on {os.uname().nodename}",
        "seed 4 running 4/6 50.00 % 60.00 % job 7 on node3, 12:30",
        "seed 6 waiting job 8: Priority",
        "seed 7 failed",  # in lines of its own where it is long
        f"log in {place_in(tmp_path, seed=7)}",
        "seed 8 starting process 4321 on node3",
        "Errors: training, then test or validation, as last measured.",
        "8 runs: 2 running, 1 starting, 1 waiting, 1 interrupted, 1 failed, 1 diverged, 1 finished.",
        "The command that started a run goes on with it.",
    ]


def test_without_a_queue_the_rest_is_shown(tmp_path, sbatch, monkeypatch):
    (sbatch.folder / "squeue").unlink()
    monkeypatch.setenv("PATH", str(sbatch.folder))
    write_run(tmp_path, NET, iterations=6)
    place_in(tmp_path).mkdir(parents=True)
    told = call("status", "--runs", tmp_path)[1]
    assert "1 run: 1 finished." in told
    assert f"Note: Only what lies in {tmp_path} is shown: squeue is not on the PATH here" in told
    assert call("status", "--runs", tmp_path / "nowhere")[1].startswith("No runs in ")
