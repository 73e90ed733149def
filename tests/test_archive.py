"""Looking into checkpoints before PyTorch does: what is honest passes, limits lie where they are said to."""

import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted import (
    called,
    holding,
    honest,
    laughs,
    legacy,
    number,
    numbers,
    overlapping,
    saved,
    sparse,
    storage,
    swollen_directory,
    tensor,
    text,
    with_pickle,
    zipped,
)

from resrepro.errors import RecordError
from resrepro.training import archive, pickles
from resrepro.training.archive import check_archive

TRAILER = b"\nsha256 " + b"a" * 64 + b"\n"


def optimised() -> dict[str, object]:
    """What people keep: a net, its optimizer, its schedule and numbers beside them."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    return {
        "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(),
        "schedule": schedule.state_dict(), "parameter": net[0].weight, "epoch": np.int64(3),
        "best": np.float64(91.5), "flag": np.bool_(True), "single": np.float32(1), "shape": torch.Size([1]),
        "device": torch.device("cpu"), "seen": {1, 2}, "counts": Counter("aab"), "nothing": None,
        "raw": b"\0\xff", "history": [0.5] * 100, "large": 2**70, "order": OrderedDict(a=1), "yes": True,
    }  # fmt: skip


HONEST = {
    "everything that people keep": optimised,
    "views and shared memory": lambda: (
        (lambda w: {"w": w, "t": w.T, "part": w[1:, ::2], "same": w, "none": w[:0], "one": w[0, 0]})(
            torch.arange(12.0).reshape(3, 4)
        )
    ),
    "all kinds of numbers": lambda: {
        kind: torch.zeros(3, dtype=getattr(torch, kind))
        for kind in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
                     "complex64", "complex128")
    },
    "no tensors": lambda: {"iteration": 3},
}  # fmt: skip


@pytest.mark.parametrize("trailer", [b"", TRAILER], ids=["bare", "with a checksum"])
@pytest.mark.parametrize("zipped_up", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", HONEST.values(), ids=HONEST)
def test_what_people_keep_passes(content, zipped_up: bool, trailer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    kept = content()
    path.write_bytes(saved(kept, _use_new_zipfile_serialization=zipped_up) + trailer)
    check_archive(path)
    assert torch.load(path, weights_only=False).keys() == kept.keys()  # of our own making


def test_an_archive_saved_by_name_in_any_letters_passes(tmp_path: Path) -> None:
    path = tmp_path / "Räsnet-20 (best).pt"
    torch.save({"w": torch.zeros(3)}, path)
    check_archive(path)
    assert torch.load(path, weights_only=True)["w"].tolist() == [0, 0, 0]


def test_a_checksum_behind_the_archive_disturbs_neither_reader(tmp_path: Path) -> None:
    path = tmp_path / "ours.pt"
    path.write_bytes(saved({"w": torch.arange(3.0)}) + TRAILER)
    assert torch.load(path, weights_only=True)["w"].tolist() == [0, 1, 2]
    with zipfile.ZipFile(path) as opened:
        assert "archive/data.pkl" in opened.namelist()


def test_a_missing_file_and_a_folder_are_left_to_the_caller_to_tell(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_archive(tmp_path / "gone.pt")
    with pytest.raises(IsADirectoryError):
        check_archive(tmp_path)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(RecordError) as trouble:
        check_archive(path)
    return str(trouble.value)


def passes(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    check_archive(path)
    return True


def test_a_file_of_the_largest_size_is_looked_at_and_none_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sparse(tmp_path / "theirs.pt", archive.LARGEST_FILE + 1, b"PK\3\4")
    with pytest.raises(RecordError, match="more than the 4,294,967,296 that are read"):
        check_archive(path)
    content = zipped(honest())
    monkeypatch.setattr(archive, "LARGEST_FILE", len(content))
    assert passes(path, content)
    assert "that are read" in refusal(path, content + b"\0")


def test_a_tensor_may_fill_its_memory_to_the_last_number_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    shapes = {  # size, strides, offset: as large as the memory of 8 numbers, and one too large
        ((8,), (1,), 0): ((9,), (1,), 0),
        ((2, 4), (4, 1), 0): ((2, 5), (4, 1), 0),
        ((2, 2), (1, 6), 0): ((2, 2), (1, 7), 0),
        ((3,), (2,), 3): ((3,), (2,), 4),
        ((8,), (0,), 0): ((9,), (0,), 0),
    }
    for good, bad in shapes.items():
        assert passes(path, with_pickle(holding(tensor(storage(), *good))))
        assert "larger than its memory of 8" in refusal(path, with_pickle(holding(tensor(storage(), *bad))))


def test_a_legacy_file_holds_the_numbers_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    whole = legacy(holding(tensor(storage(legacy=True))))
    assert passes(path, whole)
    declared = legacy(holding(tensor(storage(len(whole), legacy=True))), len(whole))
    assert "not as many" in refusal(path, declared)


def test_nesting_and_unfolding_are_refused_from_the_limit_on(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"

    def deep(lists: int) -> bytes:
        return with_pickle(holding(b"]" * lists + b"a" * (lists - 1)))

    assert passes(path, deep(pickles.DEEPEST - 1))  # beside the dict that holds them
    assert "nested" in refusal(path, deep(pickles.DEEPEST))
    assert passes(path, with_pickle(holding(laughs(4))))
    assert "unfolds" in refusal(path, with_pickle(holding(laughs(6))))


def test_nothing_is_called_that_a_net_has_no_need_of(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    assert passes(path, with_pickle(holding(called("torch.Size", numbers([3])))))
    for name in ("torch.load", "torch.FloatTensor", "builtins.getattr", "resrepro.train", "numpy.load"):
        assert "no tensor" in refusal(path, with_pickle(holding(called(name, text("x")))))


def test_compressed_entries_are_refused_even_where_they_save_little(tmp_path: Path) -> None:
    told = refusal(tmp_path / "theirs.pt", zipped(honest(), zipfile.ZIP_DEFLATED))
    assert "compressed" in told
    assert "torch.save(net.state_dict(), ...)" in told


def test_entries_on_the_same_bytes_and_a_list_beyond_all_entries_are_seen(tmp_path: Path) -> None:
    assert "together are larger than the file" in refusal(tmp_path / "theirs.pt", overlapping())
    assert "its list of entries has 1,073,741,824 bytes" in refusal(
        tmp_path / "theirs.pt", swollen_directory()
    )


def test_torchscript_is_no_checkpoint(tmp_path: Path) -> None:
    told = refusal(tmp_path / "theirs.pt", zipped(honest() | {"archive/constants.pkl": b"x"}))
    assert "is not a PyTorch checkpoint" in told


def test_damage_anywhere_is_a_sentence_or_passes_but_is_never_a_crash(tmp_path: Path) -> None:
    path, rng = tmp_path / "theirs.pt", np.random.default_rng(0)
    content = {"w": torch.randn(3, 4), "epochs": [1, 2], "best": np.float64(3)}
    wholes = [saved(content), saved(content, _use_new_zipfile_serialization=False), zipped(honest())]
    refused = 0
    for trial in range(600):
        damaged = bytearray(wholes[trial % 3])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            check_archive(path)
        except RecordError as error:
            refused += str(error).endswith(".")
    assert refused > 300


def test_a_pickle_may_have_as_many_steps_as_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.pt"
    content = with_pickle(holding(number(1)))  # PROTO, EMPTY_DICT, key, value, SETITEM, STOP
    monkeypatch.setattr(pickles, "MOST_STEPS", 5)
    assert passes(path, content)
    monkeypatch.setattr(pickles, "MOST_STEPS", 4)
    assert "more than 4 steps" in refusal(path, content)


def test_sizes_beyond_the_numbers_of_a_file_are_compared_as_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    huge = b"\x8a\x0a" + struct.pack("<QH", 0, 1)  # 2**64
    view = tensor(storage()).replace(numbers([8]), b"(" + huge + b"t", 1)
    assert "beyond all memory" in refusal(path, with_pickle(holding(view)))
