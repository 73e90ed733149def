"""Which runs share a group, and which protocol of several is shown: the rule, criterion by criterion."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FIRST_IMAGES, runs_in, write_run, write_test_eval

from resrepro.comparison.groups import Protocol, protocols_of, seed_groups
from resrepro.records import Run

NETS = ("resnet20", "resnet32", "resnet44")
TEST, HEADLINE, VALIDATION = ({"set": part} for part in ("test", "held_out", "val"))
AFTERWARDS = "test error measured after training, on all 10,000 test images"
Nets = Callable[..., list[Run]]


@pytest.fixture
def some(tmp_path: Path) -> Nets:
    """Made-up runs: so many nets, each of so many seeds, trained alike."""

    def make(nets: int = 2, seeds: int = 1, dataset: str = "cifar10", **options: object) -> list[Run]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for net in NETS[:nets]:
            for seed in range(seeds):
                length = {"digits": 240}.get(dataset, options.get("iterations", 64_000))
                write_run(folder, f"{dataset}-{net}", seed, curve=[(length, 1.0, 9.0)], **options)
        return list(runs_in(folder))

    return make


def ordered(runs: list[Run], enough: int = 2) -> list[Protocol[int]]:
    members: dict[int, list[Run]] = {}
    for run in runs:
        members.setdefault(run.spec["depth"], []).append(run)
    return protocols_of(members, enough)


def one_group(folder: Path) -> object:
    (group,) = seed_groups(runs_in(folder))
    return group


SHORT, FAST, SPLIT = {"iterations": 2000}, {"mode": "fast"}, {"split": "45k5k"}
CRITERIA = {
    "own dataset": ({"nets": 1, **SHORT}, {"nets": 3, "seeds": 2, "dataset": "digits"}),
    "something to compare": ({"nets": 2, **SHORT}, {"nets": 1, "seeds": 3}),
    "longest": ({"nets": 2, **FAST, **SPLIT}, {"nets": 3, "seeds": 2, **SHORT}),
    "longer than the paper's": ({"nets": 2, "iterations": 65_000}, {"nets": 3}),
    "longest of single nets": ({"nets": 1}, {"nets": 1, "seeds": 3, **SHORT}),
    "split": ({"nets": 2, **FAST}, {"nets": 3, "seeds": 2, **SPLIT}),
    "most nets": ({"nets": 3, **FAST}, {"nets": 2, "seeds": 3}),
    "most seeds": ({"seeds": 2, **FAST}, {"seeds": 1}),
    "the paper's own": ({}, {"data": "other", "notices": ("other images",)}),
    "default mode": (SHORT, {**FAST, **SHORT}),
    "fewest changes": ({"lr": 0.05, **SHORT}, {"lr": 0.05, "bn_group": 64, **SHORT}),
}


@pytest.mark.parametrize(("shown", "other"), CRITERIA.values(), ids=CRITERIA)
def test_each_criterion_decides_when_those_before_are_equal(some: Nets, shown: dict, other: dict) -> None:
    first, second = some(**shown), some(**other)
    for runs in (first + second, second + first):
        protocols = ordered(runs)
        assert [{run.folder for run in each.runs} for each in protocols] == [
            {run.folder for run in each} for each in (first, second)
        ]


def test_a_claim_asks_for_all_nets_that_it_compares_and_an_exhibit_for_two(some: Nets) -> None:
    runs = some(2) + some(3, **SHORT)
    assert [len(each.groups) for each in ordered(runs, 2)] == [2, 3]
    assert [len(each.groups) for each in ordered(runs, 3)] == [3, 2]


def test_unfinished_runs_are_of_no_group_and_make_no_protocol(some: Nets, tmp_path: Path) -> None:
    write_run(tmp_path / "open", "cifar10-resnet32", curve=[(32_000, 5.0, 9.0)])
    write_run(tmp_path / "open", "cifar10-resnet20", lr=0.05, curve=[(32_000, 5.0, 9.0)])
    unfinished = list(runs_in(tmp_path / "open"))
    (shown,) = ordered(some(1) + unfinished)
    assert (shown.groups.keys(), shown.left_out.keys()) == ({20}, {32})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "CIFAR-10, 64,000 iterations"),
        ({**SPLIT, **FAST, "precision": "bf16"}, "CIFAR-10, 64,000 iterations, split 45k5k, fast"),
        ({"iterations": 2000, "lr": 0.05}, "CIFAR-10, 2,000 of 64,000 iterations, lr 0.05"),
        ({"precision": "bf16"}, "CIFAR-10, 64,000 iterations, precision bf16"),
        ({"dataset": "digits"}, "digits, 240 iterations"),
    ],
)
def test_a_protocols_name_always_tells_the_iterations(some: Nets, options: dict, name: str) -> None:
    (protocol,) = ordered(some(**options))
    assert (protocol.name, protocol.size) == (name, "2 nets, 2 runs")


def test_which_test_images_were_at_hand_sets_no_runs_apart(some: Nets, tmp_path: Path) -> None:
    for seed, images in enumerate((1000, 10_000)):
        write_run(tmp_path / "mixed", seed=seed, split="45k5k", test_images=images)
    group = one_group(tmp_path / "mixed")
    assert [run.own_test_is_whole for run in group.runs] == [False, True]
    assert group.values(TEST) == [group.runs[1].last("test")]
    assert group.lacking(TEST) == [group.runs[0]]
    assert len(group.values(VALIDATION)) == 2
    assert group.best_sample == min(run.best for run in group.runs)  # of the validation images
    (protocol,) = ordered(list(group.runs))
    assert protocol.held_out == "val"  # not all have a test error that counts
    write_test_eval(group.runs[0].folder, 8.75)
    group = one_group(tmp_path / "mixed")
    assert group.values(TEST) == [8.75, group.runs[1].last("test")]
    assert (group.lacking(TEST), ordered(list(group.runs))[0].held_out) == ([], "test")


def test_what_is_said_of_the_test_images_is_told_of_the_own_test_error_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path, split="45k5k", test_images=1000)
    own, split = FIRST_IMAGES.format(1000), "trained on 45,000 images and validated on the last 5,000"
    group = one_group(tmp_path)
    assert group.caveats([TEST]) == [split, own]
    assert group.caveats([VALIDATION]) == [split]
    assert group.caveats([TEST], as_trained=True) == [split, own]
    write_test_eval(folder, 8.75, notices=["the test images are not exactly the official ones"])
    group = one_group(tmp_path)
    later = [split, "the test images are not exactly the official ones", AFTERWARDS]
    assert group.caveats([TEST]) == group.caveats([TEST, VALIDATION]) == later
    assert group.caveats([VALIDATION]) == [split]
    assert group.caveats([TEST], as_trained=True) == [split, own]


@pytest.mark.parametrize(
    ("experiment", "options", "comparable"),
    [
        ("cifar10-resnet20", {}, True), ("cifar10-resnet20", {"split": "45k5k", "mode": "fast"}, True),
        ("cifar10-resnet20", {"iterations": 2000}, False), ("imagenet-resnet18", {}, True),
        ("imagenet-resnet18", {"image_size": 64}, False), ("folder-resnet18", {}, False),
    ],
)  # fmt: skip
def test_shortened_runs_and_other_images_are_not_comparable(
    tmp_path: Path, experiment: str, options: dict, comparable: bool
) -> None:
    write_run(tmp_path, experiment, **options)
    assert one_group(tmp_path).comparable is comparable
