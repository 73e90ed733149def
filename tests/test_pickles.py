"""Files of strangers as `torch.save` writes them: what is harmless is read, the rest called what it is."""

import argparse
import collections
import datetime
import pathlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from resrepro.errors import RecordError
from resrepro.training.checkpoint import load_checkpoint

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
def test_weights_and_what_people_keep_beside_them_are_read(tmp_path: Path, zipped: bool) -> None:
    weights = {"conv1.weight": torch.randn(2, 3, 3, 3), "half": torch.randn(3).half()}
    path = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": weights, **BESIDE}, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(path)
    assert all(torch.equal(found["state_dict"][key], tensor) for key, tensor in weights.items())
    assert found["args"].steps == [1, 2.5, "x", None, True]
    assert found["log"] == {"loss": [1.0]}
    for key in ("best", "numpy", "classes", "python", "when", "text", "again", "large", "bytes", "device"):
        assert str(found[key]) == str(BESIDE[key])


def test_a_pair_of_a_state_dict_and_something_else_is_read(tmp_path: Path) -> None:
    torch.save(({"w": torch.ones(2)}, 3), tmp_path / "pair.pt")
    assert torch.equal(load_checkpoint(tmp_path / "pair.pt")["0"]["w"], torch.ones(2))


def test_a_whole_net_is_not_opened(tmp_path: Path) -> None:  # nor is any code run: test_hostile
    torch.save(torch.nn.Linear(1, 1), tmp_path / "net.pt")
    told = r"object that is no tensor \(torch\.nn\.modules\.linear\.Linear\), so it is not opened: save"
    with pytest.raises(RecordError, match=told):
        load_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            r"a pointer of Git LFS.*git lfs pull",
        ),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "is compressed: unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    ],
)
def test_what_is_often_taken_for_a_checkpoint_is_called_what_it_is(
    tmp_path: Path, content: bytes, told: str
) -> None:
    for name in ("theirs.pth", "theirs.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RecordError, match=told):
            load_checkpoint(path)


@pytest.mark.parametrize("protocol", [4, 5])
def test_another_pickle_protocol_is_told_with_the_way_out(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol)
    with pytest.raises(RecordError, match=r"in a pickle protocol .* without `pickle_protocol`"):
        load_checkpoint(path)
