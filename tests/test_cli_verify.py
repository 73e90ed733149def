"""`resrepro verify` as a person types it: exit codes and the lines it prints."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from conftest import write_ensemble

pytestmark = pytest.mark.usefixtures("empty_folder")
RUN = Path("runs/cifar10-resnet20/seed0")


def test_whole_records_take_a_line_each_and_exit_with_0(make_run: Callable[..., Path]) -> None:
    make_run(Path("runs"), "cifar10-resnet20")
    pair = [make_run(Path("results"), "imagenet-resnet18", seed) for seed in (0, 1)]
    write_ensemble(Path("results"), pair, 25.0, 8.0)
    code, out, err = call("verify")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        f"{RUN}: whole (complete, 64,000 of 64,000 iterations; no checkpoint: published records have none)"
    )
    assert len(out.splitlines()) == 5
    assert out.splitlines()[-1] == "3 runs and 1 ensemble whole, 0 broken."


def test_a_broken_run_is_told_with_what_is_still_of_use_and_exits_with_1(
    make_run: Callable[..., Path],
) -> None:
    make_run(Path("runs"), "cifar10-resnet20")
    make_run(Path("runs"), "cifar10-resnet20", 1)
    (RUN / "metrics.csv").unlink()
    code, out, err = call("verify", "runs")
    assert (code, err) == (1, "")
    assert out.splitlines()[:3] == [
        f"{RUN}: broken",
        "  broken: metrics.csv is missing.",
        "  still of use: no table can take it; eval has no net to measure; "
        "training can only start anew, with --fresh.",
    ]
    assert out.splitlines()[-1] == "1 run whole, 1 broken."


def test_in_a_terminal_lines_are_wrapped_below_their_beginning(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    make_run(Path("runs"), "cifar10-resnet20", status="partial", curve=[(1, 50.0, 50.0)])
    _, out, _ = call("verify")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"{RUN}: broken (partial, 1 of 64,000 iterations)"
    assert lines[1] == "  broken: checkpoint.pt is missing."
    assert lines[2].startswith("  still of use: ")
    assert lines[3].startswith("  ")


def test_a_name_cannot_steer_the_terminal_or_be_taken_for_markup(make_run: Callable[..., Path]) -> None:
    made = make_run(Path("runs"), "cifar10-resnet20")
    made.parent.rename("runs/[red]\x1b[2J")
    code, out, _ = call("verify", "runs")
    assert code == 0
    assert out.startswith("runs/[red]\\x1b[2J/seed0: whole")


@pytest.mark.parametrize("words", [(), ("runs",), ("nowhere",), (".",)])
def test_without_a_run_one_sentence_says_what_to_name(words: tuple[str, ...]) -> None:
    Path("runs").mkdir()
    code, out, err = call("verify", *words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "name a run" in err


def test_help_comes_without_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from resrepro.cli import app\n"
        "result = CliRunner().invoke(app, ['verify', '--help'])\n"
        "assert result.exit_code == 0 and '--data' in result.stdout, result.output\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
