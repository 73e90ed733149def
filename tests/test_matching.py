"""Other people's tensors on our nets: which set, which tensor is which, and what is another net."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.matching import UNUSED, choose, match, sets_of
from resrepro.nets import build_net

State = dict[str, Tensor]


def state(shortcut: str = "B") -> State:
    """Weights of a net with two blocks in each stage, no two tensors alike."""
    net = build_net("digits", 14, shortcut=shortcut, generator=torch.Generator().manual_seed(0))
    tensors = {key: value for key, value in net.state_dict().items() if not key.endswith(UNUSED)}
    for number, tensor in enumerate(tensors.values()):
        tensor += number
    return tensors


def renamed(tensors: State, *rules: tuple[str, Any]) -> State:
    for pattern, new in rules:
        tensors = {re.sub(pattern, new, key): tensor for key, tensor in tensors.items()}
    return tensors


TORCHVISION = ((r"stages\.(\d)", r"layer\1"), (r"shortcut", "downsample"))
AKAMASTER = ((r"stages\.(\d)", r"layer\1"), (r"^fc", "linear"))
DETECTRON = (
    *((r"stages\.(\d)", r"res\1"), (r"bn(\d)", r"conv\1.norm"), (r"^conv", "stem.conv")),
    *((r"shortcut\.0", "shortcut"), (r"shortcut\.1", "shortcut.norm")),
)
HUGGING_FACE = (
    *((r"^conv1", "resnet.embedder.embedder.conv"), (r"^bn1", "resnet.embedder.embedder.bn")),
    (r"stages\.(\d)\.(\d)", r"resnet.encoder.stages.\1.layers.\2"),
    *((r"\.conv(\d)", r".layer.\1.conv"), (r"\.bn(\d)", r".layer.\1.bn"), (r"^fc", "classifier.1")),
    *((r"shortcut\.0", "shortcut.conv"), (r"shortcut\.1", "shortcut.bn")),
    *((r"\.conv\.", ".convolution."), (r"\.bn\.", ".normalization.")),
)
NUMBERS = (
    *((r"^conv1", "0"), (r"^bn1", "1"), (r"^fc", "7"), (r"stages\.", "features.1")),
    *((r"conv1", "0.0"), (r"bn1", "0.1"), (r"conv2", "0.3"), (r"bn2", "0.4"), (r"shortcut", "1")),
)
KERAS = ((r"conv(\d)\.", r"conv2d_\1."), (r"bn(\d)", r"batch_normalization_\1"))
UNDERSCORES = ((r"stages\.(\d)\.(\d)\.", r"stage\1_unit\2_"), (r"running", "moving"), (r"\.", "_"))
LETTERS = ((r"\.(conv|bn)1", r".\1_a"), (r"\.(conv|bn)2", r".\1_b"), (r"^conv1", "conv_1_3x3"))


def alphabetical(tensors: State) -> State:
    return dict(sorted(tensors.items()))


def renamed_afterwards(tensors: State) -> State:
    """Alphabetical by other names."""
    return dict(sorted(tensors.items(), key=lambda item: (item[0].partition(".")[0][::-1], item[0])))


def shortcuts_first(tensors: State) -> State:
    """Each block's shortcut before its convolutions, the classifier before all."""
    block = re.compile(r"(.*(?:stages|layer|res)\.?\d\.(?:layers\.)?\d)\..*")
    blocks = {key: block.sub(r"\1", key) for key in tensors}
    order = list(dict.fromkeys(blocks.values()))

    def place(key: str) -> tuple[object, ...]:
        return tensors[key].ndim != 2, order.index(blocks[key]), not re.search("shortcut|downsample", key)

    return {key: tensors[key] for key in sorted(tensors, key=place)}


@pytest.mark.parametrize("arrange", [dict, alphabetical, renamed_afterwards, shortcuts_first])
@pytest.mark.parametrize("rules", [TORCHVISION, AKAMASTER, DETECTRON, HUGGING_FACE])
def test_names_of_others_find_their_places(rules, arrange):
    ours = state()
    weights, by, left_out = match(ours, arrange(renamed(ours, *rules)), "misfit")
    assert (by, left_out) == ("order", [])
    assert all(torch.equal(weights[key], ours[key]) for key in ours)


@pytest.mark.parametrize("rules", [NUMBERS, UNDERSCORES, LETTERS, KERAS])
def test_other_ways_to_name_them_are_matched_in_the_files_order(rules):
    ours = state()
    weights, _, _ = match(ours, renamed(ours, *rules), "misfit")
    assert all(torch.equal(weights[key], ours[key]) for key in ours)


def pre_activation(tensors: State) -> State:
    """A net of the same shapes in which BN comes before each convolution, and one at the end."""
    modules: dict[str, list[Tensor]] = {}
    for key, tensor in tensors.items():
        modules.setdefault(key.rpartition(".")[0], []).append(tensor)
    convolutions, norms = ([each for key, each in modules.items() if kind in key] for kind in ("conv", "bn"))
    names = ["conv1"]
    for stage in range(3):
        names += [f"layer{stage}.{k}.{each}" for k in range(2) for each in ("bn1", "conv1", "bn2", "conv2")]
    both = [each for pair in zip(convolutions, norms, strict=True) for each in pair]
    parts = ("weight", "bias", "running_mean", "running_var")
    found = {f"fc.{part}": tensors[f"fc.{part}"] for part in ("weight", "bias")}
    for name, module in zip([*names, "bn"], both, strict=True):
        found |= {f"{name}.{part}": tensor for part, tensor in zip(parts, module, strict=False)}
    return found


def swapped(tensors: State) -> State:
    """BN of each block before its convolutions."""
    return dict(sorted(tensors.items(), key=lambda item: (item[0][:10], "conv" in item[0])))


def three_in_a_block(tensors: State) -> State:
    def place(found: re.Match[str]) -> str:
        number = 2 * int(found[2]) + int(found[4]) - 1
        return f"layer{found[1]}.{number // 3}.{found[3]}{number % 3 + 1}"

    return renamed(tensors, (r"stages\.(\d)\.(\d)\.(conv|bn)(\d)", place))


def numbered(tensors: State) -> State:
    """Those of a pre-activation net, all in one module: conv0, bn1, conv1, .."""
    tensors = pre_activation(tensors)
    flat = lambda found: f"{found[3]}{4 * int(found[1]) + 2 * int(found[2]) + int(found[4])}"  # noqa: E731
    return renamed(tensors, (r"^conv1", "conv0"), (r"layer(\d)\.(\d)\.(bn|conv)(\d)", flat))


@pytest.mark.parametrize("change", [pre_activation, swapped, three_in_a_block, numbered])
def test_another_net_of_the_same_shapes_is_refused_with_both_orders(change):
    ours = state("A")
    theirs = change(renamed(ours, *TORCHVISION) if change is swapped else ours)
    assert sorted(tensor.shape for tensor in theirs.values()) == sorted(each.shape for each in ours.values())
    with pytest.raises(RecordError, match=r"misfit: its layers are .* where those of the net are .*stages"):
        match(ours, theirs, "misfit")
    with pytest.raises(RecordError, match="misfit"):
        match(ours, alphabetical(theirs) if change is not swapped else theirs, "misfit")


def test_a_bias_before_bn_is_folded_and_what_is_no_layer_left_out():
    ours = state()
    theirs = renamed(ours, *TORCHVISION) | {
        "layer1.0.conv1.bias": torch.full((32,), 0.5), "val_acc.total": torch.tensor(3.0),
        "normalize.mean": torch.zeros(1, 3, 1, 1), "criterion.weight": torch.ones(10),
        "step": torch.tensor(7),
    }  # fmt: skip
    weights, _, left_out = match(ours, theirs, "misfit")
    assert left_out == ["val_acc.total", "normalize.mean", "criterion.weight", "step"]
    mean = "stages.1.0.bn1.running_mean"
    assert torch.equal(weights.pop(mean), ours[mean] - 0.5)
    assert all(torch.equal(weights[key], ours[key]) for key in weights)
    for key in ("layer1.0.scale", "layer1.0.alpha", "prelu.weight", "layer1.0.act.weight"):
        with pytest.raises(RecordError, match=rf"misfit: {key} is no part of it, and may not be left out"):
            match(ours, theirs | {key: torch.ones(1)}, "misfit")
    with pytest.raises(RecordError, match="layers and BN instead of"):
        match(ours, theirs | {"head.weight": torch.ones(10, 10), "head.bias": torch.ones(10)}, "misfit")


def test_sets_of_weights_are_found_at_any_depth_and_behind_any_beginning_of_their_names():
    ours = state()
    optimizer = {"state": {140234: {"momentum_buffer": ours["conv1.weight"]}}, "param_groups": [{"lr": 0.1}]}
    prefixed = {f"student.{key}": each for key, each in ours.items()} | {"val.total": torch.ones(1)}
    nested = {"a": [0, {"b": (ours,)}], "optimizer": optimizer, "epoch": 3}
    fit = lambda tensors: match(ours, tensors, "misfit")  # noqa: E731
    for content, key in (
        (ours, ""), ({"state_dict": ours}, "state_dict"), ({"net": prefixed}, "net"), (nested, "a.1.b.0"),
        ({"model": ours, "ema": dict(ours)}, "model"),
        ({f"module.module.{key}": each for key, each in ours.items()}, ""),
    ):  # fmt: skip
        found, (weights, *_) = choose(content, "x.pt", None, fit)
        assert found == key
        assert all(torch.equal(each, ours[name]) for name, each in weights.items())
    several = {"model": ours, "model_ema": {key: tensor + 1 for key, tensor in ours.items()}}
    with pytest.raises(UsageError, match=r"that fit, model, model_ema: .* such as --weights model_ema\."):
        choose(several, "x.pt", None, fit)
    chosen, (weights, *_) = choose(several, "x.pt", "model_ema", fit)
    assert (chosen, torch.equal(weights["fc.weight"], ours["fc.weight"] + 1)) == ("model_ema", True)
    with pytest.raises(UsageError, match=r"no weights under 'x'; it has '' \(the file's top\)\."):
        choose(ours, "x.pt", "x", fit)
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["again"] = loop
    assert list(sets_of(loop)) == [""]
