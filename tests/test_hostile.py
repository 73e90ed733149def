"""Files that strangers made to harm: no code in them is run, and each is refused in one sentence."""

import os
import pickle

import pytest
import torch
from conftest import write_run

from resrepro.data import load_dataset
from resrepro.errors import DataError, RecordError
from resrepro.evaluation.sources import ThirdPartyCheckpoint, read_net
from resrepro.records import read_run
from resrepro.records.reading import ENV, METRICS, RESULT, SPEC
from resrepro.training.checkpoint import load_checkpoint


class Trap:
    """Unpickling this ends the tests."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_checkpoint_runs_no_code(tmp_path, kind):
    path = tmp_path / "theirs.pt"
    torch.save({"net": Trap()}, path, _use_new_zipfile_serialization=kind == "zip")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap()))
    theirs = ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1))
    for read in (load_checkpoint, read_net, lambda path: read_net(path, "digits", theirs, tmp_path)):
        with pytest.raises(
            RecordError,
            match=r"theirs\.pt (holds a pickled object|is not a PyTorch|is in a pickle protocol)",
        ) as trouble:
            read(path)
        assert str(trouble.value).isprintable()


def test_pickled_batches_of_cifar10_are_opened_only_if_they_are_the_official_ones(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="data_batch_1"):
        load_dataset("cifar10", folder=tmp_path)


@pytest.mark.parametrize("name", [SPEC, ENV, RESULT, METRICS])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{}", b"[" * 100_000, b"a,b\n1,2\n", pickle.dumps(1)],
)
def test_what_is_no_record_is_named(tmp_path, name, content):
    folder = write_run(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(RecordError, match=rf"^{folder / '[a-z]+'}\.(json|csv) is broken: ") as trouble:
        read_run(folder)
    assert str(trouble.value).isprintable()
