"""The loops that the benchmark compares: the usual one computes what ours does; both make real updates."""

import io
import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resrepro.bench.child import serve
from resrepro.bench.contestants import Contestant
from resrepro.bench.ours import OurLoop, made_up_images, spec_of
from resrepro.bench.peak import Peak
from resrepro.bench.timing import peak_memory_mib, timed
from resrepro.bench.usual import UsualImages, UsualLoop, UsualNet
from resrepro.bench.work import step_operations
from resrepro.nets import build_net

CPU = torch.device("cpu")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("depth", [8, 20])
def test_the_usual_net_is_ours_in_plain_words(depth, plain):
    ours, usual = build_net("cifar10", depth, plain), UsualNet(depth, plain)
    assert sum(p.numel() for p in usual.parameters()) == sum(p.numel() for p in ours.parameters())
    usual.load_state_dict(ours.state_dict())  # raises if a name or shape differs
    images = torch.randn(6, 3, 32, 32)
    for mode in (True, False):  # in training first: it moves the averages that evaluation uses
        torch.testing.assert_close(usual.train(mode)(images), ours.train(mode)(images), rtol=1e-4, atol=1e-4)
    shortcuts_matter = not torch.equal(UsualNet(depth, not plain).eval()(images), usual(images))
    assert shortcuts_matter


def test_the_usual_net_starts_with_ordinary_batch_normalisation():
    kinds = {type(module) for module in UsualNet(8, False).modules() if "Norm" in type(module).__name__}
    assert kinds == {torch.nn.BatchNorm2d}


@pytest.mark.parametrize("plain", [False, True])
def test_the_operations_of_a_step_are_those_that_pytorch_counts(plain):
    net, images = UsualNet(14, plain), torch.randn(3, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(images), torch.tensor([1, 2, 3])).backward()
    assert counter.get_total_flops() == 3 * step_operations(14)


def test_the_usual_pipeline_gives_augmented_normalised_images():
    torch.manual_seed(0)
    images = made_up_images(4)
    dataset = UsualImages(images)
    shown = [dataset[0][0] for _ in range(20)]
    assert dataset[0][1] == images.labels[0]
    assert shown[0].shape == (3, 32, 32)
    assert any(not torch.equal(shown[0], other) for other in shown[1:])
    whole = [one for one in shown if (one.amin((1, 2)) > -2.5).all()]
    assert whole
    assert abs(float(torch.stack(shown).mean())) < 1.0


def test_the_usual_loop_learns_what_it_is_shown():
    images = made_up_images(8)
    loop = UsualLoop(8, False, 8, 0, images, CPU)
    before = {name: value.clone() for name, value in loop.net.state_dict().items()}
    for _ in range(3):
        loop.step()
    loop.prepare()
    assert loop.steps == 3
    assert loop.net.state_dict()["bn1.num_batches_tracked"] == 3
    assert all(
        not torch.equal(before[name], value)
        for name, value in loop.net.state_dict().items()
        if "conv" in name
    )


@pytest.mark.parametrize(("mode", "precision"), [("default", "float32"), ("fast", "bf16")])
def test_our_loop_is_the_real_trainer_on_the_papers_recipe(mode, precision):
    contestant = Contestant(mode, 8, False, 16)
    spec = spec_of(contestant, CPU)
    assert (spec.recipe.precision, spec.recipe.batch_size, spec.recipe.lr) == (precision, 16, 0.1)
    loop = OurLoop(contestant, CPU)
    loop.step()
    loop.prepare()
    loop.step()
    assert loop.trainer.done == 2
    assert loop.trainer.since_sample.count == 32
    assert loop.trainer.net.training


def answers_to(*lines):
    told = []
    code = serve(io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), told.append)
    return code, told


@pytest.mark.parametrize("mode", ["usual", "default"])
def test_a_child_is_warm_when_it_tells_of_itself_and_answers_each_turn(mode):
    asked = {
        "part": "contestant", "what": "it", "contestant": Contestant(mode, 8, True, 16).to_json(),
        "seconds": 0.01, "device": "cpu", "threads": 1,
    }  # fmt: skip
    code, (told, *turns) = answers_to(asked, {"seconds": 0.01}, {"seconds": 0.01})
    assert code == 0
    assert told["data_seconds"] > 0
    assert (told["engine"], told["compile_seconds"] == 0) in [("eager", True), ("kernels", False)]
    assert len(turns) == 2
    for turn in turns:
        assert turn["images"] > 0
        assert turn["images"] % 16 == 0
        assert turn["seconds"] >= 0.01
        assert turn["memory_mib"] > 100


def test_a_child_passes_errors_on():
    asked = {"part": "peak", "what": "it", "seconds": 1.0, "threads": 1, "device": "abacus"}
    code, (told,) = answers_to(asked)
    assert (code, told["code"]) == (1, 2)
    assert "no device 'abacus'" in told["error"]
    asked |= {"device": "cpu", "threads": 0}
    assert "--threads" in answers_to(asked)[1][0]["error"]


def test_the_peak_is_of_products_of_the_size_that_is_told():
    reached = Peak(0.01, CPU).turn(0.02)
    assert set(reached) == {"float32", "bf16"}
    assert all(value > 0 for value in reached.values())


def test_time_and_memory_are_counted():
    calls = []
    assert timed(lambda: calls.append(1), 0.0, CPU)[0] == len(calls) == 1
    before = peak_memory_mib()
    held = torch.ones(2**24)  # 64 MiB, written to
    assert peak_memory_mib() >= before
    assert peak_memory_mib() * 2**20 > held.nbytes
