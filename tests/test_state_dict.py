"""Other people's state dicts on our nets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resrepro.errors import RecordError
from resrepro.evaluation.sources import ThirdPartyCheckpoint, read_net
from resrepro.evaluation.weights import (
    UNUSED,
    check_finite,
    fill,
    find_state_dict,
    match,
    read_weights,
)
from resrepro.nets import build_net
from resrepro.spec import catalogue

SPEC = catalogue.find("digits-resnet8").spec()


def weights(depth=8, **options):
    net = build_net("digits", depth, generator=torch.Generator().manual_seed(1), **options)
    return {key: value.clone() for key, value in net.state_dict().items() if not key.endswith(UNUSED)}


def filled(content, spec=SPEC):
    return fill(spec, 10, find_state_dict(content, "x.pt"), "x.pt")


def original():
    net = build_net("digits", 8)
    net.load_state_dict(weights(), strict=False)
    return net


def same_outputs(a, b):
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        return torch.equal(a.eval()(images), b.eval()(images))


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: {"state_dict": d}, lambda d: {"model": d, "epoch": 3}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_wherever_people_put_it(wrap, prefix):
    content = wrap({prefix + key: value for key, value in weights().items()})
    net, matched_by = filled(content)
    assert matched_by == "name"
    assert same_outputs(net, original())


def test_other_names_are_matched_by_order_and_shape():
    renamed = {f"layer{i}": value for i, value in enumerate(weights().values()) if value.ndim}
    net, matched_by = filled(renamed)
    assert matched_by == "order"
    assert same_outputs(net, original())


def test_names_count_for_more_than_order():
    shuffled = dict(reversed(list(weights().items())))
    net, matched_by = filled(shuffled)
    assert matched_by == "name"
    assert same_outputs(net, original())


def test_a_safetensors_file_fills_a_net_and_its_damage_is_one_sentence(tmp_path: Path):
    path = tmp_path / "theirs.safetensors"
    save_file(weights(), path)
    loaded = read_net(path, "digits", ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1)), tmp_path)
    assert same_outputs(loaded.net, original())
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], b"PK\3\4" + whole):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="is not a safetensors file, or is damaged"):
            read_weights(path)
    path.unlink()
    with pytest.raises(RecordError, match=r"theirs\.safetensors cannot be read"):
        read_weights(path)


def test_a_checkpoint_of_another_depth_names_the_first_tensor_that_does_not_fit():
    outline = build_net("digits", 14).state_dict()
    with pytest.raises(
        RecordError, match=r"misfit: its stages\.1\.0\.conv1\.weight has shape \(32, 16, 3, 3\)"
    ):
        match(outline, weights(8), "misfit")


def test_a_missing_last_tensor_is_named():
    short = weights()
    del short["fc.bias"]
    with pytest.raises(RecordError, match=r"it lacks, fc\.bias"):
        filled(short)


def test_option_b_weights_do_not_pass_for_option_a():
    with pytest.raises(RecordError, match="does not fit ResNet-8"):
        filled(weights(shortcut="B"))


def test_a_file_without_tensors_is_refused():
    with pytest.raises(RecordError, match="holds no state dict"):
        find_state_dict({"epoch": 3, "best_acc": 91.2}, "x.pt")


def test_numbers_that_are_none_are_named_with_their_tensor():
    for wrong in (float("nan"), float("inf"), -float("inf")):
        spoiled = weights()
        spoiled["stages.1.0.conv2.weight"][3, 2, 1, 0] = wrong
        with pytest.raises(RecordError, match=r"NaN or infinite numbers in stages\.1\.0\.conv2\.weight"):
            filled(spoiled)


def test_a_weight_is_no_whole_number():
    with pytest.raises(RecordError, match=r"kind int64 in fc\.bias"):
        check_finite({"fc.bias": torch.tensor([3])}, "x.pt")


def test_a_number_too_large_for_float32_counts_as_infinite():
    check_finite({"w": torch.tensor([3e38], dtype=torch.float64)}, "x.pt")
    with pytest.raises(RecordError, match="infinite"):
        check_finite({"w": torch.tensor([4e38], dtype=torch.float64)}, "x.pt")


def test_as_many_layers_as_weights_are_believed_and_one_memory_counts_once():
    deeper = catalogue.find("digits-resnet14").spec()
    with pytest.raises(RecordError, match="has weights for 8 at most"):
        filled(weights(8), deeper)
    shared = torch.zeros(3, 3)
    with pytest.raises(RecordError, match="for 1 at most"):
        filled({f"w{k}": shared for k in range(20)})


def test_negative_variances_are_refused():
    spoiled = weights()
    spoiled["stages.2.0.bn1.running_var"][5] = -0.1
    with pytest.raises(RecordError, match="negative variances"):
        filled(spoiled)


def test_no_memory_is_taken_for_a_net_that_the_tensors_do_not_fill():
    with pytest.raises(RecordError, match=r"fc\.weight has shape \(10, 64\) where .* \(1000000000, 64\)"):
        fill(SPEC, 10**9, weights(), "x.pt")
