"""Checkpoints: whole or untouched when written; damage is noticed when read; files of strangers."""

import argparse
import collections
import contextlib
import datetime
import errno
import io
import os
import pathlib
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from resrepro.errors import RecordError
from resrepro.training.checkpoint import load_checkpoint, load_newest, save_checkpoint


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zip_of(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def test_what_was_saved_is_loaded(tmp_path):
    content = {"net": {"w": torch.randn(3, 2)}, "iteration": 7, "best": None, "data": {"train": "ab"},
               "sums": [(torch.zeros(3), 4)]}  # fmt: skip
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded.pop("net")["w"], content.pop("net")["w"])
    assert torch.equal(loaded["sums"][0][0], torch.zeros(3))
    assert (loaded["iteration"], loaded["best"], loaded["data"]) == (7, None, {"train": "ab"})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    "content",
    [
        b"iteration,epoch\n1,2\n", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(range(256)) * 9,
        zip_of(**{"readme.txt": "x"}), zip_of(archive__version="3", archive__notes="x"),
    ],
    ids=["text", "png", "bytes", "zip", "zip-in-a-folder"],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_by_name_as_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"other\.pt is not a PyTorch checkpoint, or is damaged"):
        load_checkpoint(path)


def test_a_legacy_checkpoint_damaged_anywhere_is_loaded_or_refused_but_never_a_crash(tmp_path):
    path = tmp_path / "damaged.pt"
    whole = saved({"a": 1, "b": [1, 2, 3], "c": "text"}, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    refused = opened = 0
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4, np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            load_checkpoint(path)
        except RecordError as error:
            refused += "damaged.pt" in str(error)
        else:
            opened += 1
    assert refused + opened == 150
    assert refused > 100


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    for iteration in range(2):
        save_checkpoint(tmp_path / "checkpoint.pt", {"iteration": iteration})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(RecordError, match=r"checkpoint\.pt cannot be read: Input/output error"):
            load_newest(tmp_path)
    assert load_newest(tmp_path) == ({"iteration": 1}, "")


def test_a_missing_checkpoint_and_a_folder_are_named(tmp_path):
    with pytest.raises(RecordError, match=r"there is no checkpoint .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    (tmp_path / "result.json").touch()
    with pytest.raises(RecordError, match="Records that were published have none"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(RecordError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_checkpoints_and_nothing_else(tmp_path, monkeypatch, moment):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"iteration": 0})
    save_checkpoint(path, {"iteration": 1})

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(RecordError, match=r"cannot write .*checkpoint\.pt"):
        save_checkpoint(path, {"iteration": 2})
    before = path.with_name("checkpoint.previous.pt")
    assert (load_checkpoint(before), load_checkpoint(path)) == ({"iteration": 0}, {"iteration": 1})
    assert {left.name for left in tmp_path.iterdir()} == {path.name, before.name}


def test_every_changed_byte_and_every_cut_of_a_checkpoint_of_ours_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"w": torch.arange(100.0), "iteration": 3})
    whole = path.read_bytes()
    unharmed = 0
    for place in range(0, len(whole), 23):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(content)
            with contextlib.suppress(RecordError):
                load_checkpoint(path)
                unharmed += 1
    assert unharmed == 0


def test_the_newest_whole_checkpoint_is_taken_and_a_damaged_one_is_kept_aside(tmp_path):
    newest, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    assert load_newest(tmp_path) == (None, "")
    for iteration in (1, 2):
        save_checkpoint(newest, {"iteration": iteration})
    assert load_newest(tmp_path) == ({"iteration": 2}, "")
    newest.write_bytes(newest.read_bytes()[:-9])
    content, notice = load_newest(tmp_path)
    assert content == {"iteration": 1}
    assert "damaged" in notice
    assert (tmp_path / "checkpoint.damaged.pt").exists()
    content, notice = load_newest(tmp_path)
    assert (content, "is missing" in notice) == ({"iteration": 1}, True)
    save_checkpoint(newest, {"iteration": 3})
    assert load_checkpoint(before) == {"iteration": 1}  # not overwritten by the damaged one
    newest.unlink()
    content, notice = load_newest(tmp_path)
    assert (content, "is missing; the checkpoint before it is whole" in notice) == ({"iteration": 1}, True)
    before.write_bytes(b"PK nothing")
    with pytest.raises(RecordError, match=r"previous\.pt is not a PyTorch checkpoint, or is damaged"):
        load_newest(tmp_path)


# --- files of strangers: what is harmless is read, the rest called what it is (no code is run: test_hostile)

BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a/b"), steps=[1, 2.5, "x", None, True]),
    "log": collections.defaultdict(list, {"loss": [1.0]}), "best": np.float64(91.2), "curve": np.ones((2, 3)),
    "numpy": np.random.default_rng(0).integers(9, size=5), "classes": np.array(["cat", "dog"]),
    "python": random.Random(0).getstate(), "when": datetime.datetime(2020, 1, 2),
    "text": "é\n", "again": "é\n",
    "optimizer": {"state": {140234234234234: {"momentum": torch.ones(2)}}}, "large": 2**70, "bytes": b"\xff1",
    "windows": pathlib.PureWindowsPath("c:/a"), "device": torch.device("cpu"), "size": torch.Size([1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_and_what_people_keep_beside_them_are_read(tmp_path, zipped):
    weights = {"conv1.weight": torch.randn(2, 3, 3, 3), "half": torch.randn(3).half()}
    path = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": weights, **BESIDE}, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(path)
    assert all(torch.equal(found["state_dict"][key], tensor) for key, tensor in weights.items())
    assert found["args"].steps == [1, 2.5, "x", None, True]
    assert found["log"] == {"loss": [1.0]}
    for key in ("best", "numpy", "classes", "python", "when", "text", "again", "large", "bytes", "device"):
        assert str(found[key]) == str(BESIDE[key])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.nn.Linear(1, 1), r"no tensor \(torch\.nn\.modules\.linear\.Linear\), so it is not opened"),
        (torch.zeros(3), "holds no state dict but a Tensor"),
    ],
    ids=["net", "tensor"],
)
def test_a_whole_net_or_a_bare_tensor_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(RecordError, match=told):
        load_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "is compressed: unpack it"),
    ],
)
def test_what_is_often_taken_for_a_checkpoint_is_called_what_it_is(tmp_path, content, told):
    for name in ("theirs.pth", "theirs.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RecordError, match=told):
            load_checkpoint(path)


def test_a_newer_pickle_protocol_is_told(tmp_path):
    path = tmp_path / "theirs.pt"
    path.write_bytes(saved({"w": torch.zeros(2)}, pickle_protocol=4))
    with pytest.raises(RecordError, match="save it without `pickle_protocol`"):
        load_checkpoint(path)
