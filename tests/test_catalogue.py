"""The catalogue: every experiment of the paper, its settings and marks, and what departs from it."""

import itertools
from functools import cache

import pytest

from resrepro import catalogue
from resrepro.errors import UsageError
from resrepro.specs import SETTINGS, Spec, parse

# Parameters of the nets, counted from their shapes in the protocol sheet (Section 3).
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
NAMES = list(catalogue.experiments())
CIFAR = [name for name in NAMES if name.startswith("cifar10-")]


def parameters_of(depth: int, plain: bool, shortcut: str | None) -> int:
    import torch

    from resrepro.nets import build_net

    with torch.device("meta"):
        net = build_net("cifar10", depth, plain, shortcut)
    assert all(p.is_meta for p in net.parameters())
    return sum(p.numel() for p in net.parameters())


def spec_from(command: str) -> tuple[Spec, int]:
    """The spec and seed that a command line stands for, read flag by flag."""
    words = command.split(" ")
    assert words[:2] == ["resrepro", "train"]
    flags = iter(words[2:])
    dataset, depth, plain, shortcut, seed, settings = "cifar10", 0, False, None, 0, {}
    named = {"--iterations", "--batch-size", "--split", "--bn-group", "--precision", "--eval-every"}
    for flag in flags:
        if flag == "--plain":
            plain = True
            continue
        value = next(flags)
        if flag == "--dataset":
            dataset = value
        elif flag == "--depth":
            depth = int(value)
        elif flag == "--shortcut":
            shortcut = value
        elif flag == "--seed":
            seed = int(value)
        elif flag == "--set":
            key, _, text = value.partition("=")
            settings[key] = parse(key, text)
        else:
            assert flag in named, flag
            key = flag.removeprefix("--").replace("-", "_")
            settings[key] = parse(key, value)
    return catalogue.derive(catalogue.experiment_for(dataset, depth, plain), shortcut, **settings), seed


def test_the_catalogue_holds_every_cifar_net_of_the_paper() -> None:
    plain = {f"cifar10-plain{depth}" for depth in (20, 32, 44, 56, 110)}
    residual = {f"cifar10-resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)}
    assert set(CIFAR) == plain | residual


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_builds_with_the_published_number_of_parameters(name: str) -> None:
    spec = catalogue.find(name).spec()
    assert parameters_of(spec.depth, spec.plain, spec.shortcut) == PARAMETERS[spec.depth]


@pytest.mark.parametrize("depth", PARAMETERS)
def test_option_b_adds_two_projections_to_the_parameters(depth: int) -> None:
    assert parameters_of(depth, False, "B") == PARAMETERS[depth] + 2_752


def test_plain_1202_is_as_large_as_its_residual_counterpart() -> None:
    assert parameters_of(1202, True, None) == PARAMETERS[1202]


@pytest.mark.parametrize("name", CIFAR)
def test_a_cifar_experiment_carries_the_stated_recipe(name: str) -> None:
    recipe = catalogue.find(name).spec().recipe
    stated = (recipe.iterations, recipe.batch_size, recipe.lr, recipe.lr_drops, recipe.lr_divisor)
    assert stated == (64_000, 128, 0.1, (32_000, 48_000), 10)
    assert (recipe.momentum, recipe.weight_decay, recipe.pad, recipe.flip) == (0.9, 0.0001, 4, True)
    assert (recipe.mean, recipe.split, recipe.bn_group, recipe.test_view) == ("per_pixel", "all", 0, "single")


def test_only_the_110_and_1202_layer_residual_nets_warm_up() -> None:
    warm = {name: catalogue.find(name).spec().recipe for name in CIFAR}
    rates = {name: r.warmup_lr for name, r in warm.items() if r.warmup_lr}
    assert rates == {"cifar10-resnet110": 0.01, "cifar10-resnet1202": 0.01}
    resnet110 = warm["cifar10-resnet110"]
    assert (resnet110.warmup_until_err, resnet110.warmup_window) == (80.0, 100)


def test_the_110_layer_net_runs_five_seeds() -> None:
    assert catalogue.find("cifar10-resnet110").seeds == (0, 1, 2, 3, 4)


def test_table_6_and_figures_1_and_6_have_the_nets_that_the_paper_puts_there() -> None:
    def shown(exhibit: str) -> set[str]:
        return {name for name, e in catalogue.experiments().items() if exhibit in e.exhibits}

    assert shown("table6") == {f"cifar10-resnet{d}" for d in (20, 32, 44, 56, 110, 1202)}
    assert shown("figure1") == {"cifar10-plain20", "cifar10-plain56"}
    assert shown("figure6") == set(CIFAR)


@pytest.mark.parametrize("name", list(catalogue.recipes()))
def test_every_setting_is_marked_and_every_stated_one_has_its_section(name: str) -> None:
    settings = catalogue.recipes()[name].settings
    assert tuple(settings) == SETTINGS
    for setting in settings.values():
        assert setting.mark in ("stated", "derived", "assumed"), setting.key
        assert setting.source or setting.mark != "stated", f"{setting.key} is stated, but where?"
        assert setting.note or setting.mark != "assumed", f"{setting.key} is assumed, but why?"


@pytest.mark.parametrize(
    ("key", "mark"),
    [
        *((key, "stated") for key in ("iterations", "batch_size", "lr", "lr_drops", "momentum")),
        *((key, "stated") for key in ("weight_decay", "pad", "flip", "mean", "test_view")),
        *((key, "assumed") for key in ("bn_group", "bn_momentum", "bn_eps", "option_a_zeros", "init")),
        *((key, "assumed") for key in ("decay_bn_bias", "momentum_form", "pad_order", "pad_value")),
        ("sampling", "assumed"),
        ("split", "derived"),
    ],
)  # fmt: skip
def test_what_the_paper_says_is_stated_and_what_it_leaves_open_is_not(key: str, mark: str) -> None:
    assert catalogue.recipes()["cifar-64k"].settings[key].mark == mark


def test_every_experiments_name_says_its_dataset_kind_and_depth() -> None:
    for name, experiment in catalogue.experiments().items():
        kind = "plain" if experiment.plain else "resnet"
        assert name == experiment.name == f"{experiment.dataset}-{kind}{experiment.depth}"


def test_a_depth_that_is_not_listed_takes_the_default_recipe() -> None:
    experiment = catalogue.find("cifar10-resnet26")
    assert (experiment.depth, experiment.plain, experiment.seeds, experiment.exhibits) == (
        26,
        False,
        (0,),
        (),
    )
    assert experiment.spec().recipe == catalogue.find("cifar10-resnet20").spec().recipe
    assert catalogue.find("digits-plain8").spec().recipe == catalogue.find("digits-plain20").spec().recipe


@pytest.mark.parametrize("name", ["cifar10-resnet21", "cifar10-plain7", "digits-resnet0"])
def test_an_experiment_of_an_impossible_depth_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"6n\+2"):
        catalogue.find(name)


@pytest.mark.parametrize("name", ["resnet20", "imagenet-resnet20", "cifar10-vgg16", "cifar10-resnet", ""])
def test_an_unknown_experiment_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"no experiment '{name}'"):
        catalogue.find(name)


def test_an_unknown_dataset_is_refused_naming_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'mnist'.*cifar10 and digits"):
        catalogue.experiment_for("mnist", 20)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"iterations": 0}, "at least 1"),
        ({"iterations": -5}, "at least 1"),
        ({"iterations": 10.0}, "type int"),
        ({"batch_size": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": float("inf")}, "finite"),
        ({"momentum": 1.5}, "at most 1"),
        ({"warmup_until_err": 101.0}, "at most 100"),
        ({"flip": 1}, "type bool"),
        ({"flip": "on"}, "type bool"),
        ({"iterations": True}, "type int"),
        ({"lr": "0.1"}, "type float"),
        ({"split": "40k10k"}, "all, 45k5k"),
        ({"init": "xavier"}, "fan_in, fan_out"),
        ({"lr_drops": (200, 100)}, "rising"),
        ({"lr_drops": (0,)}, "above 0"),
        ({"lr_drops": (10.0,)}, "lr_drops"),
        ({"lr_drops": "10"}, "lr_drops"),
        ({"lr_drops": 10}, "lr_drops"),
        ({"eval_every": 0}, "at least 1"),
        ({"bn_group": 48}, "does not divide"),
        ({"bn_group": 256}, "does not divide"),
        ({"learning_rate": 0.1}, "'learning_rate'"),
        ({"momentum_form": "nesterov", "momentum": 0.0}, "momentum"),
    ],
)
def test_a_setting_that_is_unknown_or_out_of_range_is_refused(settings: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        catalogue.derive(catalogue.find("cifar10-resnet20"), **settings)


def test_the_45k5k_split_is_refused_for_the_digits() -> None:
    with pytest.raises(UsageError, match="45k/5k"):
        catalogue.derive(catalogue.find("digits-resnet20"), split="45k5k")


def test_values_equal_to_the_experiments_own_leave_the_spec_exact() -> None:
    experiment = catalogue.find("cifar10-resnet110")
    own = {key: getattr(experiment.spec().recipe, key) for key in SETTINGS}
    assert catalogue.derive(experiment, "A", **own) == experiment.spec()
    assert catalogue.derive(experiment, **dict.fromkeys(SETTINGS)) == experiment.spec()
    assert catalogue.derive(experiment, lr_divisor=10).exact  # a whole number for a float


def test_drops_and_samples_set_by_hand_beside_a_shorter_run_are_kept_and_named() -> None:
    spec = catalogue.derive(catalogue.find("cifar10-resnet20"), iterations=100, lr_drops=(7,), eval_every=3)
    assert (spec.recipe.lr_drops, spec.recipe.eval_every) == ((7,), 3)
    assert spec.name == "cifar10-resnet20+iterations=100+lr_drops=7+eval_every=3"


@cache
def altered() -> list[Spec]:
    """Specs with every setting changed once, several together, of all kinds of experiments."""
    values = {
        "iterations": 2000, "batch_size": 64, "sampling": "replacement", "split": "45k5k", "lr": 0.1 + 0.2,
        "lr_drops": (100, 200), "lr_divisor": 5.0, "warmup_lr": 0.02, "warmup_until_err": 77.5,
        "warmup_window": 50, "momentum": 1 / 3, "momentum_form": "nesterov", "weight_decay": 0.0,
        "decay_bn_bias": False, "init": "fan_out", "bn_group": 64, "bn_momentum": 0.001, "bn_eps": 1e-12,
        "option_a_zeros": "symmetric", "mean": "per_channel", "pixel_divisor": 1.0, "pad": 2,
        "pad_order": "pad_first", "pad_value": -1.5, "flip": False, "precision": "bf16", "eval_every": 17,
    }  # fmt: skip
    assert set(values) == set(SETTINGS) - {"test_view"}
    resnet = catalogue.find("cifar10-resnet20")
    specs = [catalogue.derive(resnet, **{key: value}) for key, value in values.items()]
    specs += [
        catalogue.derive(resnet, "C", **dict(pair)) for pair in itertools.combinations(values.items(), 2)
    ]
    specs.append(catalogue.derive(resnet, lr_drops=()))
    specs.append(catalogue.derive(catalogue.find("cifar10-resnet110"), warmup_lr=0.0, flip=False))
    specs.append(catalogue.derive(catalogue.find("digits-plain20"), pad=4, flip=True, iterations=100))
    specs.append(catalogue.derive(catalogue.find("cifar10-plain26"), **values))
    return specs


def test_the_command_of_every_experiment_stands_for_that_experiment() -> None:
    for name in [*NAMES, "cifar10-resnet26", "digits-plain14"]:
        for seed in (0, 3):
            spec = catalogue.find(name).spec()
            assert spec_from(catalogue.command_for(spec, seed)) == (spec, seed)


def test_the_command_of_every_altered_spec_stands_for_that_very_spec() -> None:
    for spec in altered():
        again, seed = spec_from(catalogue.command_for(spec, 11))
        assert again == spec
        assert (again.name, again.digest, seed) == (spec.name, spec.digest, 11)


def test_names_of_altered_specs_are_distinct() -> None:
    digests = {spec.digest for spec in altered()}
    assert len({spec.name for spec in altered()}) == len(digests) > 300


@pytest.mark.parametrize("name", CIFAR)
def test_a_paper_exact_experiment_departs_in_nothing(name: str) -> None:
    assert catalogue.departures(catalogue.find(name).spec()) == []


def departures(name: str, shortcut: str | None = None, **settings: object) -> list[str]:
    return catalogue.departures(catalogue.derive(catalogue.find(name), shortcut, **settings))


def test_every_altered_setting_is_a_departure() -> None:
    for spec in altered():
        changed = spec.changes
        unlisted = not catalogue.find(spec.experiment).exhibits
        if spec.dataset == "cifar10":
            assert len(catalogue.departures(spec)) == len(changed) + unlisted, spec.name


def test_a_shortened_run_says_how_short_it_is_and_nothing_of_its_scaled_drops() -> None:
    (told,) = departures("cifar10-plain56", iterations=2000)
    assert "2,000 iterations instead of 64,000" in told


def test_a_split_run_says_what_it_trained_and_validated_on() -> None:
    (told,) = departures("cifar10-plain56", split="45k5k")
    assert "45,000" in told
    assert "last 5,000" in told


def test_another_shortcut_is_a_departure_from_option_a() -> None:
    (told,) = departures("cifar10-resnet20", "B")
    assert "option B instead of A" in told


def test_a_setting_on_which_the_paper_is_silent_is_told_as_such() -> None:
    (silent,) = departures("cifar10-resnet20", bn_group=64)
    (stated,) = departures("cifar10-resnet20", weight_decay=0.0)
    assert "the paper does not say" in silent
    assert "the paper does not say" not in stated
    assert "weight_decay 0 instead of 0.0001" in stated


def test_a_net_that_the_paper_does_not_have_is_a_departure() -> None:
    assert departures("cifar10-resnet26") == ["the paper has no ResNet-26"]


def test_a_digits_run_says_first_that_it_is_not_cifar() -> None:
    told = departures("digits-resnet20")
    assert "digits instead of CIFAR-10" in told[0]
    for key in ("240 iterations", "lr 0.05 instead of 0.1", "pad 0 instead of 4", "flip off instead of on"):
        assert any(key in sentence for sentence in told), key
    assert not any("lr_drops" in sentence for sentence in told)


def test_dropping_the_110s_warm_up_is_a_departure_and_adding_one_to_another_net_too() -> None:
    (dropped,) = departures("cifar10-resnet110", warmup_lr=0.0)
    (added,) = departures("cifar10-resnet56", warmup_lr=0.01)
    assert "warmup_lr 0 instead of 0.01" in dropped
    assert "warmup_lr 0.01 instead of 0" in added
