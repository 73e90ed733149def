"""How a batch is spread over processes and passes, and which images then share BN statistics."""

import pytest

from resrepro.errors import UsageError
from resrepro.spec import catalogue
from resrepro.spec.specs import Recipe
from resrepro.training.session import plan
from resrepro.training.spread import Spread, bn_group_for, spread_batch

CIFAR = catalogue.find("cifar10-resnet20").spec().recipe
IMAGENET = catalogue.find("imagenet-resnet18").spec().recipe


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "spread"),
    [
        (128, 1, None, (128, 128)),
        (128, 2, None, (64, 64)),
        (256, 8, 16, (32, 16)),
        (256, 1, 256, (256, 256)),
        (6, 3, 1, (2, 1)),
    ],
)
def test_every_process_and_every_pass_has_equally_many_images(
    batch: int, processes: int, micro: int | None, spread: tuple[int, int]
) -> None:
    assert spread_batch(batch, processes, micro) == Spread(*spread)


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "complaint"),
    [
        (65, 2, None, r"batch of 65 does not divide among 2 processes.*--batch-size"),
        (128, 1, 48, r"--micro-batch 48 does not divide the 128 images"),
        (128, 2, 128, r"--micro-batch 128 does not divide the 64 images"),
        (128, 2, 0, r"--micro-batch 0 does not divide"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    batch: int, processes: int, micro: int | None, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        spread_batch(batch, processes, micro)


@pytest.mark.parametrize(
    ("recipe", "processes", "micro", "group"),
    [
        (CIFAR, 1, None, 0),  # the whole batch, as ever
        (CIFAR, 2, None, 64),  # each process its own images
        (CIFAR, 4, None, 32),
        (CIFAR, 1, 32, 32),  # each pass its own
        (CIFAR, 2, 16, 16),
        *((IMAGENET, processes, None, 32) for processes in (1, 2, 4, 8)),  # as on the paper's eight GPUs
        (IMAGENET, 16, None, 16),  # a process has only 16
        (IMAGENET, 1, 64, 32),
        (IMAGENET, 1, 16, 16),
        (IMAGENET, 32, None, 8),
    ],
)
def test_bn_takes_the_groups_of_the_recipe_or_what_one_process_has_in_one_pass(
    recipe: Recipe, processes: int, micro: int | None, group: int
) -> None:
    spread = spread_batch(recipe.batch_size, processes, micro)
    assert bn_group_for(recipe, spread, given=False) == group


@pytest.mark.parametrize(
    ("processes", "micro", "group", "complaint"),
    [
        (4, None, 64, r"BN groups of 64 images do not divide the 32 that a process has in one pass"),
        (1, 32, 64, r"BN groups of 64 images do not divide the 32"),
        (2, None, 128, r"BN groups of 128 images do not divide the 64"),
        (1, 32, 0, r"whole batch needs the batch in one process and one pass"),
        (2, None, 0, r"whole batch needs the batch in one process and one pass"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    processes: int, micro: int | None, group: int | None, complaint: str,
) -> None:  # fmt: skip
    as_one_of(processes, monkeypatch)
    with pytest.raises(UsageError, match=complaint):
        plan("cifar10-resnet20", None, micro, {"bn_group": group})


def test_a_group_that_was_asked_for_and_fits_is_kept_under_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = set()
    for processes in (1, 2, 4):
        as_one_of(processes, monkeypatch)
        names.add(plan("cifar10-resnet20", None, None, {"bn_group": 32})[0].name)
    assert names == {"cifar10-resnet20+bn_group=32"}


def test_two_processes_make_another_run_of_cifar_and_the_same_of_imagenet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_one_of(2, monkeypatch)
    cifar, spread = plan("cifar10-resnet20", None, None, {})
    assert (cifar.name, spread) == ("cifar10-resnet20+bn_group=64", Spread(64, 64))
    assert [told for told in catalogue.departures(cifar) if told.startswith("bn_group 64 instead of 0")]
    assert plan("imagenet-resnet18", None, None, {})[0].name == "imagenet-resnet18"
    as_one_of(16, monkeypatch)
    imagenet, _ = plan("imagenet-resnet18", None, None, {})
    assert imagenet.name == "imagenet-resnet18+bn_group=16"
    assert [told for told in catalogue.departures(imagenet) if told.startswith("bn_group 16 instead of 32")]


def as_one_of(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes, "MASTER_ADDR": "node0"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
