"""Files that strangers made to harm: each is refused in one sentence, quickly, and in little memory.

`CASES` lists them all: its length is the number of hostile inputs that are tried.
"""

import os
import pickle
import resource
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crafted import (
    PICKLE,
    called,
    holding,
    honest,
    laughs,
    legacy,
    named,
    number,
    numbers,
    overlapping,
    png,
    saved,
    sparse,
    storage,
    swollen_directory,
    tensor,
    text,
    with_pickle,
    zipped,
)
from PIL import Image

from resrepro.data import load_dataset, statistics
from resrepro.data.photos import BadImage, read_image, scan_both
from resrepro.data.statistics import Statistics
from resrepro.errors import DataError, RecordError
from resrepro.evaluation.sources import ThirdPartyCheckpoint, read_net
from resrepro.nets import net_of
from resrepro.spec import catalogue

HUGE = 10**12
ROOM = 512 * 2**20  # bytes that refusing a file may take beyond what the tests have already
LONGEST_SENTENCE = 400  # characters, beside the path

Make = Callable[[Path], Path]
"""Makes a hostile file in an empty folder; gives its path, or the folder's."""


class Trap:
    """Unpickling this ends the tests."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def file_of(content: bytes | Callable[[], bytes], name: str = "theirs.pt") -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return make


def pipe(name: str) -> Make:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def link(name: str, target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return make


# --- checkpoints ------------------------------------------------------------------------------------


def packed(entry: str, content: bytes) -> Callable[[], bytes]:
    """The honest checkpoint, deflated, one entry grown."""
    return lambda: zipped(honest() | {entry: content}, zipfile.ZIP_DEFLATED)


def twice(entry: str, other: str) -> Callable[[], bytes]:
    """The honest checkpoint with one entry more."""
    return lambda: zipped([*honest().items(), (other, honest()[entry])])


def two_archives() -> bytes:
    """An archive with a second directory that Python's reader alone would see, shifted by a prefix."""
    return b"PK\3\4" + bytes(60) + zipped(honest())


def displaced_zip64() -> bytes:
    """A record of zip64 that says that it lies elsewhere, where PyTorch would look."""
    content = bytearray(saved({"w": torch.zeros(3)}))
    locator = content.rfind(b"PK\6\7")
    assert locator > 0
    struct.pack_into("<Q", content, locator + 8, 4)
    return bytes(content)


VIEWS = {
    "expanded view": tensor(storage(), (HUGE,), (0,)),
    "view of nothing": tensor(storage(), (HUGE,), (1,)),
    "negative stride": tensor(storage(), (8,), (-1,)),
    "negative size": tensor(storage(), (-8,), (1,)),
    "negative offset": tensor(storage(), (4,), (1,), -4),
    "far offset": tensor(storage(), (8,), (1,), HUGE),
    "overflowing shape": tensor(storage(), (2**62, 4), (2**62, 1)),
    "many dimensions": tensor(storage(), (1,) * 1000, (1,) * 1000),
    "shape without strides": tensor(storage(), (8,), ()),
    "more numbers than bytes": tensor(storage(10**9), (10**9,)),
    "2**62 numbers": tensor(storage(2**62)),
    "numbers below zero": tensor(storage(-8)),
    "wider numbers than bytes": tensor(storage(kind="Double")),
    "storage that is not there": tensor(storage(key="77")),
    "storage outside": tensor(storage(key="../data.pkl")),
    "one storage, two kinds": b"(" + tensor(storage()) + tensor(storage(4, "Double"), (4,)) + b"t",
    "hooks": called("torch._utils._rebuild_tensor_v2", storage(), number(0), numbers([8]), numbers([1]),
                    b"\x89", b"}" + text("a") + named("torch.Size") + b"s"),
    "names in the place of numbers": called("torch._utils._rebuild_tensor_v2", text("a"), text("b"),
                                            text("c"), text("d"), b"\x89", b"N"),
}  # fmt: skip
CALLED = {
    "bytearray": called("builtins.bytearray", number(HUGE)),
    "tensor by size": called("torch.Tensor", number(HUGE)),
    "storage by size": called("torch.storage.UntypedStorage", number(HUGE)),
    "quantised tensor": called("torch._utils._rebuild_qtensor", storage(), number(0), numbers([HUGE])),
    "tensor without storage": called("torch._utils._rebuild_meta_tensor_no_storage", number(0)),
    "copy of a view": called("torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(storage())),
    "sparse tensor": called("torch._utils._rebuild_sparse_tensor", number(0)),
    "slow encoding": called("_codecs.encode", text("a" * 9), text("punycode")),
    "wide numpy kind": called("numpy.dtype", text(f"V{10**9}"), b"\x89", b"\x88"),
    "numpy object": called("numpy.dtype", text("O"), b"\x89", b"\x88"),
    "system call": called("posix.system", text("true")),
    "evaluation": called("builtins.eval", text("1")),
    "state of a dict": called("collections.OrderedDict") + b"}" + text("items") + b"Nsb",
}
NESTS = {
    "billion laughs": holding(laughs()),
    "deep key": holding(b"N", b")" + b"\x85" * 10**5),
    "deep list": holding(b"]" * 10**5 + b"a" * (10**5 - 1)),
    "deep tuple": holding(b")" + b"\x85" * 10**5),
    "list that holds itself": holding(b"]q\x00h\x00a"),
    "chain of shared lists": holding(
        b"](]q\x00" + b"".join(b"]q" + bytes([k + 1]) + b"h" + bytes([k]) + b"a" for k in range(200)) + b"e"
    ),
    "a million lists": b"\x80\x02" + b"]" * 1_100_000 + b".",
    "keys of one hash": holding(b"N", number(2**61 - 1)),
    "empty place in the memo": b"\x80\x02]r\xff\xff\xff\xff" + b"\x80\x02j\xff\xff\xff\xfe.",
    "text longer than the file": b"\x80\x02X\xff\xff\xff\xff.",
    "opcode of another protocol": b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b".",
    "empty stack": b"\x80\x02\x85.",
    "no end": b"\x80\x02}",
}
CHECKPOINTS: dict[str, Make] = {
    "zip bomb": file_of(packed("archive/data/0", bytes(100_000_000))),
    "bomb in the pickle": file_of(packed(PICKLE, bytes(100_000_000))),
    "entry twice": file_of(twice("archive/data/0", "archive/data/0")),
    "entry twice but for case": file_of(twice("archive/data/0", "archive/DATA/0")),
    "pickle twice": file_of(twice(PICKLE, PICKLE)),
    "entry above": file_of(twice(PICKLE, "../evil")),
    "entry above in the archive": file_of(twice(PICKLE, "archive/../../evil")),
    "absolute entry": file_of(twice(PICKLE, "/etc/evil")),
    "overlapping entries": file_of(overlapping),
    "prefix": file_of(two_archives),
    "displaced zip64": file_of(displaced_zip64),
    "directory larger than the file": file_of(swollen_directory),
    "no directory": file_of(b"PK\3\4" + bytes(1000)),
    "sparse giant": lambda folder: sparse(folder / "theirs.pt", 10**11, b"PK\3\4"),
    "sparse legacy giant": lambda folder: sparse(folder / "theirs.pt", 10**11, b"\x80\x02"),
    "pipe": pipe("theirs.pt"),
    "device": link("theirs.pt", "/dev/zero"),
    "trap": file_of(saved({"w": Trap()})),
    "legacy trap": file_of(saved({"w": Trap()}, _use_new_zipfile_serialization=False)),
    "bare trap": file_of(pickle.dumps(Trap(), 2)),
    "legacy giant storage": file_of(legacy(holding(tensor(storage(10**9, legacy=True))), 10**9)),
    "legacy storage of 2**60": file_of(legacy(holding(tensor(storage(2**60, legacy=True))), 2**60)),
    "legacy expanded view": file_of(legacy(holding(tensor(storage(legacy=True), (HUGE,), (0,))))),
    "legacy growing view": file_of(legacy(holding(tensor(storage(legacy=True), (HUGE,))))),
    "legacy view of a view": file_of(
        legacy(holding(tensor(storage(legacy=True).replace(b"NtQ", numbers([0, 0, HUGE]) + b"tQ"))))
    ),
    "legacy text of 2**62 bytes": file_of(legacy(b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b".")),
    "legacy without magic": file_of(pickle.dumps({"w": 1}, 2)),
    **{
        name: file_of(with_pickle(holding(value)))
        for group in (VIEWS, CALLED)
        for name, value in group.items()
    },
    **{name: file_of(with_pickle(content)) for name, content in NESTS.items()},
}


# --- nets that are to be measured -------------------------------------------------------------------


def own_state(**changed: Any) -> dict[str, Any]:
    """What a run keeps of itself, as far as a measurement needs it."""
    spec = catalogue.find("digits-resnet8").spec()
    net = net_of(spec, 10, torch.Generator().manual_seed(0))
    return {
        "digest": spec.digest, "spec": spec.to_json(), "num_classes": 10, "classes": None, "seed": 0,
        "data": {"train": "0" * 64, "test": "0" * 64}, "mean": torch.zeros(3, 16, 16), "iteration": 5,
        "net": net.state_dict(),
    } | changed  # fmt: skip


def own(**changed: Any) -> Make:
    return file_of(lambda: saved(own_state(**changed)))


def own_spec(**changed: Any) -> Make:
    return own(spec=own_state()["spec"] | changed)


def own_recipe(**changed: Any) -> Make:
    spec = own_state()["spec"]
    return own(spec=spec | {"recipe": spec["recipe"] | changed})


def own_weight(key: str, value: torch.Tensor) -> Make:
    return own(net=own_state()["net"] | {key: value})


OWN: dict[str, Make] = {
    "a billion classes": own(num_classes=10**9),
    "classes below zero": own(num_classes=-1),
    "no classes": own(num_classes=0),
    "classes in words": own(num_classes="10"),
    "names for other classes": own(classes=["a"] * 9),
    "classes without names": own(classes=[[]] * 10),
    "a million layers": own_spec(depth=1_000_004, experiment="digits-resnet1000004"),
    "a thousand layers": own_spec(depth=1202, experiment="digits-resnet1202"),
    "depth in words": own_spec(depth="8"),
    "long experiment": own_spec(experiment="digits-resnet" + "8" * 10_000),
    "experiment that is a list": own_spec(experiment=["digits-resnet8"]),
    "giant batch": own_recipe(batch_size=10**9),
    "batch in words": own_recipe(batch_size="many"),
    "setting from nowhere": own_recipe(colour="red"),
    "recipe that is a list": own_spec(recipe=[1, 2]),
    "spec that is a list": own(spec=[1]),
    "net that is a list": own(net=[1]),
    "net of words": own(net={"conv1.weight": "x"}),
    "iteration below zero": own(iteration=-1),
    "iteration that is no number": own(iteration=float("nan")),
    "data that are a list": own(data=["train"]),
    "mean that is a number": own(mean=1.0),
    "mean of NaN": own(mean=torch.full((3, 16, 16), float("nan"))),
    "mean of another shape": own(mean=torch.zeros(2)),
    "NaN": own_weight("fc.bias", torch.full((10,), float("nan"))),
    "infinity": own_weight("fc.weight", torch.full((10, 64), float("inf"))),
    "negative variance": own_weight("bn1.running_var", -torch.ones(16)),
    "whole numbers": own_weight("fc.bias", torch.ones(10, dtype=torch.int64)),
    "complex numbers": own_weight("fc.bias", torch.ones(10, dtype=torch.complex64)),
}


def theirs(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    def content() -> bytes:
        weights = own_state()["net"]
        change(weights)
        return saved(weights)

    return file_of(content)


THEIRS: dict[str, Make] = {
    "NaN": theirs(lambda weights: weights["fc.bias"].fill_(float("nan"))),
    "one NaN among many": theirs(lambda weights: weights["conv1.weight"][3, 1, 2, 2].fill_(float("nan"))),
    "infinite in float32": theirs(
        lambda weights: weights.update({"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)})
    ),
    "negative variance": theirs(lambda weights: weights["bn1.running_var"].neg_()),
    "complex numbers": theirs(
        lambda weights: weights.update({"fc.bias": torch.ones(10, dtype=torch.complex64)})
    ),
    "no weights": file_of(saved({"state_dict": {}})),
    "one weight for all": file_of(saved({f"w{k}": torch.zeros(1, 1) for k in range(3)})),
    "control characters": theirs(
        lambda weights: (weights.pop("fc.bias"), weights.update({"fc\x1b[31m\n" * 99: torch.zeros(3)}))
    ),
}


# --- images, folders, CIFAR-10 and the cache --------------------------------------------------------


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x02\x02\x4c\x01\0;"
    )


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
            (279, width * height % 2**32)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n%%EOF\n"
BOMB = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000)))


def socket_in(folder: Path) -> Path:
    path = folder / "theirs.jpg"
    before = Path.cwd()
    os.chdir(folder)  # the path of a socket may be short only
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)
    return path


IMAGES: dict[str, Make] = {
    "png bomb": file_of(png(60_000, 60_000, bytes(1_000_000)), "theirs.png"),
    "png of most pixels": file_of(png(2**31 - 1, 2**31 - 1), "theirs.png"),
    "png that is a strip": file_of(png(1_000_000, 1, bytes(3_000_001)), "theirs.png"),
    "png with a giant text": file_of(lambda: png(8, 8, bytes(200), BOMB), "theirs.png"),
    "gif of most pixels": file_of(gif(65_535, 65_535), "theirs.gif"),
    "tiff of most pixels": file_of(tiff(2**31, 2**31), "theirs.tif"),
    "tiff without its pixels": file_of(tiff(9_000, 9_000), "theirs.tif"),
    "bmp of most pixels": file_of(bmp(2**31 - 1, 2**31 - 1), "theirs.bmp"),
    "ppm of most pixels": file_of(b"P6 999999999 999999999 255\n", "theirs.ppm"),
    "postscript": file_of(EPS, "theirs.jpg"),
    "pdf": file_of(b"%PDF-1.4\n%%EOF\n", "theirs.jpg"),
    "fits": file_of(b"SIMPLE  =                    T" + b" " * 2850, "theirs.jpg"),
    "script": file_of(b"#!/bin/sh\nexit 3\n", "theirs.jpg"),
    "sparse giant": lambda folder: sparse(folder / "theirs.jpg", 10**11, b"\xff\xd8\xff\xe0"),
    "pipe": pipe("theirs.jpg"),
    "endless device": link("theirs.jpg", "/dev/zero"),
    "socket": socket_in,
    "link to itself": link("theirs.jpg", "theirs.jpg"),
    "link to what is no image": link("theirs.jpg", __file__),
}


def photo_folder(spoil: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> Path:
        for name in ("train/a", "train/b", "val/a"):
            (folder / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(folder / name / "1.png")
        spoil(folder)
        return folder

    return make


def only(name: str, make: Make) -> Callable[[Path], object]:
    """Leaves one file in the class `val/a`."""

    def spoil(folder: Path) -> None:
        (folder / "val/a/1.png").unlink()
        make(folder / "val" / name)

    return spoil


FOLDERS: dict[str, Make] = {
    "class of pipes": photo_folder(only("a", pipe("1.jpg"))),
    "class of devices": photo_folder(only("a", link("1.jpg", "/dev/zero"))),
    "class that is its split": photo_folder(lambda top: (top / "val/b").symlink_to(top / "val")),
    "class with a newline": photo_folder(lambda top: (top / "val/a").rename(top / "val/a\n\x1b[2Jb")),
}


def batches(kind: str, spoil: Make) -> Make:
    def make(folder: Path) -> Path:
        layout = folder / f"cifar-10-batches-{kind}"
        layout.mkdir()
        spoil(layout)
        return folder

    return make


CIFAR: dict[str, Make] = {
    "trap": batches("py", file_of(pickle.dumps(Trap()), "data_batch_1")),
    "laughs": batches("py", file_of(holding(laughs()), "data_batch_1")),
    "sparse giant": batches("bin", lambda folder: sparse(folder / "data_batch_1.bin", 10**11)),
    "sparse giant pickle": batches("py", lambda folder: sparse(folder / "data_batch_1", 10**11)),
    "pipe": batches("bin", pipe("data_batch_1.bin")),
    "pipe for a pickle": batches("py", pipe("data_batch_1")),
    "endless device": batches("bin", link("data_batch_1.bin", "/dev/zero")),
    "link to itself": batches("bin", lambda folder: [link("data_batch_1.bin", "data_batch_1.bin")(folder),
                                                     link("test_batch.bin", "/dev/zero")(folder)][0]),
}  # fmt: skip


CACHES: dict[str, Make] = {
    "text": file_of(b"{}", "theirs.json"),
    "wrong checksum": file_of(b"0" * 64 + b"\n{}", "theirs.json"),
    "trap": file_of(pickle.dumps(Trap()), "theirs.json"),
    "pipe": pipe("theirs.json"),
    "sparse giant": lambda folder: sparse(folder / "theirs.json", 10**11, b"0"),
}


# --- how each is read, and what must come of it -----------------------------------------------------


def image(path: Path) -> None:
    """A bad image is told in a sentence of its reader's; here, as one."""
    try:
        read_image(path)
    except BadImage as reason:
        raise DataError(f"{path} is no readable image: {reason}.") from None


def photographs(path: Path) -> None:
    scan_both(path)


def cifar(path: Path) -> None:
    load_dataset("cifar10", folder=path)


def cache(path: Path) -> None:
    if statistics._read(path) is None:
        raise DataError(f"{path} is not used.")


def our_net(path: Path) -> None:
    read_net(path)


def their_net(path: Path) -> None:
    read_net(path, "digits", ThirdPartyCheckpoint(8, mean=(0, 0, 0), std=(1, 1, 1)), path.parent)


READERS: dict[str, tuple[Callable[[Path], object], type[Exception], dict[str, Make]]] = {
    "checkpoint": (their_net, RecordError, CHECKPOINTS),
    "our net": (our_net, RecordError, OWN),
    "their net": (their_net, RecordError, THEIRS),
    "image": (image, DataError, IMAGES),
    "folder": (photographs, DataError, FOLDERS),
    "cifar": (cifar, DataError, CIFAR),
    "cache": (cache, DataError, CACHES),
}
CASES = [(kind, name) for kind, (_, _, group) in READERS.items() for name in group]


@contextmanager
def little_room() -> Iterator[None]:
    """Bound the address space, where the system tells how much is in use."""
    if not sys.platform.startswith("linux"):
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}, {name}" for kind, name in CASES])
def test_a_hostile_file_is_refused_in_one_sentence_and_in_little_memory(
    kind: str, name: str, tmp_path: Path
) -> None:
    read, error, group = READERS[kind]
    path = group[name](tmp_path)
    with little_room(), pytest.raises(error) as trouble:
        read(path)
    told = str(trouble.value).replace(str(tmp_path), "")
    assert isinstance(trouble.value, error)
    assert told.isprintable()
    assert told.endswith(".")
    assert len(told) < LONGEST_SENTENCE


def test_what_the_hostile_files_were_made_from_is_accepted(tmp_path: Path) -> None:
    for content in (
        zipped(honest()),
        with_pickle(holding(tensor(storage()))),
        with_pickle(holding(b"(" + tensor(storage()) + tensor(storage(), (2, 2), (4, 1), 2) + b"t")),
        legacy(holding(tensor(storage(legacy=True)))),
    ):
        assert torch.load(file_of(content)(tmp_path), weights_only=True)
    our_net(own()(tmp_path))
    their_net(theirs(lambda weights: None)(tmp_path))
    mean, axes, variances = np.zeros((3, 2, 2)), np.eye(3), np.ones(3)
    statistics._write(tmp_path / "ours.json", Statistics(mean, axes, variances, {}, {}))
    cache(tmp_path / "ours.json")
    image(file_of(png(8, 8, bytes(200)), "theirs.png")(tmp_path))
    photographs(photo_folder(lambda top: None)(tmp_path))


def test_the_traps_do_harm_where_they_are_believed(tmp_path: Path) -> None:
    path = file_of(with_pickle(holding(VIEWS["expanded view"])))(tmp_path)
    assert torch.load(path, weights_only=True)["w"].numel() == HUGE  # what PyTorch alone would give
    child = os.fork()
    if not child:
        pickle.loads(pickle.dumps(Trap()))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
