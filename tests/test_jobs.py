"""Several runs at once: the same records, ends that are told, signals that reach all."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import call
from rich.console import Console
from runs import checkpoint_of, differences, json_of, result_of

from resrepro.cli.many import JobsView, _as_error, train_many
from resrepro.errors import Diverged, Interrupted, RecordError, ResreproError, UsageError
from resrepro.launch import jobs
from resrepro.launch.capacity import this_machine, threads_each
from resrepro.launch.job import (
    Began,
    Failed,
    Finished,
    Job,
    Order,
    Reporter,
    Said,
    Sampled,
    Stepped,
    Stopped,
    outcome_of,
)
from resrepro.launch.jobs import Crew
from resrepro.records.locking import locked
from resrepro.training.measure import Errors
from resrepro.training.progress import Interrupts, Sample, Watcher
from resrepro.training.session import train

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="forks with torch loaded")
DIGITS: dict[str, Any] = {"experiment": "digits-resnet8", "eval_every": 2, "lr": 0.01}
JOBS = [Job("digits-resnet8", seed) for seed in range(5)]
LONG = 120  # seconds that nothing here needs


def command(runs: Path, iterations: int, seeds: str, *more: str) -> list[str]:
    """A net with several seeds; the net is named twice, which makes no run twice."""
    words = f"train digits-resnet8 digits-resnet8 --seeds {seeds} --iterations {iterations} --runs {runs}"
    words += " --eval-every 2 --set lr=0.01 --device cpu"
    return [sys.executable, "-m", "resrepro", *words.split(), *more]


def told_by(words: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@contextmanager
def started(words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A command under way, which does not outlive a test that fails."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def sampled(runs: Path) -> list[Path]:
    """The folders of the runs that have measured their errors."""
    curves = runs.glob("*/seed*/metrics.csv")
    return sorted(each.parent for each in curves if "\n2," in each.read_text())


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- whole commands ---------------------------------------------------------------------------------


def test_each_run_is_that_which_is_trained_alone_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    alone = [train(runs=tmp_path / "alone", seed=seed, threads=1, iterations=4, **DIGITS) for seed in (0, 1)]
    here = tmp_path / "here"
    folders = [here / folder.parent.name / folder.name for folder in alone]
    with locked(folders[0].with_name("seed2")):
        code, stdout, stderr = told_by(command(here, 4, "2,0-1", "--jobs", "2", "--threads", "1"))
    assert code == 1
    assert "1 of 3 runs failed" in stderr
    failures = [line for line in stdout.splitlines() if line.startswith("digits-resnet8, seed 2: ")]
    assert all("is being trained by" in line for line in failures)
    assert len(failures) == 2  # when it happens, and at the end
    for one, other in zip(folders, alone, strict=True):
        assert differences(one, other) == []
        assert json_of(one, "env")["threads"] == 1
        assert f"Record: {one}" in stdout
    assert "digits-resnet8, seed 1: iteration      4" in stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_all_with_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    goes_on = number == signal.SIGINT  # the slow variant
    iterations = 200 if goes_on else 20_000
    words = command(tmp_path, iterations, "0-2", "--jobs", "2")
    with started(words) as process:
        until(lambda: len(sampled(tmp_path)) == 2)
        folders = [sampled(tmp_path)[0].with_name(f"seed{seed}") for seed in range(3)]
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 128 + number
    assert "of 3 runs 2 stopped, 1 not begun): the same command goes on" in stderr
    assert stdout.count("checkpoint written") == 2
    assert all(0 < checkpoint_of(each)["iteration"] < iterations for each in folders[:2])
    assert [json_of(each, "result")["status"] for each in folders[:2]] == ["partial"] * 2
    assert not folders[2].exists()
    if goes_on:
        code, stdout, _ = told_by(words)
        assert code == 0
        assert [result_of(each)["iteration"] for each in folders] == [200] * 3
        assert stdout.count("Going on from iteration") == 2


def test_what_the_machine_cannot_do_for_any_run_is_told_as_such() -> None:
    for options, loading, part in (
        ({"threads": 0}, (), "--threads"),
        ({"device": "abacus"}, (), "no device"),
        ({"device": "cpu", "precision": "tf32"}, (), "tf32"),
        ({"checkpoint_every": "often"}, (), "often"),
        ({}, (-1,), "--workers"),
    ):
        outcome = outcome_of(JOBS[0], Order(options, loading), None, Watcher())
        assert isinstance(outcome, Failed)
        assert (outcome.of_all, outcome.kind, part in outcome.sentence) == (True, UsageError, True)


def test_errors_of_one_run_are_outcomes_and_those_that_nobody_expects_have_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    order = Order({"runs": tmp_path / "file", "device": "cpu", "iterations": 2})
    outcome = outcome_of(JOBS[0], order, None, Watcher())
    assert isinstance(outcome, Failed)
    assert (outcome.of_all, outcome.kind, outcome.trace) == (False, RecordError, "")
    outcome = outcome_of(JOBS[0], Order({"device": "cpu", "seed": 3}), None, Watcher())  # given twice
    assert isinstance(outcome, Failed)
    assert "TypeError" in outcome.sentence
    assert "Traceback" in outcome.trace


@pytest.mark.slow
def test_what_no_run_can_have_is_refused_before_any_begins(tmp_path: Path) -> None:
    code, stdout, stderr = told_by(command(tmp_path / "runs", 4, "0-5", "--jobs", "2", "--threads", "0"))
    assert (code, stdout) == (2, "")
    assert stderr == "error: --threads must be at least 1, not 0.\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_where_forking_is_not_safe_each_process_loads_its_own(tmp_path: Path) -> None:
    assert "torch" in sys.modules
    code, stdout, _ = call(*command(tmp_path, 4, "0-1", "--jobs", "2")[3:])
    assert code == 0
    assert stdout.count("Record: ") == 2
    share = threads_each(2, this_machine())
    alone = train(runs=tmp_path / "alone", seed=1, threads=share, iterations=4, **DIGITS)
    assert differences(tmp_path / alone.parent.name / "seed1", alone) == []


@pytest.mark.slow
def test_runs_that_diverge_are_counted_and_kept(tmp_path: Path) -> None:
    words = [word.replace("lr=0.01", "lr=1e30") for word in command(tmp_path, 4, "0-1", "--jobs", "2")]
    code, stdout, stderr = told_by(words)
    assert code == 1
    assert "2 of 2 runs diverged; their records are kept." in stderr
    assert stdout.count("no longer finite") == 2
    assert [json_of(each, "result")["status"] for each in tmp_path.glob("*/seed*")] == ["diverged"] * 2


def children_of(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in told.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_when_the_first_process_is_killed_the_others_notice_and_stop_with_a_checkpoint(
    tmp_path: Path,
) -> None:
    words = command(tmp_path, 20000, "0-1", "--jobs", "2")
    with started(words) as process:
        until(lambda: len(sampled(tmp_path)) == 2)
        children = children_of(process.pid)
        process.kill()
    assert len(children) == 2
    until(lambda: not any(is_running(pid) for pid in children))
    for folder in tmp_path.glob("*/seed*"):
        assert checkpoint_of(folder)["iteration"] == result_of(folder)["iteration"] >= 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_a_run_whose_process_is_killed_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    words = command(tmp_path, 40, "0-2", "--jobs", "2")
    with started(words) as process:
        until(lambda: any(tmp_path.glob("*/seed*/metrics.csv")))
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 1
    assert "1 of 3 runs failed" in stderr
    assert stdout.count("was killed by SIGKILL") == 2
    assert stdout.count("Record: ") == 2


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may wait for in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_with_torch_loaded_no_process_is_forked() -> None:
    assert not jobs.starts_by_forking()


# --- who trains next, and how it ends, with work that takes no time --------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Crew]]:
    """A crew of forked processes that do `work` instead of training."""
    before = {number: signal.getsignal(number) for number in jobs.SIGNALS}

    def make(work: Callable[..., None], size: int = 2, count: int = 5) -> Crew:
        monkeypatch.setattr(jobs, "work", work)
        monkeypatch.setattr(jobs, "starts_by_forking", lambda: True)
        return Crew(JOBS[:count], size, Order({}), {})

    yield make
    assert multiprocessing.active_children() == []
    assert {number: signal.getsignal(number) for number in jobs.SIGNALS} == before


def finishing(job: Job, order: Order, dataset: Any, pipe: Any, parent: int) -> None:
    pipe.send(Said("here"))
    pipe.send(Finished(Path(str(job.seed))))


def waiting(job: Job, order: Order, dataset: Any, pipe: Any, parent: int) -> None:
    """Stop at a signal as a run does; the first job ends by itself."""
    with Interrupts() as interrupts, interrupts.patiently():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, jobs.SIGNALS)
        pipe.send(Began(0, 1))
        while not interrupts.received and job.seed:
            time.sleep(0.01)
        pipe.send(Stopped("stopped.", interrupts.received) if job.seed else Finished(Path("0")))


@LINUX
def test_a_free_process_takes_the_next_run_and_never_are_there_more_than_asked(quick: Any) -> None:
    crew, heard, most = quick(finishing), [], []

    def hear(job: Job, told: object) -> None:
        heard.append((job.seed, told))
        most.append(len(crew.active))

    crew.hear = hear
    crew.train()
    assert [seed for seed, told in heard if told is None] == [0, 1, 2, 3, 4]
    assert crew.outcomes == {job: Finished(Path(str(job.seed))) for job in JOBS}
    for seed in range(5):
        assert [told for whose, told in heard if whose == seed] == [
            None, Said("here"), Finished(Path(str(seed))),
        ]  # fmt: skip
    assert max(most) == 2


@LINUX
def test_processes_that_die_in_whatever_way_are_told_and_stop_no_other(quick: Any) -> None:
    def work(job: Job, order: Order, dataset: Any, pipe: Any, parent: int) -> None:
        if job.seed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.seed == 1:
            os._exit(7)
        if job.seed == 2:  # in the middle of a word
            os.write(pipe.fileno(), b"\0\0\0\xff half")
            os._exit(0)
        finishing(job, order, dataset, pipe, parent)

    crew = quick(work)
    crew.train()
    told = {job.seed: getattr(end, "sentence", "") for job, end in crew.outcomes.items()}
    assert "killed by SIGKILL" in told[0]
    assert "exit code 7" in told[1]
    assert "exit code 0" in told[2]
    assert (told[3], told[4]) == ("", "")


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_no_further_run_begins(quick: Any, number: signal.Signals) -> None:
    crew = quick(waiting)
    began: list[int] = []

    def hear(job: Job, told: object) -> None:
        began.extend([job.seed] * isinstance(told, Began))
        if len(began) == 3 and told == Began(0, 1):  # the first has ended, and the third taken its place
            os.kill(os.getpid(), number)

    crew.hear = hear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resrepro.cli.many.JobsView", lambda jobs: Silent(crew))
        with pytest.raises(Interrupted, match=r"of 5 runs 1 finished, 2 stopped, 2 not begun") as caught:
            train_many(crew)
    assert caught.value.exit_code == 128 + number
    stopped = Stopped("stopped.", number)
    assert crew.outcomes == {JOBS[0]: Finished(Path("0")), JOBS[1]: stopped, JOBS[2]: stopped}
    assert list(crew.waiting) == JOBS[3:]


class Silent:
    """A view that leaves a crew's own ears alone."""

    def __init__(self, crew: Crew) -> None:
        self.hear, self.draw = crew.hear, lambda: None

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@LINUX
def test_a_second_ctrl_c_ends_all_at_once(quick: Any) -> None:
    def deaf(job: Job, order: Order, dataset: Any, pipe: Any, parent: int) -> None:
        pipe.send(Began(0, 1))
        time.sleep(LONG)

    crew = quick(deaf)
    crew.hear = lambda job, told: os.kill(os.getpid(), signal.SIGINT) if told == Began(0, 1) else None
    processes = []
    with suppress(KeyboardInterrupt):
        try:
            crew.train()
        finally:
            processes = [worker.process for worker in crew.active.values()]
    assert len(processes) == 2
    for process in processes:
        process.join(LONG)
        assert process.exitcode == -signal.SIGKILL


@LINUX
def test_what_holds_for_all_is_an_error_of_the_command(quick: Any) -> None:
    def refused(job: Job, order: Order, dataset: Any, pipe: Any, parent: int) -> None:
        if job.seed:
            waiting(job, order, dataset, pipe, parent)
        else:
            pipe.send(Failed("no such GPU.", UsageError, of_all=True))

    crew = quick(refused)
    with pytest.raises(UsageError, match="no such GPU"):
        crew.train()
    assert crew.outcomes == {}


# --- what is told and shown ------------------------------------------------------------------------


def errors(top1: float) -> Errors:
    return Errors(0.5, top1, top1 / 10, 100)


def test_a_reporter_tells_of_steps_only_to_those_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrepro.training.progress.LOOK_EVERY", 0.0)
    for looks in (True, False):
        told: list[object] = []
        reporter = Reporter(told.append, os.getppid(), looks)
        reporter.begin("digits-resnet8", 0, 2, 10, 128)
        reporter.step(3, 0.1, lambda: errors(50.0))
        reporter.sample(Sample(4, 0.1, {"train": errors(50.0), "test": errors(60.0)}, 1000.0))
        reporter.say("Hello.")
        kinds = [Began, *([Stepped] if looks else []), Sampled, Said]
        assert [type(each) for each in told] == kinds
        sampled = told[-2]
        assert isinstance(sampled, Sampled)
        assert sampled.errors == {"train": 50.0, "test": 60.0}
        assert "iteration      4  lr 0.1 " in sampled.line


def test_a_reporter_whose_listener_has_died_asks_the_run_to_stop_once() -> None:
    reporter = Reporter(lambda told: None, -1, True)
    with Interrupts() as interrupts, interrupts.patiently():
        for _ in range(2):
            reporter.step(1, 0.1, lambda: errors(50.0))
        assert interrupts.received == signal.SIGTERM
    assert reporter.alone


def view_of(width: int, height: int, count: int = 5) -> tuple[JobsView, list[Job]]:
    found = [Job("cifar10-resnet1202", seed) for seed in range(count)]
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    return JobsView(found, console), found


def shown(view: JobsView) -> list[str]:
    console = Console(file=io.StringIO(), width=view.console.width, color_system=None)
    console.print(view.picture())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_table_fits_into_80_columns_and_leaves_nothing_out() -> None:
    view, found = view_of(80, 24)
    view.hear(found[0], None)
    view.hear(found[0], Began(12_000, 64_000))
    view.hear(found[0], Stepped(12_345, 123_456.0, 36_000.0))
    view.hear(found[0], Sampled({"train": 12.34, "val": 56.78, "test": 90.12}, "a line"))
    view.hear(found[1], None)
    view.hear(found[2], Failed("no more disk."))
    lines = shown(view)
    row = lines[1].split()
    assert row == [
        "cifar10-resnet1202", "0", "running", "12,345/64,000", "123,456", "12.34", "56.78", "10:00:00",
    ]  # fmt: skip
    assert [line.split()[2] for line in lines[2:6]] == ["starting", "failed", "waiting", "waiting"]
    assert lines[6].strip() == "5 runs: 1 running, 1 starting, 1 failed, 2 waiting"
    assert "…" not in "".join(lines)


def test_of_more_runs_than_lines_those_that_run_are_shown() -> None:
    view, found = view_of(80, 10, 30)
    for job in (found[3], found[29]):
        view.hear(job, Began(0, 100))
    seeds = [line.split()[1] for line in shown(view)[1:-1]]
    assert seeds == ["0", "1", "2", "3", "4", "29"]


def test_without_a_terminal_every_line_says_whose_it_is() -> None:
    told = io.StringIO()
    view = JobsView(JOBS[:2], Console(file=told, width=200))
    with view:
        view.hear(JOBS[0], None)
        view.hear(JOBS[0], Began(0, 1000))
        view.hear(JOBS[1], Sampled({"train": 1.0}, "iteration 5"))
        view.hear(JOBS[1], Said("Warm-up over."))
        view.hear(JOBS[1], Failed("it broke."))
        view.draw()
    assert told.getvalue().splitlines() == [
        "digits-resnet8, seed 0: 1,000 iterations",
        "digits-resnet8, seed 1: iteration 5",
        "digits-resnet8, seed 1: Warm-up over.",
        "digits-resnet8, seed 1: it broke.",
    ]


def test_the_error_of_the_whole_follows_from_those_of_its_parts() -> None:
    view = JobsView(JOBS, Console(file=io.StringIO()))
    usage, diverged, other = (Failed("x", kind) for kind in (UsageError, Diverged, ResreproError))
    stopped = Stopped("by hand.", 15)
    for ends, count, kind in (
        ([diverged, diverged], 3, Diverged),
        ([usage, usage], 2, UsageError),
        ([usage, usage], 3, ResreproError),
        ([usage, diverged], 2, ResreproError),
        ([other], 1, ResreproError),
        ([stopped], 1, ResreproError),
    ):
        assert type(_as_error(dict(zip(JOBS, ends, strict=False)), count, view)) is kind
