"""Evaluating runs and other people's checkpoints end to end, on the digits."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resrepro.data import load_dataset
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation import evaluate
from resrepro.evaluation.sources import ThirdPartyCheckpoint
from resrepro.nets import build_net
from resrepro.records import read_run
from resrepro.training.checkpoint import save_checkpoint
from resrepro.training.session import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("digits-resnet8", runs=tmp_path_factory.mktemp("runs"), iterations=12, threads=1)


def error_by_hand(net, images):
    """Top-1 error in percent, one image at a time."""
    net.eval()
    wrong = 0
    with torch.no_grad():
        for image, label in zip(images, load_dataset("digits").held_out["test"].labels, strict=True):
            wrong += int(net(image[None]).argmax()) != int(label)
    return 100 * wrong / len(images)


def test_a_run_evaluates_to_what_its_record_says(run):
    errors = evaluate(run)
    assert errors["test"].top1_err == pytest.approx(read_run(run).last("test"), abs=1e-4)
    assert errors["test"].count == 359
    (file,) = (run / "evals").glob("single-digits-all-at12-*.json")
    record = json.loads(file.read_text())
    assert record["protocol"] == "single"
    assert record["errors"]["test"]["top1_err"] == errors["test"].top1_err
    assert evaluate(run / "checkpoint.pt") == errors


def test_a_foreign_checkpoint_is_normalised_as_told_and_measured(tmp_path):
    net = build_net("digits", 8, generator=torch.Generator().manual_seed(3))
    for module in net.modules():  # BN statistics other than the identity, so that normalising matters
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
    file = tmp_path / "theirs.pt"
    torch.save({"state_dict": net.state_dict(), "best_acc": np.float64(12.5)}, file)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    told = []
    third_party = ThirdPartyCheckpoint(8, False, "A", mean, std)
    errors = evaluate(
        file, dataset="digits", third_party=third_party, runs=tmp_path / "runs", say=told.append
    )
    pixels = torch.from_numpy(load_dataset("digits").held_out["test"].pixels).double() / 255
    by_hand = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert errors["test"].top1_err == pytest.approx(error_by_hand(net, by_hand.float()), abs=0.3)
    with torch.no_grad():
        logits = net.eval()(by_hand.float())
    labels = torch.from_numpy(load_dataset("digits").held_out["test"].labels)
    assert errors["test"].loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert any("ResNet-8 (option A, trailing zeros)" in sentence for sentence in told)
    assert any("matched by name" in sentence for sentence in told)
    assert len(list((tmp_path / "runs" / "foreign").glob("*/single-digits-all-*.json"))) == 1


def test_plain_and_option_a_share_tensors_but_not_outputs(tmp_path):
    file = tmp_path / "theirs.pt"
    torch.save(build_net("digits", 8, generator=torch.Generator().manual_seed(3)).state_dict(), file)
    losses = [
        evaluate(
            file,
            dataset="digits",
            third_party=ThirdPartyCheckpoint(8, plain, None, (0, 0, 0), (1, 1, 1)),
            runs=tmp_path,
        )["test"].loss
        for plain in (False, True)
    ]
    assert losses[0] != losses[1]


def test_a_foreign_checkpoint_needs_its_net_and_its_normalisation(tmp_path):
    file = tmp_path / "theirs.pt"
    torch.save(build_net("digits", 8).state_dict(), file)
    with pytest.raises(UsageError, match="--depth"):
        evaluate(file, dataset="digits")
    with pytest.raises(UsageError, match="--mean"):
        evaluate(file, dataset="digits", third_party=ThirdPartyCheckpoint(8))
    with pytest.raises(UsageError, match="above 0"):
        evaluate(file, dataset="digits", third_party=ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 0, 1)))
    with pytest.raises(UsageError, match=r"scaled to 0\.\.1"):
        evaluate(file, dataset="digits", third_party=ThirdPartyCheckpoint(8, mean=(124, 1, 1), std=(1, 1, 1)))


def test_a_run_needs_no_word_about_its_net(run):
    with pytest.raises(UsageError, match="says itself"):
        evaluate(run, third_party=ThirdPartyCheckpoint(depth=20))


def test_a_run_on_images_of_another_size_is_refused(run, fake_cifar):
    with pytest.raises(UsageError, match="mean image of 16x16"):
        evaluate(run, dataset="cifar10", data=fake_cifar.folder)


def test_validation_images_that_may_have_been_trained_on_are_told(fake_cifar, tmp_path):
    torch.save(build_net("cifar10", 8).state_dict(), tmp_path / "theirs.pt")
    third_party = ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1))
    told = []
    options = {"data": fake_cifar.folder, "split": "45k5k", "runs": tmp_path, "say": told.append}
    errors = evaluate(tmp_path / "theirs.pt", third_party=third_party, **options)
    assert errors["val"].count == 5000
    assert any("may have been among those trained on" in sentence for sentence in told)


def test_of_a_run_whose_checkpoint_is_damaged_the_one_before_is_named(run, tmp_path):
    before = tmp_path / "checkpoint.previous.pt"
    before.write_bytes((run / "checkpoint.pt").read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes(before.read_bytes()[:-100])
    with pytest.raises(RecordError, match=rf"damaged\. The one before it is {before}\."):
        evaluate(tmp_path)
    assert "test" in evaluate(before)


def test_a_checkpoint_of_ours_with_a_part_missing_is_refused(run, tmp_path):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    del content["mean"]
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    with pytest.raises(RecordError, match="not a whole checkpoint"):
        evaluate(tmp_path / "checkpoint.pt")
