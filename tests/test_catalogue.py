"""The catalogue: every experiment of the paper, its settings and marks, and what departs from it."""

import dataclasses
import itertools
import re
from functools import cache

import pytest

from resrepro.errors import UsageError
from resrepro.spec import Spec, catalogue, command_for
from resrepro.spec.recipe import RECIPES, Recipe, check_setting, ordered_settings, parse

NAMES = list(catalogue.experiments())
CIFAR = [name for name in NAMES if name.startswith("cifar10-")]
IMAGENET = [name for name in NAMES if name.startswith("imagenet-")]
FLAGS = {
    "--iterations", "--batch-size", "--split", "--image-size", "--bn-group", "--bn-stats", "--precision",
    "--eval-every",
}  # fmt: skip
CIFAR_ONLY = {"split", "pad", "pad_order", "pad_value"}


def derived(name: str, shortcut: str | None = None, **settings: object) -> Spec:
    return catalogue.derive(catalogue.find(name), shortcut, **settings)


def spec_from(command: str) -> tuple[Spec, int]:
    """The spec and seed that a command line stands for, read flag by flag."""
    start = "resrepro train "
    assert command.startswith(start)
    words = command.removeprefix(start).replace("--plain", "--plain on")
    words = words.replace("--stride-3x3", "--set stride_3x3=on").split(" ")
    net: dict = {"--dataset": "cifar10", "--plain": "off", "--shortcut": None, "--seed": "0", "--data": None}
    settings = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag in net or flag == "--depth":
            net[flag] = value
            continue
        key, _, text = value.partition("=")
        if flag != "--set":
            assert flag in FLAGS
            key, text = flag.removeprefix("--").replace("-", "_"), value
        settings[key] = parse(key, text)
    assert net["--data"] == ("DIR" if net["--dataset"] in ("imagenet", "folder") else None)
    plain, shortcut = net["--plain"] == "on", net["--shortcut"]
    experiment = catalogue.experiment_for(net["--dataset"], int(net["--depth"]), plain, shortcut)
    return catalogue.derive(experiment, shortcut, **settings), int(net["--seed"])


def test_the_catalogue_holds_the_papers_nets_with_the_shortcuts_that_its_tables_say():
    plain = {f"cifar10-plain{depth}": None for depth in (20, 32, 44, 56, 110)}
    residual = {f"cifar10-resnet{depth}": "A" for depth in (20, 32, 44, 56, 110, 1202)}
    imagenet = {
        "plain18": None, "plain34": None, "resnet18": "A", "resnet34": "A", "resnet34-b": "B",
        "resnet34-c": "C", "resnet50": "B", "resnet101": "B", "resnet152": "B",
    }  # fmt: skip
    options = {name: catalogue.find(name).spec().shortcut for name in (*CIFAR, *IMAGENET)}
    assert options == plain | residual | {f"imagenet-{net}": option for net, option in imagenet.items()}
    seeds = {name: catalogue.find(name).seeds for name in options}
    assert {name for name in options if seeds[name] != (0,)} == {"cifar10-resnet110"}
    assert seeds["cifar10-resnet110"] == (0, 1, 2, 3, 4)


def carries(recipe: Recipe, **values: object) -> bool:
    return {key: getattr(recipe, key) for key in values} == values


def test_an_experiment_carries_the_recipe_of_section_4_2_or_3_4():
    for name in CIFAR:
        assert carries(
            catalogue.find(name).spec().recipe, iterations=64_000, batch_size=128, lr=0.1,
            lr_drops=(32_000, 48_000), lr_divisor=10, momentum=0.9, weight_decay=0.0001, pad=4, flip=True,
            mean="per_pixel", split="all", bn_group=0, test_view="single",
        )  # fmt: skip
    for name in IMAGENET:
        assert carries(
            catalogue.find(name).spec().recipe, iterations=600_000, batch_size=256, lr=0.1, lr_divisor=10,
            lr_policy="fixed", lr_drops=(150_000, 300_000), momentum=0.9, weight_decay=0.0001, flip=True,
            mean="per_pixel", image_size=224, scale=(256, 480), colour="pca_computed", colour_std=0.1,
            bn_group=32, bn_stats="running", stride_3x3=False, warmup_lr=0, test_view="center",
            eval_every=5_000,
        )  # fmt: skip


def test_only_the_110_and_1202_layer_residual_nets_warm_up():
    warm = {name: recipe for name in CIFAR if (recipe := catalogue.find(name).spec().recipe).warmup_lr}
    assert [*warm] == ["cifar10-resnet110", "cifar10-resnet1202"]
    for recipe in warm.values():
        assert carries(recipe, warmup_lr=0.01, warmup_until_err=80.0, warmup_window=100)


def shown(exhibit: str) -> set[str]:
    return {name for name, e in catalogue.experiments().items() if exhibit in e.exhibits}


def test_the_exhibits_have_the_nets_that_the_paper_puts_there():
    assert shown("table6") == {f"cifar10-resnet{d}" for d in (20, 32, 44, 56, 110, 1202)}
    assert shown("figure1") == {"cifar10-plain20", "cifar10-plain56"}
    assert shown("figure6") == set(CIFAR)
    deep = {f"imagenet-resnet{depth}" for depth in (50, 101, 152)}
    projected = {"imagenet-resnet34-b", "imagenet-resnet34-c"}
    four = {f"imagenet-{kind}{depth}" for kind in ("plain", "resnet") for depth in (18, 34)}
    assert shown("table2") == shown("figure4") == four
    assert shown("table3") == {"imagenet-plain34", "imagenet-resnet34"} | projected | deep
    assert shown("table4") == shown("table5") == projected | deep


@pytest.mark.parametrize("name", list(catalogue.recipes()))
def test_every_setting_is_marked_and_every_stated_one_has_its_section(name):
    named = catalogue.recipes()[name]
    settings = named.settings
    assert tuple(settings) == ordered_settings(RECIPES[named.family])
    for setting in settings.values():
        check_setting(setting.key, setting.value)
        assert setting.mark in ("stated", "derived", "assumed"), setting.key
        assert setting.source or setting.mark != "stated", f"{setting.key} is stated, but where?"
        assert setting.note or setting.mark != "assumed", f"{setting.key} is assumed, but why?"
        assert setting.source or setting.note, f"{setting.key} is derived, but from what?"


def test_options_b_and_c_of_resnet_34_are_experiments_and_of_other_nets_changes():
    for option in ("B", "c"):
        experiment = catalogue.experiment_for("imagenet", 34, shortcut=option)
        assert experiment.name == f"imagenet-resnet34-{option.lower()}"
        assert not catalogue.derive(experiment, option).changes
    assert catalogue.experiment_for("imagenet", 34, shortcut="A").name == "imagenet-resnet34"
    for dataset, depth, option in (("cifar10", 20, "B"), ("imagenet", 18, "B"), ("imagenet", 50, "A")):
        experiment = catalogue.experiment_for(dataset, depth, shortcut=option)
        spec = catalogue.derive(experiment, option)
        assert spec.name == f"{dataset}-resnet{depth}+shortcut={option}"
        assert spec.changes == (("shortcut", option),)


def test_a_net_and_its_settings_have_one_name_however_the_option_is_asked_for():
    resnet34, option_b = catalogue.find("imagenet-resnet34"), catalogue.find("imagenet-resnet34-b")
    assert catalogue.derive(resnet34, "B") == catalogue.derive(option_b) == option_b.spec()
    assert catalogue.derive(option_b, "A", lr=0.2) == catalogue.derive(resnet34, lr=0.2)


def test_a_folder_of_images_has_the_twin_of_every_imagenet_experiment():
    for name in IMAGENET:
        experiment = catalogue.find(name)
        twin = catalogue.find(name.replace("imagenet", "folder"))
        assert twin == dataclasses.replace(experiment, name=twin.name, dataset="folder")
        assert twin.name == name.replace("imagenet", "folder")
        assert twin.spec().recipe == experiment.spec().recipe
        assert twin.spec().digest != experiment.spec().digest
        assert catalogue.experiment_for("folder", twin.depth, twin.plain, twin.shortcut) == twin


def test_a_depth_that_is_not_listed_takes_the_default_recipe():
    experiment = catalogue.find("cifar10-resnet26")
    assert (experiment.depth, experiment.plain, experiment.seeds) == (26, False, (0,))
    for name, listed in (
        ("cifar10-resnet26", "cifar10-resnet20"), ("digits-plain8", "digits-plain20"),
        ("imagenet-plain50", "imagenet-resnet50"), ("folder-plain152", "imagenet-resnet152"),
    ):  # fmt: skip
        assert catalogue.find(name).spec().recipe == catalogue.find(listed).spec().recipe
        assert catalogue.find(name).exhibits == ()


def test_a_net_is_found_by_its_name_alone_and_as_the_paper_spells_it():
    spelled = ("resnet56", "Plain-20", "imagenet-resnet-34-B")
    names = ["cifar10-resnet56", "cifar10-plain20", "imagenet-resnet34-b"]
    assert [catalogue.find(text).name for text in spelled] == names


@pytest.mark.parametrize(
    "name",
    ["vgg16", "mnist-resnet20", "", "imagenet-plain34-b", "cifar10-resnet20-b", "imagenet-resnet34-a"],
)
def test_an_unknown_experiment_is_refused_by_name(name):
    with pytest.raises(UsageError, match=re.escape(f"no experiment {name!r}")):
        catalogue.find(name)


def test_a_mistyped_experiment_and_the_name_of_a_run_lead_to_the_one_meant():
    for name in ("cifar10-resnt56", "cifar10-resnet56+iterations=2000", "cifar-resnet56"):
        with pytest.raises(UsageError, match=r"did you mean cifar10-resnet56\?"):
            catalogue.find(name)
    for name, told in (("vgg16", r"no experiment 'vgg16': `resrepro list`"), ("folder-plain8", "or 152")):
        with pytest.raises(UsageError, match=told):
            catalogue.find(name)
    with pytest.raises(UsageError, match=r"'mnist'.*cifar10, digits, imagenet and folder"):
        catalogue.experiment_for("mnist", 20)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("resnet20", {"iterations": 0}, "at least 1"), ("resnet20", {"iterations": 10.0}, "type int"),
        ("resnet20", {"lr": 0.0}, "above 0"), ("resnet20", {"lr": float("nan")}, "finite"),
        ("resnet20", {"momentum": 1.5}, "at most 1"), ("resnet20", {"flip": 1}, "type bool"),
        ("resnet20", {"split": "40k10k"}, "all, 45k5k"), ("resnet20", {"lr_drops": (200, 100)}, "rising"),
        ("resnet20", {"lr_drops": "10"}, "lr_drops"), ("resnet20", {"bn_group": 48}, "does not divide"),
        ("resnet20", {"learning_rate": 0.1}, "'learning_rate'"),
        ("resnet20", {"image_size": 32}, "^image_size is no setting of cifar10-resnet20"),
        ("digits-resnet20", {"split": "45k5k"}, "45k/5k"),
        ("imagenet-plain34", {"image_size": 31}, "at least 32"),
        ("imagenet-plain34", {"scale": (256,)}, "two ends"),
        ("imagenet-plain34", {"scale": (223, 480)}, "223 pixels does not hold a crop of 224"),
        ("imagenet-plain34", {"image_size": 300, "scale": (256, 480)}, "does not hold a crop of 300"),
        ("imagenet-plain34", {"batch_size": 48, "bn_group": 32}, "does not divide into BN groups of 32"),
        ("resnet20", {"momentum": 0.0, "momentum_form": "nesterov"}, "needs a momentum above 0"),
        ("folder-plain18", {"split": "all"}, "^split is no setting of folder-plain18"),
    ],
)  # fmt: skip
def test_a_setting_that_is_unknown_or_does_not_fit_is_refused(name, settings, told):
    with pytest.raises(UsageError, match=told):
        derived(name, **settings)


def test_values_equal_to_the_experiments_own_leave_the_spec_exact():
    for name in ("cifar10-resnet110", "imagenet-resnet34-c", "imagenet-plain18", "folder-resnet50"):
        experiment = catalogue.find(name)
        spec = experiment.spec()
        own = {key: getattr(spec.recipe, key) for key in ordered_settings(spec.recipe)}
        assert catalogue.derive(experiment, spec.shortcut, **own) == spec
        assert catalogue.derive(experiment, **dict.fromkeys(own)) == spec
    assert not catalogue.derive(experiment, lr_divisor=10).changes  # a whole number for a float


@pytest.mark.parametrize(
    ("name", "settings", "follow"),
    [
        ("cifar10-resnet20", {"iterations": 100, "lr_drops": (7,), "eval_every": 3}, {}),
        ("imagenet-resnet34", {"iterations": 600, "image_size": 64},
         {"scale": (73, 137), "lr_drops": (150, 300), "eval_every": 0}),
        ("imagenet-resnet34", {"image_size": 64, "scale": (64, 137)}, {}),
    ],
)  # fmt: skip
def test_what_follows_from_the_length_or_the_image_size_is_named_only_if_set_by_hand(name, settings, follow):
    spec = derived(name, **settings)
    assert {key: getattr(spec.recipe, key) for key in (*settings, *follow)} == settings | follow
    assert spec.changes == tuple(settings.items())
    assert derived(name, **settings | follow) == spec


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
    own = {
        "lr_policy": "plateau", "plateau_patience": 3, "plateau_gain": 0.5, "image_size": 64,
        "scale": (230, 470), "colour": "pca_published", "colour_std": 0.05, "stride_3x3": True,
        "bn_stats": "precise",
    }  # fmt: skip
    photographs = {key: value for key, value in values.items() if key not in CIFAR_ONLY} | own
    others = ("imagenet-resnet34-c", "imagenet-resnet18", "folder-resnet34-b", "folder-plain50")
    return [
        *one_and_two_changes("cifar10-resnet20", "C", values),
        *one_and_two_changes("imagenet-resnet50", "A", photographs),
        *(derived(name, **photographs) for name in others),
        derived("cifar10-resnet20", lr_drops=()),
        derived("cifar10-resnet110", warmup_lr=0.0, flip=False),
        derived("digits-plain20", pad=4, flip=True, iterations=100),
        derived("cifar10-plain26", **values),
        derived("folder-plain18", image_size=64, scale=(70, 80), eval_every=5),
        derived("imagenet-resnet18", "C", bn_group=0),
    ]


def one_and_two_changes(name: str, shortcut: str, values: dict) -> list[Spec]:
    """The experiment with each of the settings changed, and with another shortcut and each two of them."""
    experiment = catalogue.find(name)
    assert set(values) == set(ordered_settings(experiment.spec().recipe)) - {"test_view"}
    pairs = itertools.combinations(values.items(), 2)
    ones = [catalogue.derive(experiment, **{key: value}) for key, value in values.items()]
    return ones + [catalogue.derive(experiment, shortcut, **dict(pair)) for pair in pairs]


def test_the_command_of_every_experiment_stands_for_that_experiment():
    twins = [name.replace("imagenet", "folder") for name in IMAGENET]
    for name in [*NAMES, *twins, "cifar10-resnet26", "digits-plain14", "imagenet-plain50", "folder-plain152"]:
        for seed in (0, 3):
            spec = catalogue.find(name).spec()
            assert spec_from(command_for(spec, seed)) == (spec, seed)


def test_the_command_of_every_altered_spec_stands_for_that_very_spec():
    for spec in altered():
        again, seed = spec_from(command_for(spec, 11))
        assert again == spec
        assert (again.name, again.digest, seed) == (spec.name, spec.digest, 11)


def test_a_command_on_photographs_names_their_dataset_and_a_folder():
    spec = derived("folder-resnet34-b", image_size=64, iterations=600, batch_size=64, bn_stats="precise")
    assert command_for(spec, 2) == (
        "resrepro train --dataset folder --depth 34 --shortcut B --iterations 600 --batch-size 64 "
        "--bn-stats precise --image-size 64 --data DIR --seed 2"
    )
    later = derived("imagenet-plain50", stride_3x3=True)
    assert command_for(later) == (
        "resrepro train --dataset imagenet --depth 50 --plain --stride-3x3 --data DIR"
    )


def test_names_of_altered_specs_are_distinct_plain_folder_names_and_none_is_an_experiments():
    digests, names = {spec.digest for spec in altered()}, {spec.name for spec in altered()}
    assert len(names) == len(digests) > 700
    assert not names & set(NAMES)
    assert all(spec.changes for spec in altered())
    assert not set("".join(names)) & set('/\\:*?"<>| \t\n')


def departures(name: str, shortcut: str | None = None, **settings: object) -> list[str]:
    return catalogue.departures(derived(name, shortcut, **settings))


def test_every_altered_setting_is_a_departure_and_of_a_paper_exact_experiment_nothing_is():
    assert not any(departures(name) for name in (*CIFAR, *IMAGENET))
    for spec in altered():
        if spec.dataset in ("cifar10", "imagenet"):
            unlisted = not catalogue.find(spec.experiment).exhibits
            assert len(catalogue.departures(spec)) == len(spec.changes) + unlisted, spec.name


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("cifar10-plain56", {"iterations": 2000},
         "2,000 iterations instead of 64,000 (the schedule keeps its shape)"),
        ("cifar10-plain56", {"iterations": 1},
         "1 iteration instead of 64,000 (the schedule keeps its shape)"),
        ("cifar10-plain56", {"eval_every": 7},
         "sampled every 7 iterations; as densely as the paper's curves: every 1000"),
        ("cifar10-plain56", {"split": "45k5k"}, "trained on 45,000 images and validated on the last 5,000"),
        ("cifar10-resnet20", {"shortcut": "B"}, "shortcut option B instead of A (Section 4.2)"),
        ("imagenet-resnet50", {"shortcut": "A"}, "shortcut option A instead of B (Section 4.1)"),
        ("cifar10-resnet20", {"bn_group": 64}, "bn_group 64 instead of 0 (the paper does not say)"),
        ("cifar10-resnet20", {"weight_decay": 0.0}, "weight_decay 0 instead of 0.0001"),
        ("cifar10-resnet110", {"warmup_lr": 0.0}, "warmup_lr 0 instead of 0.01"),
        ("cifar10-resnet56", {"warmup_lr": 0.01}, "warmup_lr 0.01 instead of 0"),
        ("cifar10-resnet26", {}, "the paper gives no number for ResNet-26"),
        ("imagenet-resnet18", {"image_size": 64},
         "crops of 64 pixels instead of 224 (all sizes of the views in proportion)"),
        ("imagenet-resnet50", {"stride_3x3": True},
         "stride on the 3x3 of a bottleneck instead of its first 1x1"),
        ("imagenet-plain34", {"batch_size": 64}, "batch_size 64 instead of 256"),
        ("imagenet-plain34", {"bn_stats": "precise"},
         "BN statistics at test: plain averages over training batches, as in the authors' README"),
        ("imagenet-plain34", {"lr_policy": "plateau"},
         "rate divided when the error plateaus (Section 3.4), not where Figure 4 drops"),
        ("folder-resnet34-b", {}, "a folder of other images instead of ImageNet"),
    ],
)  # fmt: skip
def test_each_departure_is_told_in_one_sentence(name, settings, told):
    assert departures(name, **settings) == [told]


def test_other_images_are_told_first_and_what_follows_from_a_length_is_not_told():
    told = departures("folder-plain18", lr=0.05)
    assert told == ["a folder of other images instead of ImageNet", "lr 0.05 instead of 0.1"]
    told = departures("digits-resnet20")
    assert "digits instead of CIFAR-10" in told[0]
    for key in ("240 iterations", "lr 0.05 instead of 0.1", "pad 0 instead of 4", "flip off instead of on"):
        assert any(key in sentence for sentence in told), key
    assert not any("lr_drops" in sentence for sentence in told)


def test_the_protocols_have_the_views_of_sections_3_4_and_4_2():
    assert {name: (p.family, p.sides, p.crops) for name, p in catalogue.protocols().items()} == {
        "single": ("cifar", (), "whole"),
        "center": ("imagenet", (256,), "center"),
        "ten_crop": ("imagenet", (256,), "ten"),
        "multi_scale": ("imagenet", (224, 256, 384, 480, 640), "dense"),
    }


def test_a_protocol_that_does_not_fit_is_refused_naming_those_that_do():
    photographs = "photographs: there is center or ten_crop or multi_scale"
    for name, family, there_is in (
        ("ten_crop", "cifar", "CIFAR-10 and digits: there is single"),
        ("single", "imagenet", photographs), ("five_crop", "imagenet", photographs),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"no protocol '{name}' for {there_is}"):
            catalogue.protocol_for(name, family)


@pytest.mark.parametrize(("batch", "group"), [(256, 32), (64, 32), (48, 48), (8, 8)])
def test_a_batch_that_does_not_divide_into_the_recipes_bn_groups_is_one_group(batch, group):
    spec = derived("imagenet-resnet18", batch_size=batch)
    assert spec.recipe.bn_group == group
    assert ("bn_group" in dict(spec.changes)) == (group != 32)
