"""Specs: which nets there can be, what a run is called, and how settings are typed."""

import dataclasses
import json
from pathlib import Path

import pytest

from resrepro.errors import UsageError
from resrepro.spec import Spec, catalogue, check_depth, check_shortcut, command_for, digest_of
from resrepro.spec.recipe import DATASETS, ordered_settings, parse, recipe_from_json, scaled, spell

RESNET20 = catalogue.find("cifar10-resnet20")
RESNET50 = catalogue.find("imagenet-resnet50")
DEPTHS = (18, 34, 50, 101, 152)
RECORDS = sorted((Path(__file__).resolve().parent.parent / "results").glob("*/seed*/spec.json"))


def test_a_depth_of_6n_plus_2_is_one_of_a_cifar_net_and_those_of_table_1_of_imagenet_nets():
    for n in (1, 2, 3, 5, 7, 9, 18, 200):
        assert check_depth(6 * n + 2) == check_depth(6 * n + 2, "cifar") == 6 * n + 2
    assert [check_depth(depth, "imagenet") for depth in DEPTHS] == [18, 34, 50, 101, 152]


@pytest.mark.parametrize("depth", [20, 0, -34, 19, 200])
def test_a_depth_that_table_1_lacks_is_a_value_error_naming_those_it_has(depth):
    with pytest.raises(ValueError, match=f"18, 34, 50, 101 or 152 layers.* not {depth}") as caught:
        check_depth(depth, "imagenet")
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [
        (21, "20 or 26"), (25, "20 or 26"), (9, "8 or 14"), (1201, "1196 or 1202"),
        (34, r"32 or 38 \(ImageNet's nets: --dataset imagenet\)"), (7, "8"), (1, "8"), (0, "8"), (-10, "8"),
    ],
)  # fmt: skip
def test_an_impossible_depth_is_refused_naming_the_nearest(depth, nearest):
    with pytest.raises(UsageError, match=rf"{depth} is not .*the nearest is {nearest}\.$"):
        check_depth(depth)


def test_a_net_takes_the_papers_shortcut_unless_another_is_named_and_a_plain_net_none():
    for dataset in ("imagenet", "folder"):
        options = {depth: catalogue.find(f"{dataset}-resnet{depth}").spec().shortcut for depth in DEPTHS}
        assert options == {18: "A", 34: "A", 50: "B", 101: "B", 152: "B"}
    assert {catalogue.find(f"{dataset}-resnet110").spec().shortcut for dataset in DATASETS[:2]} == {"A"}
    assert [check_shortcut(False, option) for option in (None, "A", "b", "C")] == ["A", "A", "B", "C"]
    assert [check_shortcut(False, option, "B") for option in (None, "a", "C")] == ["B", "A", "C"]
    assert check_shortcut(True, None) is check_shortcut(True, None, "B") is None
    with pytest.raises(UsageError, match="--plain and --shortcut A"):
        check_shortcut(True, "A")
    for unknown in ("D", "", "AB"):
        with pytest.raises(UsageError, match="A, B and C"):
            check_shortcut(False, unknown)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("iterations", "64000", 64000), ("iterations", "64_000", 64000), ("lr", "0.1", 0.1),
        ("lr", "1e-3", 0.001), ("flip", "OFF", False), ("flip", " true ", True),
        ("split", " 45k5k ", "45k5k"), ("lr_drops", "100", (100,)), ("lr_drops", "", ()),
        ("scale", "73, 137", (73, 137)),
    ],
)  # fmt: skip
def test_a_settings_text_becomes_a_value_of_its_type(key, text, value):
    parsed = parse(key, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("iterations", "1e-3", "a whole number"), ("iterations", "", "a whole number"),
        ("lr", "fast", "a number"), ("flip", "1", "on or off"), ("lr_drops", "1.5", "whole numbers"),
        ("scale", "256-480", "whole numbers"),
    ],
)  # fmt: skip
def test_a_text_of_the_wrong_type_is_refused_saying_what_is_wanted(key, text, wanted):
    with pytest.raises(UsageError, match=f"^{key} takes .*{wanted}"):
        parse(key, text)
    with pytest.raises(UsageError, match="'learning_rate'"):
        parse("learning_rate", "0.1")


@pytest.mark.parametrize("value", [0.1, 0.1 + 0.2, 1 / 3, 1e-5, 1e16, 5.0, -2.5, 255.0, 1e-300])
def test_a_float_is_spelled_so_that_reading_it_gives_the_very_same_float(value):
    assert parse("lr", spell(value)) == float(spell(value)) == value


def test_values_are_spelled_as_one_types_them():
    values = (255.0, (32000, 48000), True, False)
    assert [spell(value) for value in values] == ["255", "32000,48000", "on", "off"]


def test_every_setting_of_every_recipe_survives_being_spelled_and_parsed():
    for named in catalogue.recipes().values():
        for key in ordered_settings(named.recipe):
            value = getattr(named.recipe, key)
            assert parse(key, spell(value)) == value
            assert type(parse(key, spell(value))) is type(value)


def test_the_papers_scales_keep_their_ratio_to_the_crop():
    recipe = RESNET50.spec().recipe
    small = recipe.resized_to(64)
    assert (small.image_size, small.scale) == (64, (73, 137))  # 256 and 480 times 64 / 224
    assert dataclasses.replace(small, image_size=224, scale=(256, 480)) == recipe
    assert recipe.resized_to(224) == recipe
    assert recipe.resized_to(448).scale == (512, 960)
    assert [scaled(side, 64) for side in (200, 224, 256, 640)] == [64, 64, 73, 183]


@pytest.mark.parametrize(
    ("iterations", "every", "drops"),
    [
        (600_000, 5000, (150_000, 300_000)), (160_000, 5000, (40_000, 80_000)),
        (159_968, 0, (39_992, 79_984)), (600, 0, (150, 300)), (10, 0, (3, 5)),
    ],
)  # fmt: skip
def test_a_shortened_imagenet_run_is_sampled_by_epochs_and_drops_where_the_paper_does(
    iterations, every, drops
):
    recipe = RESNET50.spec().recipe.shortened_to(iterations)
    assert (recipe.eval_every, recipe.lr_drops) == (every, drops)


def test_samples_of_a_short_run_on_photographs_lie_an_epoch_apart_unless_set_by_hand():
    folder = catalogue.find("folder-resnet18")
    trial = catalogue.derive(folder, iterations=12, batch_size=64)
    assert trial.recipe.sampled_every(13_394) == 210  # an epoch: at the end alone
    assert catalogue.derive(folder, iterations=6400, batch_size=64).recipe.sampled_every(1000) == 200
    by_hand = catalogue.derive(folder, iterations=12, batch_size=64, eval_every=1)
    assert by_hand.recipe.sampled_every(13_394) == 1
    # as committed records have it: under the same name, told in the command, no departure
    assert (by_hand.name, by_hand.digest == trial.digest) == (trial.name, False)
    assert "--eval-every 1 " in command_for(by_hand)
    assert catalogue.departures(by_hand) == catalogue.departures(trial)
    rarely = catalogue.departures(catalogue.derive(folder, iterations=6400, eval_every=500))
    assert "sampled every 500 iterations; as densely as the paper's curves: every 200" in rarely
    assert RESNET20.spec().recipe.sampled_every(50_000) == 1000


def test_a_recipe_read_back_from_json_is_the_same_or_a_type_error():
    for named in catalogue.recipes().values():
        values = json.loads(json.dumps(dataclasses.asdict(named.recipe)))
        assert recipe_from_json(values) == named.recipe
        for broken in (values | {"nonsense": 1}, {key: v for key, v in values.items() if key != "lr"}):
            with pytest.raises(TypeError):
                recipe_from_json(broken)


def test_the_records_of_this_repository_keep_their_digests():
    assert len(RECORDS) >= 8
    for path in RECORDS:
        record = json.loads(path.read_text(encoding="utf-8"))
        values = dict(record["spec"])
        spec = Spec(**values | {"recipe": recipe_from_json(values["recipe"])})
        assert spec.digest == record["digest"], path
        experiment = catalogue.find(spec.experiment)
        changed = {key: getattr(spec.recipe, key) for key in ordered_settings(spec.recipe)}
        again = catalogue.derive(experiment, spec.shortcut, **changed)
        assert (again.digest, again.name) == (record["digest"], record["name"])


def test_a_name_lists_the_experiment_then_every_change():
    spec = catalogue.derive(catalogue.find("cifar10-plain56"), iterations=2000, split="45k5k")
    assert spec.name == "cifar10-plain56+iterations=2000+split=45k5k"
    assert catalogue.find("cifar10-plain56").spec().name == "cifar10-plain56"
    assert catalogue.derive(RESNET20, "B").name == "cifar10-resnet20+shortcut=B"
    imagenet = catalogue.derive(RESNET50, "A", iterations=600, image_size=64, stride_3x3=True)
    assert imagenet.name == "imagenet-resnet50+shortcut=A+iterations=600+stride_3x3=on+image_size=64"


def test_a_long_name_is_cut_but_stays_distinct():
    many = {
        "lr": 0.05, "lr_divisor": 5.0, "momentum": 0.8, "weight_decay": 0.0005, "decay_bn_bias": False,
        "bn_momentum": 0.01, "bn_eps": 0.001, "option_a_zeros": "symmetric", "init": "fan_out",
    }  # fmt: skip
    names = {catalogue.derive(RESNET20, **many, pad_value=float(value)).name for value in range(1, 30)}
    assert len(names) == 29
    assert all(len(name) <= 120 and name.startswith("cifar10-resnet20+lr=0.05") for name in names)


@pytest.mark.parametrize("experiment", [RESNET20, RESNET50], ids=["cifar", "imagenet"])
def test_the_digest_depends_on_every_setting_and_on_the_net_but_not_on_key_order(experiment):
    spec = experiment.spec()
    other = {int: 7, float: 0.123, bool: None, str: "other", tuple: (1, 2)}
    digests = {spec.digest}
    settings = ordered_settings(spec.recipe)
    for key in settings:
        value = getattr(spec.recipe, key)
        changed = not value if isinstance(value, bool) else other[type(value)]
        recipe = dataclasses.replace(spec.recipe, **{key: changed})
        digests.add(dataclasses.replace(spec, recipe=recipe).digest)
    for net in ({"depth": 26}, {"plain": True}, {"shortcut": "C"}, *({"dataset": d} for d in DATASETS)):
        digests.add(dataclasses.replace(spec, **net).digest)
    assert len(digests) == len(settings) + 3 + len(DATASETS)
    backwards = dict(reversed(spec.to_json().items()))
    assert digest_of(json.loads(json.dumps(backwards))) == spec.digest
