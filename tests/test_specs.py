"""Specs: which nets there can be, what a run is called, and how settings are typed."""

import dataclasses
import itertools
import json

import pytest

from resrepro import catalogue
from resrepro.errors import UsageError
from resrepro.specs import (
    MAX_NAME,
    SETTINGS,
    check_depth,
    check_shortcut,
    digest_of,
    net_label,
    parse,
    spell,
)

RESNET20 = catalogue.find("cifar10-resnet20")


@pytest.mark.parametrize(("depth", "n"), [(8, 1), (20, 3), (32, 5), (44, 7), (56, 9), (110, 18), (1202, 200)])
def test_the_papers_depths_have_the_papers_n(depth: int, n: int) -> None:
    assert check_depth(depth) == n


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(21, ("20", "26")), (25, ("20", "26")), (9, ("8", "14")), (1201, ("1196", "1202")), (57, ("56", "62"))],
)
def test_an_impossible_depth_is_a_value_error_naming_the_nearest_below_and_above(
    depth: int, nearest: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=f"{depth}.*nearest is {nearest[0]} or {nearest[1]}"):
        check_depth(depth)


@pytest.mark.parametrize("depth", [7, 2, 1, 0, -4, -10])
def test_a_depth_below_the_smallest_net_names_that_net_alone(depth: int) -> None:
    with pytest.raises(UsageError, match=r"the nearest is 8\.$"):
        check_depth(depth)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_a_plain_net_with_a_shortcut_is_refused(shortcut: str) -> None:
    with pytest.raises(UsageError, match=f"--plain and --shortcut {shortcut}"):
        check_shortcut(True, shortcut)


def test_residual_nets_take_option_a_unless_told_otherwise_and_plain_nets_none() -> None:
    assert check_shortcut(False, None) == "A"
    assert [check_shortcut(False, option) for option in ("A", "b", "C")] == ["A", "B", "C"]
    assert check_shortcut(True, None) is None


@pytest.mark.parametrize("shortcut", ["D", "", "AB"])
def test_an_unknown_shortcut_option_is_refused(shortcut: str) -> None:
    with pytest.raises(UsageError, match="A, B and C"):
        check_shortcut(False, shortcut)


@pytest.mark.parametrize(
    ("arguments", "label"),
    [((56, True), "plain-56"), ((56, False), "ResNet-56"), ((56, False, "A"), "ResNet-56"),
     ((20, False, "B"), "ResNet-20 (B)")],
)  # fmt: skip
def test_nets_are_labelled_as_in_the_field(arguments: tuple, label: str) -> None:
    assert net_label(*arguments) == label


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("iterations", "64000", 64000),
        ("iterations", "64_000", 64000),
        ("lr", "0.1", 0.1),
        ("lr", "1e-3", 0.001),
        ("flip", "on", True),
        ("flip", "OFF", False),
        ("flip", " true ", True),
        ("split", " 45k5k ", "45k5k"),
        ("lr_drops", "100,200", (100, 200)),
        ("lr_drops", "100", (100,)),
        ("lr_drops", "", ()),
    ],
)
def test_a_settings_text_becomes_a_value_of_its_type(key: str, text: str, value: object) -> None:
    parsed = parse(key, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("iterations", "1e3", "a whole number"),
        ("iterations", "", "a whole number"),
        ("lr", "fast", "a number"),
        ("flip", "maybe", "on or off"),
        ("flip", "1", "on or off"),
        ("lr_drops", "1,b", "whole numbers"),
        ("lr_drops", "1.5", "whole numbers"),
    ],
)
def test_a_text_of_the_wrong_type_is_refused_saying_what_is_wanted(key: str, text: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=f"^{key} takes .*{wanted}"):
        parse(key, text)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'learning_rate'"):
        parse("learning_rate", "0.1")


@pytest.mark.parametrize("value", [0.1, 0.3, 0.1 + 0.2, 1 / 3, 1e-5, 1e16, 5.0, -2.5, 255.0, 1e-300])
def test_a_float_is_spelled_so_that_reading_it_gives_the_very_same_float(value: float) -> None:
    assert float(spell(value)) == value
    assert parse("lr", spell(value)) == value


def test_floats_that_differ_in_their_last_bit_give_runs_of_different_names() -> None:
    one = catalogue.derive(RESNET20, lr=0.3)
    other = catalogue.derive(RESNET20, lr=0.1 + 0.2)
    assert one.name != other.name
    assert one.digest != other.digest


def test_whole_floats_are_spelled_without_a_point() -> None:
    assert spell(255.0) == "255"
    assert spell((32000, 48000)) == "32000,48000"
    assert [spell(value) for value in (True, False)] == ["on", "off"]


def test_every_setting_of_every_recipe_survives_being_spelled_and_parsed() -> None:
    for named in catalogue.recipes().values():
        for key in SETTINGS:
            value = getattr(named.recipe, key)
            assert parse(key, spell(value)) == value


def changed_specs() -> list:
    options = {
        "iterations": (2000, 64001),
        "lr": (0.05, 0.1 + 1e-17 * 5, 0.3, 0.1 + 0.2),
        "batch_size": (64, 256),
        "flip": (False,),
        "lr_drops": ((), (5,), (5, 6), (56,)),
        "pad_value": (1.0, 10.0, -1.0),
        "split": ("45k5k",),
        "bn_group": (64, 1),
    }
    specs = [catalogue.derive(RESNET20, shortcut) for shortcut in ("B", "C")]
    for key, values in options.items():
        specs += [catalogue.derive(RESNET20, **{key: value}) for value in values]
    for (one, values), (two, others) in itertools.combinations(options.items(), 2):
        specs.append(catalogue.derive(RESNET20, **{one: values[0], two: others[0]}))
        specs.append(catalogue.derive(RESNET20, "B", **{one: values[0], two: others[-1]}))
    return [spec for spec in specs if spec.to_json() != RESNET20.spec().to_json()]


def test_a_changed_spec_never_has_the_experiments_name_and_no_two_share_one() -> None:
    by_name: dict[str, str] = {}
    specs = changed_specs()
    assert len(specs) > 60
    for spec in specs:
        assert spec.name != RESNET20.name
        assert not spec.exact
        content = json.dumps(spec.to_json(), sort_keys=True)
        assert by_name.setdefault(spec.name, content) == content
    assert len({spec.digest for spec in specs}) == len(by_name)


def test_a_name_lists_the_experiment_then_every_change() -> None:
    spec = catalogue.derive(catalogue.find("cifar10-plain56"), iterations=2000, split="45k5k")
    assert spec.name == "cifar10-plain56+iterations=2000+split=45k5k"
    assert catalogue.find("cifar10-plain56").spec().name == "cifar10-plain56"
    assert catalogue.derive(RESNET20, "B").name == "cifar10-resnet20+shortcut=B"


def test_a_long_name_is_cut_but_stays_distinct() -> None:
    many = {
        "lr": 0.05, "lr_divisor": 5.0, "momentum": 0.8, "weight_decay": 0.0005, "decay_bn_bias": False,
        "bn_momentum": 0.01, "bn_eps": 0.001, "option_a_zeros": "symmetric", "init": "fan_out",
    }  # fmt: skip
    names = {catalogue.derive(RESNET20, **many, pad_value=float(value)).name for value in range(1, 30)}
    assert len(names) == 29
    assert all(len(name) <= MAX_NAME < 255 and name.startswith("cifar10-resnet20+lr=0.05") for name in names)


def test_every_name_is_a_single_plain_folder_name() -> None:
    for spec in changed_specs():
        assert not set(spec.name) & set('/\\:*?"<>| \t\n')


def test_the_digest_depends_on_every_setting_and_on_the_net_but_not_on_key_order() -> None:
    spec = RESNET20.spec()
    other = {int: 7, float: 0.123, bool: None, str: "other", tuple: (1, 2)}
    digests = {spec.digest}
    for key in SETTINGS:
        value = getattr(spec.recipe, key)
        changed = not value if isinstance(value, bool) else other[type(value)]
        recipe = dataclasses.replace(spec.recipe, **{key: changed})
        digests.add(dataclasses.replace(spec, recipe=recipe).digest)
    for net in ({"depth": 26}, {"plain": True}, {"shortcut": "B"}, {"dataset": "digits"}):
        digests.add(dataclasses.replace(spec, **net).digest)
    assert len(digests) == 1 + len(SETTINGS) + 4
    backwards = dict(reversed(spec.to_json().items()))
    assert digest_of(backwards) == spec.digest


def test_a_spec_read_back_from_json_has_the_same_digest() -> None:
    spec = catalogue.derive(RESNET20, lr=1 / 3, bn_eps=1e-7)
    assert digest_of(json.loads(json.dumps(spec.to_json()))) == spec.digest
