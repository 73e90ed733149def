"""Checkpoints: whole or untouched when written; damage is noticed when read."""

import contextlib
import errno
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from resrepro.errors import RecordError
from resrepro.training.checkpoint import load_checkpoint, load_newest, save_checkpoint


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zip_of(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
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
        zip_of(model__code__a="x", model__constants="y"),
    ],
    ids=["text", "png", "bytes", "zip", "zip-in-a-folder", "zip-of-code"],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_by_name_as_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"other\.pt is not a PyTorch checkpoint, or is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_cut_off_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    whole = saved({"w": torch.arange(500.0), "iteration": 3})
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match=r"cut\.pt"):
            load_checkpoint(path)


def test_a_legacy_checkpoint_damaged_anywhere_is_loaded_or_refused_but_never_a_crash(tmp_path: Path) -> None:
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


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in range(2):
        save_checkpoint(tmp_path / "checkpoint.pt", {"iteration": iteration})

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(RecordError, match=r"checkpoint\.pt cannot be read: Input/output error"):
            load_newest(tmp_path)
    assert load_newest(tmp_path) == ({"iteration": 1}, "")


def test_a_checkpoint_that_is_a_bare_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    path.write_bytes(saved(torch.zeros(3)))
    with pytest.raises(RecordError, match=r"no state dict but a Tensor"):
        load_checkpoint(path)


def test_a_missing_checkpoint_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"there is no checkpoint .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    (tmp_path / "result.json").touch()
    with pytest.raises(RecordError, match="Records that were published have none"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(RecordError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_checkpoints_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"iteration": 0})
    save_checkpoint(path, {"iteration": 1})

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(RecordError, match=r"cannot write .*checkpoint\.pt"):
        save_checkpoint(path, {"iteration": 2})
    before = path.with_name("checkpoint.previous.pt")
    assert (load_checkpoint(before), load_checkpoint(path)) == ({"iteration": 0}, {"iteration": 1})
    assert {left.name for left in tmp_path.iterdir()} == {path.name, before.name}


def test_every_changed_byte_and_every_cut_of_a_checkpoint_of_ours_is_noticed(tmp_path: Path) -> None:
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


def test_the_newest_whole_checkpoint_is_taken_and_a_damaged_one_is_kept_aside(tmp_path: Path) -> None:
    newest, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    assert load_newest(tmp_path) is None
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
