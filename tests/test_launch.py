"""What an exhibit is made of, what of it is missing, the commands that make it, and what that takes."""

import shutil
from pathlib import Path

import pytest
from conftest import rewrite, write_ensemble, write_eval, write_run

from resrepro.errors import UsageError
from resrepro.figures import figures, tables
from resrepro.launch import FACTS, choose_exhibits, data_folder_of, local, make_plan, option_words
from resrepro.launch.local import disk_mib, seconds_of, span
from resrepro.records.collection import collect
from resrepro.spec import catalogue

# --- exhibits ------------------------------------------------------------------------------------------


def chosen(name, dataset=None):
    (exhibit,) = choose_exhibits([name], dataset)
    return exhibit


def nets(exhibit):
    return {name.partition("-")[2] for name in exhibit.experiments}


def test_everything_that_is_compared_or_plotted_can_be_reproduced():
    stand_ins = {f"{name}-{other}" for name in FACTS for other in ("digits", "folder")}
    assert set(FACTS) == {*tables(), *figures()} - stand_ins
    for name in FACTS:
        exhibit = chosen(name)
        assert exhibit.name in (*tables(), *figures())
        for experiment in exhibit.experiments:
            assert catalogue.find(experiment).dataset == exhibit.dataset


def test_the_papers_own_nets_and_what_is_measured_of_them():
    assert nets(chosen("figure1")) == {"plain20", "plain56"}
    assert nets(chosen("figure7")) == {"plain20", "plain56", "resnet20", "resnet56", "resnet110"}
    assert chosen("figure7").measures == ("responses",)
    assert chosen("table2").measures == chosen("table3").measures == ("ten_crop",)
    assert chosen("table4").measures == ("multi_scale",)
    assert chosen("table5").measures == ()
    assert [name for name in FACTS if chosen(name).ensemble] == ["table5"]
    for name in ("table1", "figure3"):
        assert (chosen(name).dataset, chosen(name).experiments) == (None, ())


def test_digits_stand_in_for_cifar10_and_a_folder_for_imagenet_under_names_of_their_own():
    exhibit = chosen("figure1", "digits")
    assert (exhibit.name, exhibit.experiments) == ("figure1-digits", ("digits-plain20", "digits-plain56"))
    stems = [chosen(*each).stem for each in (("figure1", "digits"), ("figure7", "digits"), ("figure7",))]
    assert stems == ["figure1-digits", "figure7-digits", "figure7"]
    depths = (20, 32, 44, 56)
    residual = {f"resnet{depth}" for depth in (*depths, 110)}
    assert nets(chosen("figure6", "digits")) == residual | {f"plain{depth}" for depth in depths}
    assert nets(chosen("table6", "digits")) == residual
    assert nets(chosen("figure7", "digits")) == {"plain20", "plain56", "resnet20", "resnet56", "resnet110"}
    exhibit = chosen("table3", "folder")
    assert exhibit.name == exhibit.stem == "table3-folder"
    assert "folder-resnet34-b" in exhibit.experiments
    assert nets(exhibit) == nets(chosen("table3"))


def test_all_is_what_the_paper_has_or_what_the_dataset_can_stand_in_for():
    assert [exhibit.name for exhibit in choose_exhibits(["all"])] == list(FACTS)[:-1]  # the demo
    digits = [exhibit.name for exhibit in choose_exhibits(["all"], "digits")]
    assert digits == ["table1", "figure3", "table6-digits", "figure1-digits", "figure6-digits", "figure7"]
    assert len(choose_exhibits(["figure1", "all", "figure1"])) == len(FACTS) - 1


@pytest.mark.parametrize(
    ("name", "dataset", "sentence"),
    [
        ("figure2", None, "no exhibit 'figure2' to reproduce: there are table1, .*demo and all"),
        ("figure1-digits", None, "no exhibit 'figure1-digits'"),
        ("figure1", "mnist", "no dataset 'mnist': there are cifar10, digits, imagenet, folder"),
        ("table2", "digits", "table2 is an exhibit of imagenet or folder, not of digits"),
        ("figure1", "folder", "figure1 is an exhibit of cifar10 or digits, not of folder"),
        ("demo", "cifar10", "demo is an exhibit of digits, not of cifar10"),
    ],
)
def test_what_does_not_exist_is_refused_in_a_sentence(name, dataset, sentence):
    with pytest.raises(UsageError, match=sentence):
        choose_exhibits([name], dataset)


# --- plans ---------------------------------------------------------------------------------------------


def plan_of(runs, *exhibits, dataset=None, **options):
    return make_plan(choose_exhibits(exhibits, dataset), runs, **options)


def states(plan):
    return {(step.spec.experiment, step.seed): (step.state, step.done) for step in plan.steps}


def begun(runs, experiment, seed=0, done=80, **settings):
    """A run that was interrupted: its record, and something in place of a checkpoint."""
    folder = write_run(runs, experiment, seed, curve=[(done, 50.0, 60.0)], **settings)
    (folder / "checkpoint.pt").touch()
    return folder


def test_of_an_empty_folder_all_is_to_start_with_the_papers_seeds_and_nothing_is_written(tmp_path):
    runs = tmp_path / "runs"
    plan = plan_of(runs, "table6", "figure1")
    assert {step.state for step in plan.steps} == {"start"}
    seeds = [step.seed for step in plan.steps if step.spec.experiment == "cifar10-resnet110"]
    assert seeds == [0, 1, 2, 3, 4]
    assert len(plan.steps) == 6 + 4 + 2
    assert not runs.exists()
    assert plan_of(runs, "figure7", "figure1", "table1").claims == (1, 10, 11, 20, 22, 25, 26)


def test_each_run_is_in_the_state_that_its_folder_tells(tmp_path):
    write_run(tmp_path, "digits-plain20", 0)
    begun(tmp_path, "digits-plain20", 1)
    write_run(tmp_path, "digits-plain20", 2, curve=[(80, 50.0, 60.0)])  # without a checkpoint
    write_run(tmp_path, "digits-plain56", 0, status="diverged", curve=[(16, 90.0, 90.0)])
    plan = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0, 1, 2])
    assert states(plan) == {
        ("digits-plain20", 0): ("done", 240), ("digits-plain20", 1): ("resume", 80),
        ("digits-plain20", 2): ("start", 0), ("digits-plain56", 0): ("blocked", 16),
        ("digits-plain56", 1): ("start", 0), ("digits-plain56", 2): ("start", 0),
    }  # fmt: skip
    assert sum(step.to_train for step in plan.steps) == 4
    (diverged,) = [step for step in plan.steps if step.state == "blocked"]
    assert diverged.why == (
        "it diverged at iteration 16; `resrepro train --dataset digits --depth 56 --plain --fresh "
        f"--runs {tmp_path}` starts it anew."
    )


def test_a_broken_record_goes_on_from_its_checkpoint_or_is_in_the_way(tmp_path):
    folders = [write_run(tmp_path, "digits-plain20", seed) for seed in (0, 1)]
    for folder in folders:
        (folder / "result.json").write_text("{")
    (folders[0] / "checkpoint.pt").touch()
    other = tmp_path / "digits-plain56" / "seed0"
    other.mkdir(parents=True)
    (other / "checkpoint.previous.pt").touch()  # all that is left
    plan = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0, 1])
    assert [step.state for step in plan.steps] == ["resume", "blocked", "resume", "start"]
    assert ["result.json is broken" in step.why for step in plan.steps] == [True, True, False, False]
    way_out = f"`resrepro train --dataset digits --depth 20 --plain --seed 1 --fresh --runs {tmp_path}`"
    assert way_out in plan.steps[1].why


def test_a_run_of_another_specification_is_in_the_way(tmp_path):
    folder = write_run(tmp_path, "digits-plain20", 0)
    shutil.copytree(write_run(tmp_path / "other", "digits-plain20", lr=0.01), folder, dirs_exist_ok=True)
    step = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0]).steps[0]
    assert step.state == "blocked"
    assert "holds another run" in step.why


def test_settings_make_other_runs_and_keep_their_states_apart(tmp_path):
    write_run(tmp_path, "cifar10-plain20", 0)
    begun(tmp_path, "cifar10-plain56", 0, done=500, iterations=2000, split="45k5k")
    settings = {"iterations": 2000, "split": "45k5k"}
    plan = plan_of(tmp_path, "figure1", settings=settings)
    assert states(plan) == {("cifar10-plain20", 0): ("start", 0), ("cifar10-plain56", 0): ("resume", 500)}
    assert plan.steps[0].spec.name == "cifar10-plain20+iterations=2000+split=45k5k"
    assert states(plan_of(tmp_path, "figure1"))["cifar10-plain20", 0] == ("done", 64_000)


def test_exhibits_share_their_runs_and_a_net_can_be_left_out(tmp_path):
    plan = plan_of(tmp_path, "figure6", "table6", "figure1", without=["cifar10-resnet1202"], seeds=[7])
    names = [step.spec.experiment for step in plan.steps]
    assert len(names) == len(set(names)) == 10
    assert "cifar10-resnet1202" not in names


def test_what_is_measured_after_training_is_a_part_of_the_plan(tmp_path):
    write_run(tmp_path, "imagenet-plain18", evals={"ten_crop": (28.0, 9.0)})
    write_run(tmp_path, "imagenet-plain34", evals={"multi_scale": (27.0, 9.0)})
    begun(tmp_path, "imagenet-resnet18", done=5000)
    plan = plan_of(tmp_path, "table2")
    assert [each.done for each in plan.measurements] == [True, False, False, False]
    (todo,) = plan.to_measure
    assert str(todo) == "ten_crop of imagenet-plain34, seed 0"
    write_eval(todo.steps[0].folder, "ten_crop", 28.5, 9.5)
    assert plan_of(tmp_path, "table2").to_measure == ()


def test_an_ensemble_of_table_5_is_measured_once_all_its_nets_are_trained(tmp_path):
    names = [f"folder-resnet{net}" for net in ("34-b", "34-c", "50", "101", "152")]
    end = [(600_000, 20.0, 30.0)]
    folders = [write_run(tmp_path, name, curve=end) for name in names[:-1]]
    plan = plan_of(tmp_path, "table5", dataset="folder")
    (ensemble,) = plan.measurements
    assert (len(ensemble.steps), plan.to_measure) == (5, ())
    folders.append(write_run(tmp_path, names[-1], curve=end))
    (ensemble,) = plan_of(tmp_path, "table5", dataset="folder").to_measure
    assert str(ensemble) == "multi_scale of an ensemble of 5"
    write_ensemble(tmp_path, folders[:2], 30.0, 10.0)
    assert len(plan_of(tmp_path, "table5", dataset="folder").to_measure) == 1
    write_ensemble(tmp_path, folders, 30.0, 10.0, name="all")
    plan = plan_of(tmp_path, "table5", dataset="folder")
    assert plan.to_measure == ()
    assert len(plan.records().ensembles) == 2


def test_responses_are_measured_of_trained_nets_that_have_none(tmp_path):
    write_run(tmp_path, "digits-resnet20")
    plan = plan_of(tmp_path, "figure7", dataset="digits")
    assert {each.what for each in plan.measurements} == {"responses"}
    assert [each.steps[0].spec.experiment for each in plan.to_measure] == ["digits-resnet20"]
    (tmp_path / "digits-resnet20" / "seed0" / "responses.csv").write_text("no record of responses")
    assert len(plan_of(tmp_path, "figure7", dataset="digits").to_measure) == 1


def test_the_records_are_those_of_the_plan_alone(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, "digits-plain20", seed)
    write_run(tmp_path, "digits-plain20", 0, lr=0.01)
    write_run(tmp_path, "digits-resnet20", 0)
    found = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0, 1]).records()
    assert [(run.name, run.seed) for run in found.runs] == [("digits-plain20", 0), ("digits-plain20", 1)]


# --- costs ---------------------------------------------------------------------------------------------

STEP = 0.128  # seconds: 128 images at the 1,000 images/s of made-up runs


def spec(name, **settings):
    return catalogue.derive(catalogue.find(name), None, **settings)


def test_the_fastest_run_of_a_net_and_mode_on_this_machine_tells_its_time(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "cpu_model", lambda: "a made-up CPU")  # that of the records
    make_run(tmp_path, "cifar10-resnet20", curve=[(1000, 50.0, 50.0)])  # half a second for an iteration
    for seed, curve in ((1, None), (2, [(4, 50.0, 50.0)])):  # slow ones, the second a trial
        slow = make_run(tmp_path, "cifar10-resnet20", seed, curve=curve)
        rewrite(slow / "result.json", lambda result: result.update(seconds=1e6))
    runs, net = collect([tmp_path]).runs, spec("cifar10-resnet20")
    assert seconds_of(net, 0, runs, "cpu") == pytest.approx((STEP * 64_000, 32_000))
    short = spec("cifar10-resnet20", iterations=100)
    assert seconds_of(short, 60, runs, "auto") == pytest.approx((STEP * 40, 20))
    for other in ({"batch_size": 64}, {"precision": "bf16"}):
        assert seconds_of(spec("cifar10-resnet20", **other), 0, runs, "cpu") is None
    assert seconds_of(spec("cifar10-resnet32"), 0, runs, "cpu") is None
    assert seconds_of(net, 0, runs, "cpu:0") == pytest.approx((STEP * 64_000, 32_000))
    assert seconds_of(net, 0, runs, "cuda:1") is None
    monkeypatch.setattr(local, "cpu_model", lambda: "another CPU")
    assert seconds_of(net, 0, runs, "cpu") is None


def test_the_disk_is_that_of_two_checkpoints_with_momentum():
    # 1.7 million parameters (Table 6) of 4 bytes with as many momenta, twice
    assert disk_mib(spec("cifar10-resnet110")) == pytest.approx(1.73e6 * 16 / 2**20, rel=0.02)
    assert disk_mib(spec("folder-resnet34-b")) == disk_mib(spec("imagenet-resnet34-b"))


def test_durations_have_two_figures_or_so():
    ranges = (None, (45.2, 45.3), (40, 45), (80, 720), (7200, 19_000), (270_000, 270_000))
    told = ["unknown", "45 s", "40-45 s", "80 s - 12 min", "2.0-5.3 h", "3.1 days"]
    assert [span(each) for each in ranges] == told


# --- commands ------------------------------------------------------------------------------------------


def test_options_become_words_and_what_is_not_given_is_left_out():
    settings = {"iterations": 8, "lr": 0.05, "flip": False, "drops": (4, 6)}
    options = {"data": Path("a b"), "threads": None, "fast": True, "fresh": False, "micro_batch": 64}
    assert option_words(settings, **options) == [
        "--set", "iterations=8", "--set", "lr=0.05", "--set", "flip=off", "--set", "drops=4,6",
        "--data", "a b", "--fast", "--micro-batch", "64",
    ]  # fmt: skip


def test_images_of_either_family_are_looked_for_where_they_can_be(tmp_path):
    photos, small, both = (tmp_path / name for name in ("photos", "small", "both"))
    for folder in (photos, both):
        for part in ("train", "val"):
            (folder / part).mkdir(parents=True)
    for folder in (small, both):
        (folder / "cifar-10-batches-bin").mkdir(parents=True)
    cases = {
        (): (None, None),
        (photos,): (None, photos),  # CIFAR-10 is then where it is by default, or downloaded there
        (small,): (small, small),  # where it is said that photographs are missing
        (both,): (both, both),
        (photos, small): (small, photos),
        (small, photos): (small, photos),
    }
    for given, wanted in cases.items():
        assert (data_folder_of("cifar", given), data_folder_of("imagenet", given)) == wanted
