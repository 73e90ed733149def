"""What verdicts rest on: which seeds, how many of them, how finely measured; made-up records, known truth."""

import dataclasses

import pytest
from conftest import write_eval, write_run, write_test_eval

from resrepro.claims import FAILED, HELD, UNDECIDED, find_claim, table
from resrepro.claims.judging import verdict_on
from resrepro.claims.measures import MEASURES, reached
from resrepro.records.collection import collect

COLD = {"warmup_lr": 0.0}
SPREAD = (-0.2, 0.0, 0.2)


def runs_in(folder):
    found = collect([folder])
    assert not found.broken
    return found.runs


def verdict(number, folder, *tests):
    """The verdict on a claim, or on some of its tests."""
    claim = find_claim(number)
    if tests:
        claim = dataclasses.replace(claim, tests=tuple(claim.tests[test] for test in tests))
    return verdict_on(claim, runs_in(folder))


def write(folder, experiment, curves, **options):
    """One made-up seed per curve."""
    for seed, curve in enumerate(curves):
        write_run(folder, experiment, seed, curve=curve, **options)


def flat(level, every, end=600_000):
    """Three curves of ImageNet's length around a level, or around each of several in turn."""
    marks = range(every, end + 1, every)
    levels = level if isinstance(level, list) else [level] * len(marks)
    return [[(at, each + shift, 50) for at, each in zip(marks, levels, strict=True)] for shift in SPREAD]


# --- how many comparisons -------------------------------------------------------------------------------


def test_the_other_way_but_not_beyond_the_stricter_interval_is_told_with_its_seeds(tmp_path):
    errors = {20: [10, 10.2, 10.1, 9.9], 32: [10.2, 10.45, 10.4, 10.3]}
    errors |= {depth: [at, at + 0.01, at + 0.02, at + 0.03] for depth, at in ((44, 7), (56, 6), (110, 5))}
    for depth, values in errors.items():
        write(tmp_path, f"cifar10-resnet{depth}", [[(64_000, 0.1, error)] for error in values])
    found = verdict(4, tmp_path)
    assert found.verdict == UNDECIDED
    assert (
        "ResNet-20 less ResNet-32 −0.29 [−0.50, −0.08]: the other way, but not beyond the stricter interval "
        "of 98.75 %; such a gap takes about 6 seeds per net"  # 5 at 95 %
    ) in found.why
    assert "resrepro train --depth 20 --seeds 0-5" in found.commands


# --- how often was sampled ------------------------------------------------------------------------------


def test_throughout_needs_samples_throughout(tmp_path):
    write(tmp_path, "imagenet-plain34", flat(45, 300_000), eval_every=300_000)
    write(tmp_path, "imagenet-plain18", flat([10, 70], 300_000), eval_every=300_000)
    found = verdict(12, tmp_path)
    assert (found.verdict, found.protocol) == (UNDECIDED, "ImageNet, 600,000 iterations, eval_every 300000")
    assert "sampled too rarely for stretches of 3 samples throughout the run" in found.why


def test_training_errors_are_compared_only_if_they_are_means_over_equal_intervals(tmp_path):
    write(tmp_path, "cifar10-resnet110", [[(64_000, 0.06 + d / 9, 6.6 + d)] for d in SPREAD])
    rarely = [[(32_000, 9, 20), (64_000, 0.4 + d / 9, 7.9 + d)] for d in SPREAD]
    write(tmp_path, "cifar10-resnet1202", rarely, eval_every=32_000)
    found = verdict(9, tmp_path)
    assert (found.verdict, found.protocol) == (UNDECIDED, "CIFAR-10, 64,000 iterations")
    assert [other.protocol for other in found.others] == ["CIFAR-10, 64,000 iterations, eval_every 32000"]
    assert found.others[0].commands[-1] == "resrepro train --depth 110 --eval-every 32000 --seeds 0-4"
    assert verdict(9, tmp_path, 0).verdict == HELD  # the last test error does not depend on it


# --- what never happens ---------------------------------------------------------------------------------


def test_a_level_is_reached_at_the_first_sample_below_it_or_where_all_stay_there():
    dip = {1000: 89.9, 2000: 90.1, 3000: 89.0, 4000: 50.0}
    assert (reached(dip, 90), reached(dip, 90, for_good=True)) == (1000, 3000)
    assert reached({1000: 89.9, 2000: 90.0}, 90, for_good=True) is None
    assert reached({}, 90) is None


def cold_and_warm(folder, cold, warm=1000, switch=400):
    """Five seeds each with and without warm-up; the cold ones get below 90 % where `cold` says, if ever."""
    for seed, first in enumerate(cold):
        late = [(first, 85, 85), (64_000, 0.1, 6.6 + 0.01 * seed)] if first else [(64_000, 90.2, 90)]
        write_run(folder, "cifar10-resnet110", seed, curve=[(500, 89.9, 90), (999, 95, 95), *late], **COLD)
        early = [(warm, 70, 70), (64_000, 0.1, 6.6 + 0.01 * seed)]
        write_run(folder, "cifar10-resnet110", seed, curve=early, warmup_switch=switch)
    return folder


def test_a_run_that_never_converges_is_none_that_does_within_some_epochs(tmp_path):
    assert verdict(7, cold_and_warm(tmp_path / "a", [3000, 4000, 5000, 6000, 5000]), 0).verdict == HELD
    one = verdict(7, cold_and_warm(tmp_path / "b", [3000, 4000, 5000, 6000, None]), 0)
    assert (one.verdict, "1 never" in one.ours) == (UNDECIDED, True)
    none = verdict(7, cold_and_warm(tmp_path / "c", [None] * 5), 0)
    assert (none.verdict, "outside 2.00 to 20.00" in none.why) == (FAILED, True)


@pytest.mark.parametrize(
    ("switches", "state"),
    [((380, 420, 400, 400, 400), HELD), ((380, 420, 400, 400, None), UNDECIDED), ((None,) * 5, FAILED)],
)
def test_a_warm_up_that_never_ends_is_beyond_any_bound(tmp_path, switches, state):
    for seed, switch in enumerate(switches):
        write_run(tmp_path, "cifar10-resnet110", seed, curve=[(64_000, 0.1, 6.6)], warmup_switch=switch)
    assert verdict(6, tmp_path, 0).verdict == state


# --- seeds without a value ------------------------------------------------------------------------------


def test_a_diverged_seed_keeps_its_net_undecided_and_is_told(tmp_path):
    write(tmp_path, "cifar10-plain20", [[(64_000, 1.4 + d, 9.7 + d)] for d in SPREAD])
    write(tmp_path, "cifar10-plain56", [[(64_000, 5.4 + d, 13.7 + d)] for d in SPREAD])
    assert verdict(1, tmp_path).verdict == HELD
    write_run(tmp_path, "cifar10-plain56", 3, curve=[(3000, 90, 90)], status="partial")
    running = verdict(1, tmp_path)
    assert (running.verdict, running.notes) == (
        HELD,
        ("Left out: plain-56 seed 3 (partial at iteration 3,000).",),
    )
    write_run(tmp_path, "cifar10-plain56", 4, curve=[(2000, 90, 90)], status="diverged")
    found = verdict(1, tmp_path)
    assert (found.verdict, found.commands) == (UNDECIDED, ())
    assert "undecided without plain-56 seed 4, which diverged" in found.why
    assert "plain-56 seed 4 (diverged at iteration 2,000)" in found.notes[0]
    assert "on shortened or other runs" not in table([running]).title  # a note makes it no other protocol


def test_seeds_that_were_not_evaluated_are_to_be_evaluated_and_not_trained_anew(tmp_path):
    for net, error in (("plain34", 28.5), ("resnet34", 25.0)):
        for seed in range(5):
            evals = {"ten_crop": (error + 0.1 * seed, 10)} if seed < 2 or net == "resnet34" else None
            write_run(tmp_path, f"imagenet-{net}", seed, curve=[(600_000, 30, 30)], evals=evals)
    found = verdict(15, tmp_path)
    assert found.verdict == UNDECIDED
    assert found.why.endswith("not measured yet of plain-34 seeds 2, 3, 4")
    folders = " ".join(f"runs/imagenet-plain34/seed{seed}" for seed in (2, 3, 4))
    assert found.commands == (f"resrepro eval {folders} --protocol ten_crop --data DIR",)
    for seed in (2, 3, 4):
        write_eval(tmp_path / "imagenet-plain34" / f"seed{seed}", "ten_crop", 28.5 + 0.1 * seed, 10)
    assert verdict(15, tmp_path).verdict == HELD


# --- how finely measured --------------------------------------------------------------------------------


def test_each_measure_has_the_step_in_which_it_is_recorded(tmp_path):
    (run,) = runs_in(write_run(tmp_path / "c", "cifar10-resnet110", warmup_switch=400).parent.parent)
    steps = {name: measure.resolution(run) for name, measure in MEASURES.items()}
    assert (steps["held_out_err"], steps["train_err"]) == (0.01, 0.002)  # one image of 10,000, of 50,000
    assert (steps["warmup_iterations"], steps["iterations_to_90_train"]) == (100, 1000)
    assert steps["epochs_to_90_train"] == pytest.approx(2.56)
    assert steps["mean_response"] == 0
    (digits,) = runs_in(write_run(tmp_path / "d", "digits-plain20").parent.parent)
    assert MEASURES["train_err"].resolution(digits) == 100 / 1024  # eight batches between samples


def test_seeds_that_agree_to_the_step_are_no_reason_to_stay_undecided(tmp_path):
    """The warm-up looks every 100 iterations, and a training error may be 0.00 in all seeds."""
    found = verdict(6, cold_and_warm(tmp_path / "warm", [3000, 4000, 5000, 6000, 5000]))
    assert found.verdict == HELD
    assert "ResNet-110 400 [364, 436], within 200 to 800" in found.why
    write(tmp_path / "deep", "cifar10-resnet1202", [[(64_000, 0.0, 7.9)]] * 3)
    assert verdict(8, tmp_path / "deep").verdict == HELD


# --- the paper's own data and protocol ------------------------------------------------------------------


@pytest.mark.parametrize(("number", "net"), [(3, "plain110"), (5, "resnet110"), (8, "resnet1202")])
@pytest.mark.parametrize(
    "other", [{"split": "45k5k"}, {"notices": ("the test set holds only the first 1,000",)}]
)
def test_an_absolute_level_is_decided_on_the_papers_whole_sets_alone(tmp_path, number, net, other):
    error = 88 if number == 3 else 0.05
    for folder, options in ((tmp_path / "own", {}), (tmp_path / "other", other)):
        write(
            folder, f"cifar10-{net}", [[(64_000, error + d / 10, error + d / 10)] for d in SPREAD], **options
        )
    assert verdict(number, tmp_path / "own").verdict == HELD
    found = verdict(number, tmp_path / "other")
    assert (found.verdict, "whole sets" in found.why) == (UNDECIDED, True)
    assert found.commands


def test_a_net_with_settings_is_the_papers_own_only_if_trained_as_the_paper_did(tmp_path):
    """A short run in another mode does not come before the paper's own protocol."""
    write_run(tmp_path, "cifar10-resnet110", curve=[(200, 95, 95)], iterations=200, mode="fast", **COLD)
    write(tmp_path, "cifar10-resnet110", [[(32_000, 0.1, 6.6)]] * 2, iterations=32_000)
    short = verdict(7, tmp_path)
    assert [short.exact, *(other.exact for other in short.others)] == [False, False]
    write_run(tmp_path, "cifar10-resnet110", curve=[(64_000, 0.1, 6.6)], **COLD)
    own = verdict(7, tmp_path)
    assert (own.exact, own.protocol) == (True, "CIFAR-10, 64,000 iterations")


# --- numbers in words -----------------------------------------------------------------------------------


def test_as_many_digits_are_printed_as_tell_an_interval_from_the_bound(tmp_path):
    write(tmp_path, "cifar10-resnet1202", [[(64_000, 0.0985, 7.9)]] * 3)
    found = verdict(8, tmp_path)  # with two decimals both the interval and the bound would end at 0.10
    assert (found.verdict, found.why) == (HELD, "ResNet-1202 0.0985 [0.0971, 0.0999], below 0.1000")


@pytest.mark.parametrize(
    ("number", "net", "errors", "told"),
    [
        (5, "resnet110", [8.6, 8.61, 8.62], "ResNet-110 8.61 [8.59, 8.63], not below 7.54"),
        (3, "plain110", [30, 30.1, 30.2], "plain-110 30.10 [29.85, 30.35], not above 60.00"),
        (3, "plain110", [88, 88.1, 88.2], "plain-110 88.10 [87.85, 88.35], above 60.00"),
        (3, "plain110", [59, 60, 62], "the interval does not decide whether it is above 60.00"),
    ],
)
def test_the_bound_stands_beside_the_interval(tmp_path, number, net, errors, told):
    write(tmp_path, f"cifar10-{net}", [[(64_000, error, error)] for error in errors])
    why = verdict(number, tmp_path).why
    assert told in why
    assert "inf" not in why


# --- on which test images --------------------------------------------------------------------------------


def test_an_error_on_a_part_of_the_test_set_waits_for_the_whole(tmp_path):
    for experiment, errors in (("cifar10-plain56", (13.1, 13.3)), ("cifar10-plain20", (9.6, 9.8))):
        write(tmp_path, experiment, [[(64_000, error / 3, error)] for error in errors], test_images=1000)
    found = verdict(1, tmp_path)
    assert found.verdict == UNDECIDED
    assert "not measured yet of plain-56" in found.why
    assert "resrepro eval runs/cifar10-plain20/seed0 runs/cifar10-plain20/seed1 --data DIR" in found.commands
    for folder in sorted(tmp_path.glob("*/seed*")):
        write_test_eval(folder, 13.2 if "plain56" in folder.parent.name else 9.7)
    found = verdict(1, tmp_path)
    assert found.verdict == HELD
    assert "test error: plain-56 13.20±0.00 (2), plain-20 9.70±0.00 (2)" in found.ours
