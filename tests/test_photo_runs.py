"""The ImageNet recipe end to end on a few made-up photographs: train, eval, publish, tables."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PHOTO_CLASSES, use_one_thread

from resrepro.data.loader import Loading
from resrepro.data.photos import imagenet_classes
from resrepro.errors import DataError, RecordError, UsageError
from resrepro.evaluation import _check_together, evaluate
from resrepro.evaluation.responses import measure_responses
from resrepro.evaluation.sources import ThirdPartyCheckpoint, read_net
from resrepro.nets import build_net
from resrepro.records import read_run
from resrepro.records.collection import collect, publish_ensemble
from resrepro.training.session import train

SETTINGS = {"iterations": 3, "batch_size": 8, "image_size": 32, "lr": 0.01}
INLINE = Loading(workers=0)


def train_on(photographs: Path, runs: Path, net: str = "resnet18", **options: object) -> Path:
    use_one_thread()
    settings = SETTINGS | {"loading": INLINE} | options
    return train(f"folder-{net}", data=photographs, runs=runs, device="cpu", **settings)


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(photographs, tmp_path_factory.mktemp("photo") / "runs")


def test_the_record_says_what_was_trained_on_and_how_it_departs(run):
    record = read_run(run)
    assert (record.headline_split, record.status) == ("val", "shortened")
    data = record.env["data"]
    assert (data["images"], data["classes"]) == ({"train": 80, "val": 40}, 4)
    assert (set(data["sha256"]), data["class_names"]) == ({"train", "val"}, list(PHOTO_CLASSES))
    assert 0 < record.result["waited_for_images"] < 1
    assert list(record.top1_errors("val")) == [3]  # an epoch has ten iterations
    told = " | ".join([*record.result["departures"], *record.result["notices"]])
    for part in (
        "a folder of other images instead of ImageNet", "crops of 32 pixels", "bn_group 8 instead of 32",
        "4 classes, 80 training and 40 validation images",
    ):  # fmt: skip
        assert part in told
    assert str(run.parents[2]) not in (run / "env.json").read_text()


def test_responses_are_those_to_the_validation_images_in_layers_of_3x3(run, photographs):
    found = measure_responses(run, data=photographs, loading=INLINE)
    assert (len(found.std), found.part, found.images, found.batch) == (16, "val", 40, 8)
    assert found.layers[0] == "stages.0.0.conv1"  # the 7x7 one does not count
    assert min(*found.std, *found.gradient_norm_start) > 0


@pytest.mark.parametrize("protocol", ["center", "ten_crop"])
def test_every_protocol_enters_the_record_and_is_found_by_its_reader(protocol, run, photographs):
    errors = evaluate(run, protocol=protocol, data=photographs, loading=INLINE)
    (file,) = (run / "evals").glob(f"{protocol}-folder-at3-*.json")
    record = json.loads(file.read_text())
    assert (record["protocol"], record["bn_stats"], record["iteration"]) == (protocol, "running", 3)
    assert record["data"]["sha256"]["val"] == read_run(run).env["data"]["sha256"]["val"]
    assert read_run(run).evaluated(protocol, "top1_err", "val") == errors["val"].top1_err
    assert (errors["val"].count, errors["val"].top5_err) == (40, 0)  # there are four classes
    if protocol == "center":  # the view of the curves
        assert errors["val"].top1_err == pytest.approx(read_run(run).last("val"), abs=1e-3)


def test_precise_statistics_change_the_error_but_not_the_checkpoint(run, photographs, tmp_path):
    before = (run / "checkpoint.pt").read_bytes()
    running = evaluate(run, data=photographs, loading=INLINE)["val"]
    precise = evaluate(run, data=photographs, bn_stats="precise", loading=INLINE)["val"]
    assert running.loss != precise.loss
    assert (run / "checkpoint.pt").read_bytes() == before
    assert evaluate(run, data=photographs, loading=INLINE)["val"] == running
    assert len(list((run / "evals").glob("center-precise-folder-at3-*.json"))) == 1
    shutil.copytree(photographs, tmp_path / "other")
    next((tmp_path / "other" / "train" / "cat").iterdir()).unlink()
    with pytest.raises(RecordError, match="trained on other images"):
        evaluate(run, data=tmp_path / "other", bn_stats="precise", loading=INLINE)


def test_an_ensemble_is_recorded_with_its_members_and_published(run, photographs, tmp_path):
    runs = run.parents[1]
    other = train_on(photographs, runs, "plain18")
    together = evaluate([run, other], protocol="center", data=photographs, runs=runs, loading=INLINE)
    with pytest.raises(UsageError, match="named twice"):
        evaluate([run, run], protocol="center", data=photographs, runs=runs, loading=INLINE)
    net = read_net(run)
    with pytest.raises(UsageError, match="same images and classes"):
        _check_together([net, dataclasses.replace(net, seed=1, classes=PHOTO_CLASSES[::-1])])
    alone = evaluate(run, data=photographs, loading=INLINE)
    assert together["val"].loss != pytest.approx(alone["val"].loss, rel=1e-5)
    found = collect([runs])
    assert found.broken == ()
    members = {tuple(member.label for member in each.members) for each in found.ensembles}
    assert members == {("ResNet-18", "plain-18")}
    (file,) = (runs / "ensembles").glob("*.json")
    copy = publish_ensemble(file, tmp_path / "results")
    assert copy.read_bytes() == file.read_bytes()
    assert len(collect([tmp_path / "results"]).ensembles) == 1
    copy.write_text("{}")
    with pytest.raises(RecordError, match="another record"):
        publish_ensemble(file, tmp_path / "results")
    with pytest.raises(RecordError, match="is broken"):
        publish_ensemble(copy, tmp_path / "elsewhere")


def test_foreign_weights_of_imagenet_take_the_packaged_class_indices(photographs, tmp_path):
    net = build_net("imagenet", 18, shortcut="B", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(-torch.arange(1000.0))  # believes in class 0, then 1, and so on
    torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.pt")
    for place in (0, 4, 5):
        name = imagenet_classes()[place]
        shutil.copytree(photographs / "val" / "cat", tmp_path / "val" / name)
    third_party = ThirdPartyCheckpoint(18, False, "B", (0.5,) * 3, (0.25,) * 3, image_size=32)
    options = {"third_party": third_party, "loading": INLINE, "runs": tmp_path / "runs"}
    found = evaluate(tmp_path / "theirs.pt", dataset="imagenet", data=tmp_path, **options)["val"]
    assert (found.top1_err, found.top5_err) == pytest.approx((200 / 3, 100 / 3))
    with pytest.raises(DataError, match=r"'cat'.*ImageNet lacks"):
        evaluate(tmp_path / "theirs.pt", dataset="imagenet", data=photographs, **options)
    told: list[str] = []
    small = dict(build_net("imagenet", 18, num_classes=3, shortcut="B").state_dict())
    torch.save(small, tmp_path / "three.pt")
    for number, place in ((1, 0), (2, 4), (10, 5)):
        shutil.copytree(tmp_path / "val" / imagenet_classes()[place], tmp_path / "x" / "val" / str(number))
    evaluate(tmp_path / "three.pt", dataset="folder", data=tmp_path / "x", say=told.append, **options)
    assert "Note: the net's outputs stand for the classes in this order: 1, 2, 10." in told
    assert any("(1, 10, 2), as torchvision's ImageFolder does" in sentence for sentence in told)
    with pytest.raises(UsageError, match="1000 outputs, and val 4 classes"):
        evaluate(tmp_path / "theirs.pt", dataset="folder", data=photographs, **options)


def test_bad_images_in_val_stop_eval_or_are_left_out_and_told(run, photographs, tmp_path):
    shutil.copytree(photographs / "val", tmp_path / "val")
    (tmp_path / "val" / "cat" / "notes.txt").write_text("no image")
    whole = next((tmp_path / "val" / "dog").glob("*.jpg"))
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(DataError, match=r"no readable image.*--max-bad-images"):
        evaluate(run, data=tmp_path, loading=INLINE)
    told: list[str] = []
    errors = evaluate(run, data=tmp_path, loading=Loading(workers=0, max_bad_images=2), say=told.append)
    assert errors["val"].count == 39
    assert any("notes.txt (not an image)" in sentence for sentence in told)


def test_what_does_not_fit_the_run_is_refused(run, photographs, tmp_path):
    shutil.copytree(photographs / "val" / "cat", tmp_path / "val" / "zebra")
    with pytest.raises(DataError, match=r"'zebra'.*training set"):
        evaluate(run, data=tmp_path, loading=INLINE)
    for told, options in (
        (r"no protocol 'single' for photographs.*ten_crop", {"protocol": "single", "data": photographs}),
        ("whose nets do not fit", {"dataset": "digits", "data": photographs}), ("which photographs", {}),
        ("running and precise", {"bn_stats": "exact", "data": photographs, "loading": INLINE}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            evaluate(run, **options)


def test_training_with_bad_images_stops_unless_they_are_allowed(photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "train" / "owl" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    with pytest.raises(DataError, match=r"1 file is no readable image: train/owl/broken\.jpg"):
        train_on(tmp_path / "data", tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/*/spec.json"))
    folder = train_on(tmp_path / "data", tmp_path / "runs", loading=Loading(workers=0, max_bad_images=1))
    assert any("broken.jpg" in notice for notice in read_run(folder).result["notices"])
    assert read_run(folder).env["data"]["images"]["train"] == 80


def test_a_finished_run_is_not_offered_as_the_result_for_other_images(run, photographs, tmp_path):
    before = (run / "result.json").read_bytes()
    assert train_on(photographs, run.parents[1]) == run
    shutil.copytree(photographs, tmp_path / "other")
    next((tmp_path / "other" / "val" / "dog").iterdir()).unlink()
    with pytest.raises(RecordError, match=r"on other data .*--runs"):
        train_on(tmp_path / "other", run.parents[1])
    assert (run / "result.json").read_bytes() == before


def test_measuring_a_run_on_other_images_says_that_no_table_takes_it(run, photographs, tmp_path):
    shutil.copytree(photographs / "val" / "cat", tmp_path / "val" / "cat")
    told: list[str] = []
    evaluate(run, protocol="multi_scale", data=tmp_path, loading=INLINE, say=told.append)
    assert next((run / "evals").glob("multi_scale-folder-at3-*.json")).exists()
    assert any("no table takes these errors" in sentence for sentence in told)
    told.clear()
    evaluate(run, data=photographs, loading=INLINE, say=told.append)
    assert not any("no table" in sentence for sentence in told)
