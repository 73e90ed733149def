"""Plans against made-up records: what is done, what goes on, what starts, and what is in the way."""

import json
from pathlib import Path

import pytest
from conftest import rewrite, write_ensemble, write_eval, write_run

from resrepro.errors import UsageError
from resrepro.launch.goals import choose_exhibits
from resrepro.launch.planning import make_plan, set_apart
from resrepro.records import read_run


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
    assert len(plan.to_train) == 4
    (diverged,) = plan.blocked
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
    found = {(step.spec.experiment, step.seed): step for step in plan.steps}
    assert found["digits-plain20", 0].state == "resume"
    assert found["digits-plain20", 1].state == "blocked"
    assert found["digits-plain56", 0].state == "resume"
    for seed in (0, 1):
        assert "result.json is broken" in found["digits-plain20", seed].why
    way_out = f"`resrepro train --dataset digits --depth 20 --plain --seed 1 --fresh --runs {tmp_path}`"
    assert way_out in found["digits-plain20", 1].why


def test_a_run_that_was_killed_before_its_first_checkpoint_starts(tmp_path):
    """What training itself makes of such a folder (see `session.already_over`)."""
    folder = write_run(tmp_path, "digits-plain20")
    for name in ("result.json", "env.json", "metrics.csv"):
        (folder / name).unlink()
    assert states(plan_of(tmp_path, "figure1", dataset="digits"))["digits-plain20", 0] == ("start", 0)


def test_a_run_of_another_specification_is_in_the_way(tmp_path):
    folder = write_run(tmp_path, "digits-plain20", 0)
    other = write_run(tmp_path / "other", "digits-plain20", 0, lr=0.01)
    other.rename(tmp_path / "aside")
    for name in ("spec.json", "result.json", "env.json", "metrics.csv"):
        (folder / name).write_bytes((tmp_path / "aside" / name).read_bytes())
    step = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0]).steps[0]
    assert step.state == "blocked"
    assert "another specification" in step.why


def test_settings_make_other_runs_and_keep_their_states_apart(tmp_path):
    write_run(tmp_path, "cifar10-plain20", 0)
    begun(tmp_path, "cifar10-plain56", 0, done=500, iterations=2000, split="45k5k")
    settings = {"iterations": 2000, "split": "45k5k"}
    plan = plan_of(tmp_path, "figure1", settings=settings)
    assert states(plan) == {("cifar10-plain20", 0): ("start", 0), ("cifar10-plain56", 0): ("resume", 500)}
    assert plan.steps[0].spec.name == "cifar10-plain20+iterations=2000+split=45k5k"
    assert states(plan_of(tmp_path, "figure1"))["cifar10-plain20", 0] == ("done", 64_000)


def test_runs_on_other_images_than_those_at_hand_do_not_count_as_done(tmp_path):
    write_run(tmp_path, "digits-plain20", 0, data="here")
    write_run(tmp_path, "digits-plain56", 0, data="elsewhere")
    plan = plan_of(tmp_path, "figure1", dataset="digits")
    assert [step.state for step in plan.steps] == ["done", "done"]
    here = read_run(tmp_path / "digits-plain20" / "seed0").env["data"]["sha256"]
    apart = set_apart(plan, "digits", here)
    assert [step.state for step in apart.steps] == ["done", "blocked"]
    assert "other images than those at hand" in apart.blocked[0].why
    assert [run.experiment for run in apart.records().runs] == ["digits-plain20"]
    assert set_apart(plan, "cifar10", here) == plan


def test_exhibits_share_their_runs_and_a_net_can_be_left_out(tmp_path):
    plan = plan_of(tmp_path, "figure6", "table6", "figure1", without=["cifar10-resnet1202"], seeds=[7])
    names = [step.spec.experiment for step in plan.steps]
    assert len(names) == len(set(names)) == 10
    assert "cifar10-resnet1202" not in names
    with pytest.raises(UsageError, match="cifar10-resnet20 is no part of what is asked for"):
        plan_of(tmp_path, "figure1", without=["cifar10-resnet20"])


def test_what_is_measured_after_training_is_a_part_of_the_plan(tmp_path):
    write_run(tmp_path, "imagenet-plain18", evals={"ten_crop": (28.0, 9.0)})
    write_run(tmp_path, "imagenet-plain34", evals={"multi_scale": (27.0, 9.0)})
    begun(tmp_path, "imagenet-resnet18", done=5000)
    plan = plan_of(tmp_path, "table2")
    told = {each.steps[0].spec.experiment: (each.done, each.ready) for each in plan.measurements}
    assert told == {
        "imagenet-plain18": (True, True), "imagenet-plain34": (False, True),
        "imagenet-resnet18": (False, False), "imagenet-resnet34": (False, False),
    }  # fmt: skip
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
    assert (len(ensemble.steps), ensemble.ready, plan.to_measure) == (5, False, ())
    folders.append(write_run(tmp_path, names[-1], curve=end))
    (ensemble,) = plan_of(tmp_path, "table5", dataset="folder").to_measure
    assert str(ensemble) == "multi_scale of an ensemble of 5"
    write_ensemble(tmp_path, folders[:2], 30.0, 10.0)
    assert len(plan_of(tmp_path, "table5", dataset="folder").to_measure) == 1
    write_ensemble(tmp_path, folders, 30.0, 10.0, name="all")
    plan = plan_of(tmp_path, "table5", dataset="folder")
    assert plan.to_measure == ()
    assert len(plan.records().ensembles) == 2


def test_an_ensemble_of_nets_that_were_not_trained_to_their_end_is_measured_anew(tmp_path):
    names = [f"folder-resnet{net}" for net in ("34-b", "34-c", "50", "101", "152")]
    halfway = [begun(tmp_path, name, done=300_000) for name in names]
    write_ensemble(tmp_path, halfway, 30.0, 10.0)
    for name in names:
        write_run(tmp_path, name, curve=[(600_000, 20.0, 30.0)])
    assert len(plan_of(tmp_path, "table5", dataset="folder").to_measure) == 1


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


def test_a_plan_names_the_claims_of_its_exhibits_in_order(tmp_path):
    assert plan_of(tmp_path, "figure7", "figure1", "table1").claims == (1, 10, 11, 20, 22, 25, 26)


def test_a_record_that_tells_of_another_seed_is_in_the_way(tmp_path):
    folder = write_run(tmp_path, "digits-plain20", 3)
    folder.rename(folder.with_name("seed0"))
    step = plan_of(tmp_path, "figure1", dataset="digits", seeds=[0]).steps[0]
    assert (step.state, step.run) == ("blocked", None)
    assert json.loads(Path(step.folder / "spec.json").read_text())["seed"] == 3
    rewrite(step.folder / "spec.json", lambda spec: spec.update(seed=0))
    assert plan_of(tmp_path, "figure1", dataset="digits", seeds=[0]).steps[0].state == "blocked"
