"""Other people's state dicts on our nets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resrepro.errors import RecordError
from resrepro.evaluation.foreign import (
    check_depth_of,
    check_finite,
    check_fit,
    check_variances,
    find_state_dict,
    fit,
    read_safetensors,
)
from resrepro.evaluation.subjects import Foreign, read_subject
from resrepro.nets import build_net


def weights(depth=8, **options):
    net = build_net("digits", depth, generator=torch.Generator().manual_seed(1), **options)
    return {key: value.clone() for key, value in net.state_dict().items()}


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
    net, original = build_net("digits", 8), build_net("digits", 8)
    original.load_state_dict(weights())
    assert fit(net, find_state_dict(content, "x.pt"), "x.pt", "ResNet-8") == "name"
    assert same_outputs(net, original)


def test_other_names_are_matched_by_order_and_shape():
    renamed = {f"layer{i}": value for i, value in enumerate(weights().values()) if value.ndim}
    net, original = build_net("digits", 8), build_net("digits", 8)
    original.load_state_dict(weights())
    assert fit(net, find_state_dict(renamed, "x.pt"), "x.pt", "ResNet-8") == "order"
    assert same_outputs(net, original)


def test_names_count_for_more_than_order():
    shuffled = dict(reversed(list(weights().items())))
    net, original = build_net("digits", 8), build_net("digits", 8)
    original.load_state_dict(weights())
    assert fit(net, find_state_dict(shuffled, "x.pt"), "x.pt", "ResNet-8") == "name"
    assert same_outputs(net, original)


def test_a_safetensors_file_fills_a_net_and_its_damage_is_one_sentence(tmp_path: Path):
    path, original = tmp_path / "theirs.safetensors", build_net("digits", 8)
    original.load_state_dict(weights())
    save_file(weights(), path)
    subject = read_subject(path, "digits", Foreign(8, mean=(0, 0, 0), std=(1, 1, 1)), tmp_path)
    assert same_outputs(subject.net, original)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], b"PK\3\4" + whole):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="is not a safetensors file, or is damaged"):
            read_safetensors(path)
    path.unlink()
    with pytest.raises(RecordError, match=r"theirs\.safetensors cannot be read"):
        read_safetensors(path)


def test_a_checkpoint_of_another_depth_names_the_first_tensor_that_does_not_fit():
    with pytest.raises(RecordError, match=r"stages\.1\.0\.conv1\.weight has shape \(32, 16, 3, 3\)"):
        fit(build_net("digits", 14), find_state_dict(weights(8), "x.pt"), "x.pt", "ResNet-14")


def test_a_missing_last_tensor_is_named():
    short = weights()
    del short["fc.bias"]
    with pytest.raises(RecordError, match=r"it lacks, fc\.bias"):
        fit(build_net("digits", 8), find_state_dict(short, "x.pt"), "x.pt", "ResNet-8")


def test_option_b_weights_do_not_pass_for_option_a():
    with pytest.raises(RecordError, match="does not fit"):
        fit(build_net("digits", 8), find_state_dict(weights(shortcut="B"), "x.pt"), "x.pt", "ResNet-8")


def test_a_file_without_tensors_is_refused():
    with pytest.raises(RecordError, match="holds no state dict"):
        find_state_dict({"epoch": 3, "best_acc": 91.2}, "x.pt")


def test_numbers_that_are_none_are_named_with_their_tensor():
    for wrong in (float("nan"), float("inf"), -float("inf")):
        spoiled = weights()
        spoiled["stages.1.0.conv2.weight"][3, 2, 1, 0] = wrong
        with pytest.raises(RecordError, match=r"NaN or infinite numbers in stages\.1\.0\.conv2\.weight"):
            check_finite(spoiled, "x.pt")
    check_finite(weights(), "x.pt")


def test_the_counter_of_batches_may_be_a_whole_number_and_a_weight_may_not():
    check_finite({"bn1.num_batches_tracked": torch.tensor(3)}, "x.pt")
    with pytest.raises(RecordError, match=r"kind int64 in fc\.bias"):
        check_finite({"fc.bias": torch.tensor([3])}, "x.pt")


def test_a_number_too_large_for_float32_counts_as_infinite():
    check_finite({"w": torch.tensor([3e38], dtype=torch.float64)}, "x.pt")
    with pytest.raises(RecordError, match="infinite"):
        check_finite({"w": torch.tensor([4e38], dtype=torch.float64)}, "x.pt")


def test_as_many_layers_as_weights_are_believed_and_one_memory_counts_once():
    check_depth_of(weights(14), 14, "x.pt")
    with pytest.raises(RecordError, match="has weights for 8 at most"):
        check_depth_of(weights(8), 14, "x.pt")
    shared = torch.zeros(3, 3)
    with pytest.raises(RecordError, match="for 1 at most"):
        check_depth_of({f"w{k}": shared for k in range(20)}, 20, "x.pt")


def test_negative_variances_are_refused():
    net = build_net("digits", 8)
    check_variances(net, "x.pt")
    net.stages[2][0].bn1.running_var[5] = -0.1
    with pytest.raises(RecordError, match="negative variances"):
        check_variances(net, "x.pt")


def test_an_outline_without_memory_is_enough_to_see_whether_tensors_fit():
    with torch.device("meta"):
        outline = build_net("digits", 8)
        larger = build_net("digits", 8, num_classes=10**9)
    check_fit(outline, find_state_dict(weights(), "x.pt"), "x.pt", "ResNet-8")
    with pytest.raises(RecordError, match=r"fc\.weight has shape \(10, 64\) where"):
        check_fit(larger, find_state_dict(weights(), "x.pt"), "x.pt", "ResNet-8")
