"""`resrepro reproduce`: the plan, what is missing and no more, and what is shown at the end."""

from pathlib import Path

import pytest
from commands import call
from conftest import write_eval, write_run

from resrepro.cli.reproduce import DEMO, demo_verdict
from resrepro.launch import local, slurm
from resrepro.launch.local import Outcome
from resrepro.records.collection import collect

DIGITS = "--dataset digits --device cpu --threads 1"


@pytest.fixture(autouse=True)
def trained(made_up):
    return made_up


def done(code, *words):
    """(stdout, stderr) of a command, which is to exit so."""
    found, told, error = call(*words)
    assert found == code, error
    return told, error


def files(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_a_dry_run_shows_the_plan_and_writes_nothing(monkeypatch):
    write_run(Path("runs"), "digits-plain20", 0)
    monkeypatch.setattr(local, "cpu_model", lambda: "a made-up CPU")  # that of the record
    before = files()
    told, error = done(0, "reproduce", "figure1", DIGITS, "--seeds", 3, "--jobs", 2, "--dry-run")
    assert (error, files(), max(map(len, told.splitlines())) <= 80) == ("", before, True)
    assert {
        "digits-plain20 0 done", "digits-plain20 1, 2 to start 31 s - 2 min 4.1",
        "digits-plain56 0, 1, 2 to start unknown 13.0", "6 runs: 1 done, 5 to start; 47 MiB.",
        "Shown at the end: figure1-digits; verdicts on claims 1.",
    } <= {" ".join(line.split()) for line in told.splitlines()}  # fmt: skip


def test_what_is_missing_is_done_and_shown_and_the_second_time_nothing_is(trained):
    told, _ = done(0, "reproduce", "figure1", DIGITS, "--seeds", 2)
    assert {"tables/figure1-digits.csv", "figures/figure1-digits.png"} <= {*files()}
    table = Path("tables/figure1-digits.md").read_text()
    assert "dataset digits instead of CIFAR-10" in table
    assert "5.12±0.18 (2)" in table  # training errors of 5 and 5.25: mean and spread over the seeds
    assert "1. Of two plain nets" in told
    assert "about this protocol (digits, 240 iterations)" in " ".join(told.lower().split())
    before = {path: Path("runs", path).stat().st_mtime_ns for path in files("runs")}
    trained |= {(f"digits-plain{depth}", seed): Outcome(1, "asked") for depth in (20, 56) for seed in (0, 1)}
    told, _ = done(0, "reproduce", "figure1", DIGITS, "--seeds", 2)
    assert "4 runs: all runs are done; nothing to do." in told
    assert {path: Path("runs", path).stat().st_mtime_ns for path in files("runs")} == before
    trained.clear()
    call("reproduce", "figure1", DIGITS, "--seeds", "0-2")
    assert len(list(Path("runs").glob("*/seed2"))) == 2
    assert "(3)" in Path("tables/figure1-digits.md").read_text()


def test_a_run_that_fails_stops_no_other_and_is_listed_with_its_reason(trained):
    trained["digits-plain56", 0] = Outcome(1, "the disk is full.")
    write_run(Path("runs"), "digits-resnet20", 0, status="diverged", curve=[(16, 90.0, 90.0)])
    told, error = done(1, "reproduce", "figure1", "table6", DIGITS)
    assert "Failed: digits-plain56, seed 0: the disk is full." in error
    assert "digits-resnet20, seed 0: it diverged at iteration 16; `resrepro train" in error
    assert "error: 2 could not be done; the same command tries again." in error
    assert "Written: tables/figure1-digits.md" in told
    assert "runs/digits-resnet110/seed0/result.json" in files()
    table = Path("tables/figure1-digits.md").read_text()
    assert ("| plain-20 <sup>" in table, "| plain-56 | — | — |" in table) == (True, True)
    trained.clear()
    assert call("reproduce", "figure1", DIGITS)[0] == 0


def test_where_no_run_finished_nothing_is_written_over(trained):
    trained |= {(f"digits-plain{depth}", 0): Outcome(1, "no.") for depth in (20, 56)}
    table = Path("tables/figure1-digits.md")
    table.parent.mkdir()
    table.write_text("earlier")
    told, _ = done(1, "reproduce", "figure1", DIGITS)
    assert "No finished run for figure1-digits yet: nothing is written." in told
    assert (files("tables"), table.read_text()) == ([table.name], "earlier")


def test_missing_images_fail_the_runs_that_need_them_and_no_other(trained):
    Path("empty").mkdir()
    told, error = done(1, "reproduce figure1 demo table1 --data empty --device cpu --jobs 2")
    for sentence in ("cifar10-plain20, seed 0: ", "cifar10-plain56, seed 0: ", "error: 2 could not be done"):
        assert sentence in error
    assert "No finished run for figure1 yet" in told
    assert {"tables/demo.md", "tables/table1.md", "figures/demo.png"} <= set(files())


def test_a_test_protocol_is_measured_once_the_nets_are_trained(trained):
    asked = []

    def measure(words):
        asked.append(words)
        if "plain18" in words[1]:
            return Outcome(1, "its checkpoint is missing.")
        if "resnet18" not in words[1]:  # as if that were measured on other images
            write_eval(Path(words[1]), words[3], 30.0, 10.0)
        return Outcome(0)

    trained["eval"] = measure
    changed = "--iterations 4 --dataset folder --data photos --device cpu"
    told, error = done(1, "reproduce table2", changed)
    nets = [f"folder-{name}+iterations=4" for name in ("plain18", "plain34", "resnet18", "resnet34")]
    options = "--protocol ten_crop --runs runs --data photos --device cpu"
    assert [" ".join(words) for words in asked] == [f"eval runs/{net}/seed0 {options}" for net in nets]
    assert f"ten_crop of {nets[0]}, seed 0: its checkpoint is missing." in error
    assert f"ten_crop of {nets[2]}, seed 0: it was measured, but on other images" in error
    assert "error: 2 could not be done" in error
    assert "Written: tables/table2-folder.md" in told
    assert not Path("tables/table2.md").exists()


def test_an_exhibit_that_cannot_be_shown_stops_no_other(trained):
    trained["eval"] = Outcome(1, "there is no checkpoint in it.")
    for net in ("plain20", "plain56", "resnet20", "resnet56", "resnet110"):
        write_run(Path("runs"), f"digits-{net}", data="digits")
    Path("figures/figure1-digits.png/in the way").mkdir(parents=True)
    told, error = done(1, "reproduce", "figure7", "figure1", "table1", DIGITS)
    assert "responses of digits-plain20, seed 0: there is no checkpoint" in error
    assert "No measured run for figure7-digits yet: nothing is written." in told
    assert "Not shown: cannot write figures/figure1-digits.png: " in " ".join(told.split())
    assert "figure1-digits: " in error
    assert "tables/table1.md" in files()
    assert "1. Of two plain nets" in told


def test_a_queue_is_handed_what_is_missing_and_not_waited_for(monkeypatch):
    submitted = []

    def submit(wanted, runs, options, threads):
        submitted.append((wanted, runs, options, threads))
        return [(each, str(12 + number), None) for number, each in enumerate(wanted)]

    monkeypatch.setattr(slurm, "submit", submit)
    write_run(Path("there"), "digits-plain20", 0, iterations=8)
    words = "reproduce figure1 --dataset digits --iterations 8 --launcher slurm --seeds 2"
    told, _ = done(0, words, "--slurm partition=cpu --runs there")
    ((wanted, runs, options, threads),) = submitted
    missing = ("plain20", 1), ("plain56", 0), ("plain56", 1)
    assert list(map(str, wanted)) == [f"digits-{net}+iterations=8, seed {seed}" for net, seed in missing]
    assert wanted[0].words[:4] == ("train", "digits-plain20", "--seed", "1")
    assert "iterations=8" in wanted[0].words
    assert (runs, options, threads) == (Path("there"), {"partition": "cpu"}, None)
    assert "digits-plain56+iterations=8, seed 1: job 14" in told
    assert "Next: resrepro status --runs there" in told
    assert Path("tables/figure1-digits.md").exists()  # of what is there
    assert call(words, "--slurm partition")[0] == 2
    assert len(submitted) == 1


def test_fast_names_the_arithmetic_of_this_machine(monkeypatch):
    monkeypatch.setattr("resrepro.training.engine.fast_precision", lambda device: "bf16")
    told, _ = done(0, "reproduce", "figure1", DIGITS, "--fast", "--dry-run")
    assert "Settings: precision=bf16." in told


# --- the demo -----------------------------------------------------------------------------------------


def test_the_demo_trains_four_nets_and_shows_them_and_again_trains_none(trained):
    told, _ = done(0, "demo", "--device", "cpu")
    assert "Written: demo/demo.md, demo/demo.csv, demo/demo." in told
    assert {path.parent.parent.name for path in Path("demo/runs").glob("*/seed0/result.json")} == set(DEMO)
    trained |= {(name, 0): Outcome(1, "asked") for name in DEMO}
    assert call("demo")[0] == 0
    assert call("demo", "--fresh")[0] == 1


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((0.1, 70.0, 0.0, 0.2), "degrades the plain net and shortcuts cure it"),
        ((0.1, 70.0, 0.0, 30.0), "and shortcuts lessen it"), ((0.1, 0.1, 0.0, 0.0), "do not show"),
        ((5.0, 1.0, 0.0, 0.0), "do not show"), ((1.0, 3.0, 1.0, 9.0), "do not show"),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_training_errors(errors, words):
    for name, error in zip(DEMO, errors, strict=True):
        write_run(Path("runs"), name, curve=[(240, error, error)])
    sentence = demo_verdict(collect([Path("runs")]))
    assert words in sentence
    assert f"{errors[1]:.1f} % at 56" in sentence
    (Path("runs") / DEMO[3] / "seed0" / "result.json").unlink()
    assert "digits-resnet56" in demo_verdict(collect([Path("runs")]))
