"""Files put together byte by byte, as no honest program writes them."""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

PICKLE = "archive/data.pkl"


def saved(content: object, **options: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def honest(elements: int = 8) -> dict[str, bytes]:
    """The entries of a checkpoint that holds one tensor of float32, `w`."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.arange(float(elements))}))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(
    entries: Mapping[str, bytes] | Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip archive of entries, the same name twice if need be."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in entries.items() if isinstance(entries, Mapping) else entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    """The honest checkpoint with another pickle."""
    return zipped(honest() | {PICKLE: content})


def overlapping() -> bytes:
    """Entries that all lie on the same bytes of the file: more inside than outside."""
    entries = {f"archive/data/{k}": b"" for k in range(1, 3000)}
    content = bytearray(zipped(honest() | {"archive/data/0": bytes(4_000_000)} | entries))
    for place in _headers(content):
        struct.pack_into("<II", content, place + 20, 4_000_000, 4_000_000)
    return bytes(content)


def _headers(content: bytearray) -> Iterator[int]:
    place = content.find(b"PK\1\2")
    while place >= 0:
        yield place
        place = content.find(b"PK\1\2", place + 46)


def swollen_directory() -> bytes:
    """An archive whose list of entries is said to be a GiB."""
    content = bytearray(zipped(honest()))
    struct.pack_into("<I", content, content.rfind(b"PK\5\6") + 12, 2**30)
    return bytes(content)


# --- pickles ----------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    """The opcode of a whole number."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def text(value: str) -> bytes:
    """The opcode of a text."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def numbers(values: Iterable[int]) -> bytes:
    """A tuple of whole numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def named(name: str) -> bytes:
    """The opcode of a global."""
    module, _, short = name.rpartition(".")
    return f"c{module}\n{short}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    """The call of a global."""
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def holding(value: bytes, key: bytes = text("w")) -> bytes:
    """The pickle of a dict that holds one value."""
    return b"\x80\x02}" + key + value + b"s."


def storage(numel: int = 8, kind: str = "Float", key: str = "0", legacy: bool = False) -> bytes:
    """The persistent id of a storage."""
    parts = text("storage"), named(f"torch.{kind}Storage"), text(key), text("cpu"), number(numel)
    return b"(" + b"".join(parts) + (b"N" if legacy else b"") + b"tQ"


def tensor(memory: bytes, size: Iterable[int] = (8,), stride: Iterable[int] = (1,), offset: int = 0) -> bytes:
    """The pickled call that makes a tensor."""
    hooks = called("collections.OrderedDict")
    return called(
        "torch._utils._rebuild_tensor_v2",
        memory, number(offset), numbers(size), numbers(stride), b"\x89", hooks,
    )  # fmt: skip


def legacy(content: bytes, numel: int = 8, data: bytes = bytes(32)) -> bytes:
    """A file of the format before zip archives, around a pickle that names storage `0`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    front = b"".join(pickle.dumps(each, 2) for each in head)
    return front + content + pickle.dumps(["0"], 2) + struct.pack("<q", numel) + data


def laughs(count: int = 40) -> bytes:
    """Ten times ten times ten ... references to one tuple, in few bytes."""
    parts = [b")q\x01"]
    parts += [b"(" + bytes([0x68, k]) * 10 + b"tq" + bytes([k + 1]) for k in range(1, count + 1)]
    return b"(" + b"".join(parts) + b"t"  # each is an item of one tuple


# --- images -----------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of RGB pixels with that size in its header; `chunks` come before the compressed `data`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    """A file that says to be so large and takes no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path
