"""Weights in files: other people's on our nets; of ours what was trained is what one loads."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from conftest import rewrite
from runs import checkpoint_of, json_of, net_of
from safetensors.torch import save_file
from seeds import seeded

import resrepro
from resrepro.data import load_dataset
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.sources import ThirdPartyCheckpoint, load_net, read_net
from resrepro.evaluation.weights import (
    COUNTER,
    choose,
    fill,
    fitted,
    match,
    read_weights,
    sets_of,
    write_weights,
)
from resrepro.nets import Net, build_net
from resrepro.records import Run, read_run
from resrepro.records.reading import WEIGHTS
from resrepro.spec import Spec, catalogue

State = dict[str, torch.Tensor]


EIGHT = catalogue.find("digits-resnet8").spec()
FIT = lambda tensors: match(state(), tensors, "misfit")  # noqa: E731


def state(depth: int = 14, shortcut: str | None = "B") -> State:
    """Weights of a net, by default with two blocks in each stage, no two tensors alike."""
    net = build_net("digits", depth, shortcut=shortcut, generator=seeded(1))
    tensors = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTER)}
    for number, tensor in enumerate(tensors.values()):
        tensor += number
    return tensors


def renamed(tensors: State, *rules: tuple[str, Any]) -> State:
    for pattern, new in rules:
        tensors = {re.sub(pattern, new, key): tensor for key, tensor in tensors.items()}
    return tensors


TORCHVISION = ((r"stages\.(\d)", r"layer\1"), (r"shortcut", "downsample"))
NAMES = {
    "torchvision": TORCHVISION,
    "behind others": (*TORCHVISION, ("^", "module.1.")),
    "akamaster": ((r"stages\.(\d)", r"layer\1"), (r"^fc", "linear")),
    "detectron": (
        *((r"stages\.(\d)", r"res\1"), (r"bn(\d)", r"conv\1.norm"), (r"^conv", "stem.conv")),
        *((r"shortcut\.0", "shortcut"), (r"shortcut\.1", "shortcut.norm")),
    ),
    "hugging face": (
        *((r"^conv1", "resnet.embedder.embedder.conv"), (r"^bn1", "resnet.embedder.embedder.bn")),
        (r"stages\.(\d)\.(\d)", r"resnet.encoder.stages.\1.layers.\2"),
        *((r"\.conv(\d)", r".layer.\1.conv"), (r"\.bn(\d)", r".layer.\1.bn"), (r"^fc", "classifier.1")),
        *((r"shortcut\.0", "shortcut.conv"), (r"shortcut\.1", "shortcut.bn")),
        *((r"\.conv\.", ".convolution."), (r"\.bn\.", ".normalization.")),
    ),
    "pytorchcv": (
        *((r"^conv1", "features.init_block.conv"), (r"^bn1", "features.init_block.bn"), (r"^fc", "output")),
        (r"stages\.(\d)\.(\d)", lambda found: f"features.stage{found[1]}.unit{int(found[2]) + 1}"),
        *((r"shortcut\.0", "identity_conv.conv"), (r"shortcut\.1", "identity_conv.bn")),
        *((r"\.conv(\d)", r".body.conv\1.conv"), (r"\.bn(\d)", r".body.conv\1.bn")),
    ),
    "letters": (
        (r"stages\.(\d)", r"stage_\1"), (r"\.(conv|bn)1", r".\1_a"), (r"\.(conv|bn)2", r".\1_b"),
        (r"^conv1", "conv_1_3x3"), (r"^bn1", "bn_1"), (r"^fc", "classifier"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "arrange", [dict, lambda items: dict(sorted(items)), lambda items: dict(items[::-1])]
)
@pytest.mark.parametrize("rules", NAMES.values(), ids=NAMES)
def test_names_of_others_find_their_places_in_whatever_order(rules, arrange):
    ours = state()
    found, left_out = FIT(arrange(list(renamed(ours, *rules).items())))
    assert left_out == []
    assert all(torch.equal(found[key], ours[key]) for key in ours)


def pre_activation(tensors: State) -> State:
    """A net of the same shapes in which BN comes before each convolution, and one at the end."""
    modules: dict[str, list[torch.Tensor]] = {}
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


def three_in_a_block(tensors: State) -> State:
    def place(found: re.Match[str]) -> str:
        number = 2 * int(found[2]) + int(found[4]) - 1
        return f"layer{found[1]}.{number // 3}.{found[3]}{number % 3 + 1}"

    return renamed(tensors, (r"stages\.(\d)\.(\d)\.(conv|bn)(\d)", place))


def numbered(tensors: State) -> State:
    """Those of a pre-activation net, all in one module: conv0, bn1, conv1, .."""
    flat = lambda found: f"{found[3]}{4 * int(found[1]) + 2 * int(found[2]) + int(found[4])}"  # noqa: E731
    rules = (r"^conv1", "conv0"), (r"layer(\d)\.(\d)\.(bn|conv)(\d)", flat)
    return renamed(pre_activation(tensors), *rules)


@pytest.mark.parametrize("change", [pre_activation, three_in_a_block, numbered])
def test_another_net_of_the_same_shapes_is_refused(change):
    ours = state(shortcut="A")
    theirs = change(ours)
    assert sorted(tensor.shape for tensor in theirs.values()) == sorted(each.shape for each in ours.values())
    with pytest.raises(RecordError, match=r"misfit: it(s .* has shape .* where .* has| has no stages)"):
        match(ours, theirs, "misfit")


def test_a_bias_before_bn_is_folded_and_what_is_no_layer_left_out():
    ours = state()
    theirs = renamed(ours, *TORCHVISION) | {
        "layer1.0.conv1.bias": torch.full((32,), 0.5), "val_acc.total": torch.tensor(3.0),
        "normalize.mean": torch.zeros(1, 3, 1, 1), "criterion.weight": torch.ones(10),
        "step": torch.tensor(7),
    }  # fmt: skip
    found, left_out = FIT(theirs)
    assert left_out == ["val_acc.total", "normalize.mean", "criterion.weight", "step"]
    mean = "stages.1.0.bn1.running_mean"
    assert torch.equal(found.pop(mean), ours[mean] - 0.5)
    assert all(torch.equal(found[key], ours[key]) for key in found)
    for key in ("layer1.0.scale", "layer1.0.alpha", "prelu.weight", "layer1.0.act.weight"):
        with pytest.raises(RecordError, match=rf"misfit: {key} is no part of it, and may not be left out"):
            FIT(theirs | {key: torch.ones(1)})
    with pytest.raises(RecordError, match="layers and BN instead of"):
        FIT(theirs | {"head.weight": torch.ones(10, 10), "head.bias": torch.ones(10)})


def test_a_state_dict_is_found_wherever_people_put_it():
    ours = state()
    optimizer = {"state": {140234: {"momentum_buffer": ours["conv1.weight"]}}, "param_groups": [{"lr": 0.1}]}
    nested = {"a": {"b": ours}, "optimizer": optimizer, "epoch": 3}
    for content, key in (
        (ours, ""), ({"state_dict": ours}, "state_dict"), (nested, "a.b"),
        ({"model": ours, "ema": dict(ours)}, "model"),
        ({f"module.module.{key}": each for key, each in ours.items()}, ""),
        ({"net": {f"student.{key}": each for key, each in ours.items()} | {"val": torch.ones(1)}}, "net"),
    ):  # fmt: skip
        found, (tensors, _) = choose(content, "x.pt", None, FIT)
        assert found == key
        assert all(torch.equal(each, ours[name]) for name, each in tensors.items())
    several = {"model": ours, "model_ema": {key: tensor + 1 for key, tensor in ours.items()}}
    with pytest.raises(UsageError, match=r"that fit, model, model_ema: .* such as --weights model_ema\."):
        choose(several, "x.pt", None, FIT)
    chosen, (tensors, _) = choose(several, "x.pt", "model_ema", FIT)
    assert (chosen, torch.equal(tensors["fc.weight"], ours["fc.weight"] + 1)) == ("model_ema", True)
    with pytest.raises(UsageError, match=r"no weights under 'x'; it has '' \(the file's top\)\."):
        choose(ours, "x.pt", "x", FIT)
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["again"] = loop
    assert list(sets_of(loop)) == [""]


def filled(content: Any, spec: Spec = EIGHT) -> Net:
    _, (tensors, _) = choose(content, "x.pt", None, lambda tensors: fitted(spec, 10, tensors, "x.pt"))
    return fill(spec, 10, tensors)


def test_a_safetensors_file_fills_a_net_and_its_damage_is_one_sentence(tmp_path):
    path, ours = tmp_path / "theirs.safetensors", state(8, "A")
    save_file(renamed(ours, *TORCHVISION), path)
    loaded = read_net(path, "digits", ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1)), tmp_path)
    assert all(torch.equal(loaded.net.state_dict()[key], tensor) for key, tensor in ours.items())
    whole = path.read_bytes()
    damaged = whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], b"PK\3\4" + whole
    told = (*["is not a safetensors file, or is damaged"] * 4, "is empty", "a pointer of Git LFS")
    for content, words in zip((*damaged, b"", b"version https://git-lfs"), told, strict=True):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=words):
            read_weights(path)
    path.unlink()
    with pytest.raises(RecordError, match=r"theirs\.safetensors cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fc.bias": None}, r"it has no fc\.bias"),
        (state(8, "B"), "does not fit ResNet-8"),
        ({"fc.bias": torch.full((10,), torch.nan)}, "NaN or infinite numbers in fc.bias"),
        ({"fc.bias": torch.full((10,), -torch.inf)}, "NaN or infinite numbers in fc.bias"),
        ({"fc.bias": torch.full((10,), 4e38, dtype=torch.float64)}, "infinite"),  # in float32
        ({"fc.bias": torch.full((10,), 3)}, "kind int64 in fc.bias"),
    ],
)
def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(change, told):
    changed = state(8, "A") | change
    with pytest.raises(RecordError, match=told):
        filled({key: tensor for key, tensor in changed.items() if tensor is not None})


def test_weights_of_another_depth_are_refused_and_no_memory_is_taken_for_them():
    eight = state(8, "A")
    filled(eight | {"fc.bias": torch.full((10,), 3e38, dtype=torch.float64)})
    with pytest.raises(RecordError, match=r"its stages\.1\.0\.conv1\.weight has shape \(32, 16, 3, 3\)"):
        match(state(), eight, "misfit")
    with pytest.raises(RecordError, match="has weights for 8 at most"):
        filled(eight, catalogue.find("digits-resnet14").spec())
    with pytest.raises(RecordError, match="for 1 at most"):  # of one memory
        filled(dict.fromkeys((f"w{k}" for k in range(20)), torch.zeros(3, 3)))
    with pytest.raises(RecordError, match=r"fc\.weight has shape \(10, 64\) where .* \(1000000000, 64\)"):
        fitted(EIGHT, 10**9, eight, "x.pt")
    with pytest.raises(RecordError, match="holds no state dict"):
        filled({"epoch": 3, "best_acc": 91.2})


SEEDS = (0, 1)
ONE = "digits-resnet8+iterations=6"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two seeds of a small run, which calls itself one of full length."""
    top = tmp_path_factory.mktemp("weights") / "runs"
    for seed in SEEDS:
        folder = resrepro.train("digits-resnet8", seed=seed, runs=top, iterations=6, threads=1)
        rewrite(Path(folder) / "result.json", lambda result: result.update(status="complete"))
    return top / ONE


@pytest.fixture
def run(runs: Path) -> Run:
    return read_run(runs / "seed0")


@pytest.fixture(scope="module")
def published(runs: Path) -> Path:
    """The folder of what `publish` wrote of both seeds."""
    results = runs.parent.parent / "results"
    code, _, told = call("publish", runs / "seed0", runs / "seed1", "--results", results)
    assert code == 0, told
    return results / ONE


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    """Another copy of the first published seed."""
    return shutil.copytree(published / "seed0", tmp_path / "seed0")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images = load_dataset("digits").held_out["test"]
    return torch.from_numpy(np.ascontiguousarray(images.pixels)), torch.from_numpy(images.labels)


def test_weights_are_the_checkpoints_tensors_and_say_what_run_they_are_of(runs, published):
    for seed in SEEDS:
        content, checkpoint = read_weights(published / f"seed{seed}" / WEIGHTS), runs / f"seed{seed}"
        theirs = net_of(checkpoint)
        assert content["net"].keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in content["net"].items())
        assert torch.equal(content["mean"], checkpoint_of(checkpoint)["mean"])
        assert (content["seed"], content["iteration"]) == (seed, 6)
        assert content["digest"] == json_of(checkpoint, "spec")["digest"]
    assert not list(published.glob("*/checkpoint*"))


def test_equal_weights_are_equal_bytes_and_other_weights_are_not_overwritten(run, runs, tmp_path):
    paths = [write_weights(run, tmp_path / name) for name in ("a", "b", "a")]
    assert [path and path.name for path in paths] == [WEIGHTS] * 3
    assert len({path.read_bytes() for path in paths if path}) == 1
    assert b"/" not in paths[0].read_bytes()[: paths[0].read_bytes().index(b"}}")]  # no path of this machine
    with pytest.raises(RecordError, match="holds other weights already: move it away first"):
        write_weights(read_run(runs / "seed1"), tmp_path / "a")


def test_a_shortened_run_or_one_without_its_last_checkpoint_publishes_no_weights(run, published, tmp_path):
    short = dataclasses.replace(run, result={**run.result, "status": "shortened"})
    assert write_weights(short, tmp_path) is None
    assert write_weights(read_run(published / "seed0"), tmp_path) is None
    other = dataclasses.replace(run, result={**run.result, "iteration": 5})
    with pytest.raises(RecordError, match="is not of the run's last iteration: no weights are published"):
        write_weights(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [-1, -4000, 200])
def test_a_changed_byte_is_refused_in_one_sentence(copied, place):
    content = bytearray((copied / WEIGHTS).read_bytes())
    content[place] ^= 1
    (copied / WEIGHTS).write_bytes(content)
    with pytest.raises(RecordError, match=r"weights\.safetensors is (damaged|no|not)") as caught:
        load_net(copied)
    assert str(caught.value).count("\n") == 0
    code, _, told = call("eval", copied)
    assert (code, told.count("error:"), "Traceback" in told) == (1, 1, False)


def test_published_weights_are_evaluated_as_the_run_is(runs, copied):
    ours, theirs = (resrepro.evaluate(each, threads=1)["test"] for each in (runs / "seed0", copied))
    assert (ours.top1_err, ours.top5_err, ours.loss) == (theirs.top1_err, theirs.top5_err, theirs.loss)
    run = read_run(copied)
    assert theirs.top1_err == pytest.approx(run.last("test"), abs=1e-3)
    assert [(each.digest, each.iteration) for each in run.evaluations] == [(run.digest, 6)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loaded_net_answers_on_stored_pixels_as_was_measured(runs, published, seed):
    net, (pixels, labels) = load_net(published, seed=seed), digits()
    with torch.no_grad():
        error = 100 * float((net(pixels).argmax(dim=1) != labels).float().mean())
    assert error == pytest.approx(read_run(runs / f"seed{seed}").last("test"), abs=1e-3)
    for same in (published / f"seed{seed}" / WEIGHTS, runs / f"seed{seed}"):
        other = load_net(str(same))
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_the_net_alone_takes_normalised_images(published):
    net, (pixels, _) = load_net(published), digits()
    assert not any(module.training for module in net.modules())
    with torch.no_grad():
        inside, outside = net(pixels[:50]), net.net(net.normalise(pixels[:50]))
    assert (inside.dtype, inside.shape) == (torch.float32, (50, 10))
    assert torch.allclose(inside, outside, atol=1e-4)
    assert torch.equal(net(pixels[:50].float()), net(pixels[:50]))


def test_what_is_not_there_is_told(runs, published, copied, tmp_path):
    (copied / WEIGHTS).unlink()
    for missing in (tmp_path / "nowhere", runs.parent):
        with pytest.raises(UsageError, match=r"there is no run in .*: name a run's folder"):
            load_net(missing)
    with pytest.raises(UsageError, match=r"there is no run in .*seed7"):
        load_net(published, seed=7)
    with pytest.raises(UsageError, match=r"holds neither checkpoint\.pt nor weights\.safetensors"):
        load_net(copied)
    with pytest.raises(UsageError, match=r"holds the seeds of a run: name one of them, such as .*seed0"):
        resrepro.evaluate(runs)
