"""The command line as people type it: exit codes, sentences, files; mostly in-process, sometimes whole."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from commands import call
from conftest import write_run

from resrepro.cli import app, changed_settings, parse_numbers, parse_seeds
from resrepro.cli.measure import parse_channels
from resrepro.cli.view import RunsView
from resrepro.errors import UsageError
from resrepro.launch.local import Job, Outcome
from resrepro.nets import build_net
from resrepro.spec.recipe import parse, whole_number

pytestmark = pytest.mark.usefixtures("empty_folder")


def sentence(code, stdout, stderr):
    """The one error sentence of a refused command, with its exit code."""
    assert "Traceback" not in stdout + stderr
    assert stderr.count("error:") == 1, stderr
    return code, stderr.removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("train --dataset digits --depth 8 --precision tf32 --device cpu", 2, "NVIDIA"),
        ("train --dataset digits --depth 8 --runs /dev/null", 1, "Choose another with --runs"),
        ("train --depth 21", 2, "nearest is 20 or 26"),
        ("train --depth 20 --shortcut A --plain", 2, "exclude each other"),
        ("train --depth 20 --shortcut D", 2, "A, B and C"),
        ("train --depth 20 --data nowhere", 1, "nowhere (--data) does not exist"),
        ("train --depth 20 --iterations 0", 2, "iterations must be at least 1"),
        ("train --depth 20 --device cuda:99", 2, "no such GPU"),
        ("train --depth 20 --device abacus", 2, "no device 'abacus'"),
        ("train --depth 20 --dataset mnist", 2, "no dataset 'mnist'"),
        ("train --depth 20 --set paint=red", 2, "no setting 'paint'"),
        ("train --depth 20 --set lr=fast", 2, "lr takes a number"),
        ("train --depth 20 --set lr", 2, "key=value"),
        ("train --depth 20 --set iterations=5 --iterations 6", 2, "iterations is given twice"),
        ("train --depth 20 --seed 1 --seeds 0-4", 2, "give one of the two"),
        ("train --depth 20 --seeds 4-1", 2, "a range goes up"),
        ("train --depth 20,x", 2, "such as 20 or 20,56, not 'x'"),
        ("train --depth 20 --resume", 2, "same command goes on with a run that was stopped: leave --resume"),
        ("reproduce table6 --continue", 2, "leave --continue out"),
        ("train --depth 20 --epochs 2", 2, "told as --iterations: an epoch of CIFAR-10 is 391 of them"),
        ("train --depth 20 --lr 0.05", 2, "a setting of the recipe: --set lr=0.05"),
        ("train --depth 20 --weight-decay=1e-3 --plain", 2, "--set weight_decay=1e-3"),
        ("reproduce table6 --momentum --plain", 2, "--set momentum=.."),
        ("train --depth 20 --fast --precision bf16", 2, "leave one of the two out"),
        ("train --depth 20 --engine always", 2, "auto, eager, kernels, graph or lanes, not 'always'"),
        ("train --depth 20 --threads 0", 2, "--threads must be at least 1"),
        ("train --depth 20 --seeds 0-1 --jobs 0", 2, "--jobs must be at least 1"),
        ("train", 2, "which net?"),
        ("train cifar99-resnet20", 2, "no experiment 'cifar99-resnet20'"),
        ("train cifar10-resnet20 --plain", 2, "already says"),
        ("compare table1 table66", 2, "table6, table6-digits, figure1"),
        ("compare --runs nowhere", 2, "no runs folder nowhere"),
        ("claims 28", 2, "numbered from 1 to 27"),
        ("plot figure3 figure66", 2, "figure66"),
        ("plot figure6", 1, "resrepro train"),
        ("eval nowhere.pt", 1, "no checkpoint nowhere.pt"),
        ("publish nowhere", 1, "is missing"),
        ("bench --depth 21", 2, "nearest is 20 or 26"),
        ("bench --modes sloth", 2, "of usual, default, fast, usual-fast, eager, "),
        ("bench --lanes 0", 2, "--lanes takes numbers of nets, such as 1,5,10, not '0'"),
        ("reproduce figure1 --split 45k5k --dataset digits", 2, "45k/5k split is one of CIFAR-10"),
        ("reproduce figure1 --launcher cloud", 2, "--launcher takes local or slurm, not 'cloud'"),
        ("reproduce figure1 --slurm a=b", 2, "--slurm is for --launcher slurm"),
        ("reproduce figure1 --launcher slurm --slurm a", 2, "--slurm takes key=value, such as partition=gpu"),
        ("reproduce figure1 --seeds 0", 2, "--seeds takes how many, or which"),
        ("reproduce figure1 --fast --set precision=fp16", 2, "--fast chooses the precision itself"),
        ("reproduce figure1 --without cifar10-resnet20", 2, "cifar10-resnet20 is no part of what is asked"),
        ("reproduce demo --jobs 0", 2, "--jobs must be at least 1"),
    ],
)
def test_a_bad_request_gets_one_sentence_and_leaves_nothing_behind(words, code, part, tmp_path):
    found, told = sentence(*call(words))
    assert (found, part in told) == (code, True), told
    assert list((tmp_path / "here").iterdir()) == []


def test_broken_records_are_named_and_the_good_ones_used():
    write_run(Path("runs"), curve=[(64000, 1.0, 8.5)])
    for seed, file, content in ((1, "metrics.csv", "iteration,loss\n1,x\n"), (2, "result.json", "{")):
        (write_run(Path("runs"), seed=seed) / file).write_text(content)
    code, stdout, stderr = call("compare")
    assert (code, "8.50 (1)" in stdout) == (0, True)
    assert re.search(r"left out: \S*seed1/metrics.csv is broken", stderr)
    assert re.search(r"left out: \S*seed2/result.json is broken", stderr)


def test_only_ones_own_runs_are_read_by_default_and_published_ones_where_they_are_named():
    write_run(Path("runs"), seed=0, curve=[(64000, 1.0, 8.0)])
    write_run(Path("results"), seed=1, curve=[(64000, 1.0, 9.0)])
    code, stdout, _ = call("compare table6")
    assert (code, "8.00 (1)" in stdout, "Runs read" in stdout) == (0, True, False)
    code, stdout, _ = call("compare table6 --runs runs --runs results")
    assert (code, "8.50±0.71" in stdout) == (0, True)
    assert "Runs read: 1 of runs and 1 of results." in stdout


@pytest.fixture(scope="module")
def long_and_short(tmp_path_factory):
    runs = tmp_path_factory.mktemp("protocols") / "runs"
    for net in ("resnet56", "plain56", "plain20", "resnet20"):
        write_run(runs, f"cifar10-{net}", curve=[(64000, 1.0, 8.0)])
        write_run(runs, f"cifar10-{net}", iterations=2000, curve=[(2000, 30.0, 40.0)])
    return runs


@pytest.mark.parametrize(
    ("settings", "shown", "other"),
    [("", "8.00 (1)", "40.00"), ("--settings iterations=2000", "40.00 (1)", "8.00")],
)
def test_settings_show_another_protocol_everywhere_and_all_shows_every_run(
    long_and_short, settings, shown, other
):
    words = ("--runs", long_and_short, settings)
    code, out, err = call("compare", *words)
    assert (code, err, shown in out, other in out) == (0, "", True, False)
    assert other in call("compare --all", *words)[1] or settings
    claim = " ".join(call("claims 1", *words)[1].split())
    assert ("2,000 of 64,000" in claim, "CIFAR-10, 64,000 iterations" in claim) == (True, not settings)
    assert "Not drawn, another protocol" in call("plot", *words)[1] or settings
    assert "(2 nets, 2 runs)" in " ".join(call("compare --settings depth=20", *words)[1].split())


@pytest.mark.parametrize(
    ("command", "settings", "part"),
    [
        ("plot", "paint=red", "no setting 'paint'"),
        ("compare", "iterations=3000", "no run has iterations=3000; there are iterations: 2000, 64000"),
        ("claims", "iterations=3000", "no run has iterations=3000"),
        ("report", "iterations", "--settings takes KEY=VALUE, such as iterations=2000, not 'iterations'"),
    ],
)
def test_settings_that_no_run_has_are_one_sentence(long_and_short, command, settings, part):
    code, told = sentence(*call(command, "--runs", long_and_short, "--settings", settings))
    assert (code, part in told) == (2, True), told
    assert not list(Path().iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run of ours, made through the command line: its folder, the command, and what was said."""
    runs = tmp_path_factory.mktemp("cli") / "runs"
    words = f"train --dataset digits --depth 8 --iterations 4 --threads 1 --runs {runs}"
    code, stdout, _ = call(words)
    assert code == 0
    (folder,) = runs.glob("*/seed0")
    return folder, words, stdout


def test_train_says_errors_departures_record_and_the_next_command_which_works(trained):
    folder, _, stdout = trained
    text = " ".join(stdout.split())
    number = r"\d+\.\d\d %"
    assert re.search(rf"ResNet-8, seed 0: training error {number}, test error {number} \(last iter", text)
    assert "4 iterations instead of 64,000" in text
    assert f"Record: {folder}" in text
    assert len([line for line in stdout.splitlines() if line.startswith("iteration ")]) == 4
    following = stdout.splitlines()[-1]
    assert following == f"Next: resrepro eval {folder}"
    code, stdout, _ = call(following.removeprefix("Next: resrepro"))
    recorded = json.loads((folder / "result.json").read_text())["last"]["test"]["top1_err"]
    assert (code, f"{recorded:.2f}" in stdout) == (0, True)
    (found,) = json.loads(call("eval", folder, "--json")[1])
    assert (found["targets"], found["test"]["top1_err"]) == ([str(folder)], pytest.approx(recorded, abs=1e-4))
    for file in folder.rglob("*.json"):  # which may be published
        assert str(folder.parent.parent) not in file.read_text()


def test_the_home_folder_is_understood_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "x", curve=[(64000, 1.0, 8.5)])
    code, told, _ = call("compare table6 --runs ~/x --tables=~/tables")
    assert (code, "8.50 (1)" in told, len(list((tmp_path / "tables").iterdir()))) == (0, True, 3)
    assert not list(Path().iterdir())
    monkeypatch.setenv("RESREPRO_DATA", "~/nowhere")
    assert sentence(*call("train --depth 20"))[1].startswith("the data folder ~/nowhere (RESREPRO_DATA)")
    (tmp_path / "nowhere").mkdir()
    assert f"{tmp_path}/nowhere" in sentence(*call("train --depth 20"))[1]


def test_what_to_type_next_can_be_pasted_where_a_folder_has_a_space(capsys):
    folder = write_run(Path("my runs"), "digits-resnet8")
    RunsView([Job("digits-resnet8", 0, ())]).finish(folder)
    assert "Next: resrepro eval 'my runs/digits-resnet8/seed0'" in capsys.readouterr().out


@pytest.mark.usefixtures("made_up")
def test_a_command_is_quiet_or_speaks_json():
    words = "train digits-resnet8 --iterations 1 --seeds"
    assert call(words, 2, "--quiet") == (0, "", "")
    code, told, error = call(words, 3, "--json")
    each = json.loads(told)
    assert (code, error, [run["seed"] for run in each]) == (0, "", [0, 1, 2])
    assert each[0]["top1_err"].keys() == {"train", "test"}
    assert each[0]["record"] == "runs/digits-resnet8+iterations=1/seed0"
    each = json.loads(call("status --json")[1])
    assert {(run["state"], run["iteration"], run["iterations"]) for run in each} == {("finished", 1, 1)}
    assert call("status -q") == (0, "", "")
    assert json.loads(call("train --depth 20 --dry-run --json")[1])[0]["state"] == "start"
    code, told, error = call("train --depth 21 --json")
    assert (code, json.loads(told), "nearest is 20" in error) == (2, [], True)


def test_a_shell_completes_commands(monkeypatch, capfd):
    monkeypatch.setenv("_RESREPRO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "resrepro tr")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        app([], prog_name="resrepro")
    assert capfd.readouterr().out == "train\n"


def test_training_a_finished_run_again_says_so_and_changes_nothing(trained):
    folder, words, _ = trained
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, stdout, _ = call(words)
    assert (code, "finished already" in stdout) == (0, True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_publish_copies_all_but_the_checkpoint_and_overwrites_nothing(trained):
    words = f"publish {trained[0]} --results results"
    assert call(words)[0] == 0
    (copy,) = Path("results").glob("*/seed0")
    assert {"spec.json", "env.json", "metrics.csv", "result.json"} <= {path.name for path in copy.iterdir()}
    assert not list(copy.glob("*.pt"))
    assert call(words)[0] == 0
    (copy / "result.json").write_text("{}")
    code, told = sentence(*call(words))
    assert (code, "nothing is overwritten" in told) == (1, True)


def test_runs_that_fail_are_told_once_more_at_the_end(made_up):
    words = "train digits-resnet8 --seeds 0-1 --iterations 1"
    made_up["digits-resnet8", 1] = Outcome(1, "the disk is full.")
    code, told, error = call(words)
    assert (code, "digits-resnet8, seed 1: the disk is full." in told) == (1, True)
    assert "Failed: digits-resnet8, seed 1: the disk is full. error: 1 of 2 runs could not be done" in error
    made_up |= {("digits-resnet8", seed): Outcome(2, "no such GPU.") for seed in (0, 1)}
    assert sentence(*call(words)) == (2, "no such GPU.")


@pytest.mark.parametrize(("depth", "part"), [(None, "not a PyTorch"), (8, "does not fit a net of 14 layers")])
def test_checkpoints_that_are_none_are_refused_in_one_sentence(depth, part):
    Path("theirs.pt").write_text("nothing of the kind")
    if depth:
        torch.save(build_net("digits", depth).state_dict(), "theirs.pt")
    code, told = sentence(*call("eval theirs.pt --dataset digits --depth 14 --mean 0,0,0 --std 1,1,1"))
    assert (code, part in told) == (1, True)


READ = "list", "list imagenet-resnet18", "compare table1 table6", "plot figure3 figure6 --paper"


@pytest.mark.parametrize(
    ("commands", "never"),
    [(["train --help"], {"torch", "pandas", "matplotlib", "numpy"}), (READ, {"torch", "sklearn"})],
)
def test_what_only_reads_never_imports_torch(commands, never):
    for experiment in ("cifar10-plain20", "cifar10-resnet20"):
        write_run(Path("runs"), experiment)
    code = "import sys\nfrom resrepro.cli import app\n"
    code += f"for words in {commands!r}:\n    app(words.split(), standalone_mode=False)\n"
    code += f"assert not {never!r} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Ended(io.StringIO):
    """A stdout that cannot be written."""

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (errno.EPIPE, 0, {"train": "The reader of the output has ended: the command goes on unseen.\n"}),
        (errno.ENOSPC, 1, {}),
    ],
)
def test_a_stdout_that_ends_stops_no_work_and_no_file(number, code, told, monkeypatch, capsys):
    write_run(Path("runs"), curve=[(64000, 1.0, 8.5)])
    usual = "" if code == 0 else f"error: stdout cannot be written: {os.strerror(number)}.\n"
    for words in ("train digits-resnet8 --seeds 0-1 --iterations 1", "compare table6", "status", "list"):
        monkeypatch.setattr(sys, "stdout", Ended())
        sys.stdout.number = number
        with pytest.raises(SystemExit) as end:
            app(words.split())
        found = capsys.readouterr()
        assert (end.value.code, found.out, found.err) == (code, "", told.get(words.split()[0], usual))
    assert {path.name for path in Path("tables").iterdir()} == {"table6.csv", "table6.md", "table6.tex"}
    assert len(list(Path("runs").glob("digits-resnet8+iterations=1/seed*"))) == 2


def test_every_option_of_every_command_is_explained():
    for command in typer.main.get_command(app).commands.values():
        assert command.help, command.name
        for parameter in command.params:
            assert getattr(parameter, "help", "") or parameter.name == "help", (command.name, parameter.name)


@pytest.mark.usefixtures("made_up")
def test_depths_in_a_list_and_names_of_nets_are_what_they_say():
    words = "train --depth 8,14 --depth 8 plain-8 ResNet-20 --dataset digits --iterations 1e0 --seeds 0-1"
    code, told, _ = call(words)
    assert (code, told.count("Next: resrepro eval runs/digits-"), len(told.splitlines())) == (0, 6, 8 * 3 + 1)
    assert told.startswith("Departs from the paper: dataset digits instead of CIFAR-10; 1 iteration instead")
    nets = ("plain8", "resnet14", "resnet20", "resnet8")
    assert sorted(map(str, Path("runs").glob("*/seed*"))) == [
        f"runs/digits-{net}+iterations=1/seed{seed}" for net in nets for seed in (0, 1)
    ]
    code, told, _ = call("reproduce figure6 --without resnet1202 --without plain-110 --dry-run")
    assert (code, "1202" in told, "plain110" in told, "plain56" in told) == (0, False, False, True)


@pytest.mark.parametrize("number", ["64000", "64e3", "64E3", "64k", "64_000", "64,000", "0.064e6", "64.0e3"])
def test_a_whole_number_is_understood_however_it_is_written(number):
    assert whole_number(number) == 64000 == parse("iterations", number)
    assert call("train --depth 20 --dry-run --iterations", number)[0] == 0
    for wrong in ("64e-1", "1e3.5", "nan", "1,00", "", "64.5", "1e99"):
        with pytest.raises(ValueError, match=r"^$|invalid literal"):
            whole_number(wrong)


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("compare 6", "table6"), ("compare fig1", "figure1"), ("compare Table_6", "table6"),
        ("compare fig 1", "figure1"), ("plot fig6 --paper", "figure6"), ("plot figure-6 --paper", "figure6"),
        ("plot 3", "figure3"),
    ],
)  # fmt: skip
def test_exhibits_are_understood_however_they_are_written(words, written):
    code, told, _ = call(words)
    assert (code, f"{written}." in told.partition("Written: ")[2]) == (0, True)


def test_small_notations():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("3,0-1,3") == [3, 0, 1]
    assert (parse_seeds("5"), parse_seeds("0,3")) == ([0, 1, 2, 3, 4], [0, 3])
    assert parse_numbers(["20, 32", "56"], "numbers") == [20, 32, 56]
    given = {"settings": ["lr=0.05", "flip=off", "lr_drops=10,20"], "eval_every": 0, "fast": False}
    assert changed_settings(given) == {"lr": 0.05, "flip": False, "lr_drops": (10, 20), "eval_every": 0}
    assert parse_channels("0.1,0.2,0.3", "--mean") == (0.1, 0.2, 0.3)
    for wrong in ("x", "1-", "-1", "", "1--2"):
        with pytest.raises(UsageError):
            parse_seeds(wrong)
    with pytest.raises(UsageError):
        parse_channels("1,2", "--mean")


LISTED = {
    "list": ["cifar10-resnet110 ResNet-110 cifar-64k-warm 0-4 table6, figure6 "],
    "list imagenet-resnet50": [
        "conv3_x 28x28 1x1, 128 /2; 3x3, 128; 1x1, 512 1 projection ",
        "conv3_x 28x28 1x1, 128; 3x3, 128; 1x1, 512 3 identity ",
        "50 layers (projections do not count), 25,557,032 parameters, 3.858e9 multiply-adds",
    ],
    "list cifar10-resnet110": [
        "warmup_until_err 80 stated 4.2", "bn_group 0 assumed", "flip on stated", " derived, ",
        "Run it: resrepro train --depth 110",
    ],
    "list cifar10-resnet26": ["26 layers", "the paper gives no number for ResNet-26"],
}  # fmt: skip


@pytest.mark.parametrize("words", LISTED)
def test_experiments_are_listed_and_of_one_its_layers_and_each_setting(words):
    code, text, _ = call(words)
    assert (code, max(map(len, text.splitlines())) <= 80, "…" in text) == (0, True, False)
    assert [part for part in LISTED[words] if part not in " ".join(text.split())] == []
