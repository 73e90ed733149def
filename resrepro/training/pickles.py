"""Pickles of state dicts read without building anything: what they would make is counted and compared.

PyTorch's weights-only reader runs no strange code, but it believes the numbers in a file: it makes any
bytearray, any expanded view and any nest of shared lists that it is asked for. This machine knows the
opcodes of that reader and only the few callables that the checkpoint of a net needs.
"""

import math
import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

MOST_STEPS = 1_000_000  # opcodes; a ResNet-152 with its optimizer has 0.1 million, each makes 0.2 kB at most
MOST_VALUES = 1_000_000  # once what is shared is written out: as many as there are opcodes
DEEPEST = 50  # containers in each other; an optimizer's state has five
MOST_DIMENSIONS = 8  # of a tensor; a convolution over volumes has five
LONGEST_SCALAR = 16  # bytes of the widest number that numpy has
STORAGES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
    "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8,
}  # bytes of an element  # fmt: skip


class Refused(Exception):
    """A pickle that must not be opened; says why."""


class NoTensor(Refused):
    """A pickle of an object that is neither a tensor nor a plain value."""


class Damaged(Refused):
    """Bytes that are no pickle of a checkpoint."""


@dataclass(frozen=True)
class Storage:
    """What a pickle says of the memory that its tensors share: its name, kind and number of elements."""

    key: str
    kind: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.numel * STORAGES[self.kind]


@dataclass(frozen=True)
class _Global:
    name: str


class _Tensor:
    """Stands for a tensor whose numbers were found to fit together."""


class _DType:
    """Stands for the kind of a numpy scalar."""


class _Opaque:
    """Stands for a value that holds no others."""


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle and stop behind it; give its plain values and all storages that it names.

    Raises:
        NoTensor: if it holds an object that is neither a tensor nor a plain value.
        Damaged: if it is no such pickle.
        Refused: if it asks for more than a net's checkpoint can mean.
    """
    machine = _Machine()
    try:
        content = machine.run(file)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise Damaged(str(error)) from None
    _measure(content, {}, 0)
    return content, machine.storages


class _Machine:
    """The stack machine of pickle, with stand-ins for all that is no plain value."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: IO[bytes]) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step > MOST_STEPS:
                raise Refused(f"its pickle has more than {MOST_STEPS:,} steps")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in LITERALS:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name])
            elif opcode.name in STEPS:
                STEPS[opcode.name](self, argument)
            else:
                raise Damaged(opcode.name)
        raise Damaged("no end")

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, argument: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def bundle(self, argument: Any) -> None:
        items = tuple(self.marked())
        self.stack.append(items)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def name(self, argument: str) -> None:
        name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
        if name not in CALLS and name not in KINDS:
            raise NoTensor(name)
        self.stack.append(_Global(name))

    def store(self, argument: Any) -> None:
        storage = _storage(*self.stack.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Refused("two of its tensors disagree on the memory that they share")
        self.stack.append(storage)

    def call(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(CALLS[function.name](*arguments))

    def build(self, argument: Any) -> None:
        """State beside a value: PyTorch keeps `_metadata` beside a state dict, numpy repeats a dtype."""
        state, target = self.stack.pop(), self.stack[-1]
        ours = type(target) is dict and type(state) is dict and set(state) <= {"_metadata"}
        theirs = type(target) is _DType and state in DTYPE_STATES
        if not ours and not theirs:
            raise NoTensor("state")

    def append(self, argument: Any) -> None:
        item = self.stack.pop()
        _of(list, self.stack[-1]).append(item)

    def extend(self, argument: Any) -> None:
        items = self.marked()
        _of(list, self.stack[-1]).extend(items)

    def set_item(self, argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _of(dict, self.stack[-1])[_key(key)] = value

    def set_items(self, argument: Any) -> None:
        items = self.marked()
        target = _of(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def last(self, count: int) -> None:
        if len(self.stack) < count:
            raise Damaged("empty stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]


LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}
CONSTANTS = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True, "EMPTY_TUPLE": ()}
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "EMPTY_LIST": lambda machine, argument: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, argument: machine.stack.append({}),
    "TUPLE1": lambda machine, argument: machine.last(1),
    "TUPLE2": lambda machine, argument: machine.last(2),
    "TUPLE3": lambda machine, argument: machine.last(3),
    "MARK": _Machine.mark, "TUPLE": _Machine.bundle, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get, "LONG_BINGET": _Machine.get, "GLOBAL": _Machine.name, "BINPERSID": _Machine.store,
    "REDUCE": _Machine.call, "BUILD": _Machine.build, "APPEND": _Machine.append, "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
}  # fmt: skip


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Damaged(f"no {kind.__name__}")
    return value


def _key(key: Any) -> Any:
    """A key whose hash is quick: neither nested, nor one of many numbers made to share a hash."""
    if not (isinstance(key, str | None) or (type(key) in (bool, int) and abs(key) < 2**32)):
        raise Refused("a key in it is neither text nor a small whole number")
    return key


# --- what may be called -----------------------------------------------------------------------------


def _storage(tag: Any, kind: Any, key: Any, location: Any, numel: Any, view: Any = None) -> Storage:
    """The persistent id of a storage; views of storages, long out of use, are not known."""
    known = type(kind) is _Global and kind.name in KINDS
    if tag != "storage" or not known or type(key) is not str or type(location) is not str or view is not None:
        raise Damaged("persistent id")
    return Storage(key, KINDS[kind.name], _whole(numel))


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise Refused("a size in it is negative or beyond all memory")
    return number


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    """A tensor whose elements lie in its storage, each in a place of its own as far as numbers tell."""
    _of(Storage, storage)
    if len(_of(tuple, size)) != len(_of(tuple, stride)) or len(size) > MOST_DIMENSIONS:
        raise Refused("a tensor in it has no possible shape")
    if len(rest) > 1 and rest[1] not in ({}, None):  # requires_grad, hooks, metadata
        raise NoTensor("hooks")
    if any(rest[2:]):
        raise NoTensor("metadata")
    elements = math.prod(map(_whole, size))
    reach = _whole(offset) + sum((n - 1) * _whole(step) for n, step in zip(size, stride, strict=True)) + 1
    if elements and max(elements, reach) > storage.numel:
        raise Refused(f"a tensor in it is larger than its memory of {storage.numel:,} elements")
    return _Tensor()


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if hooks not in ({}, None):
        raise NoTensor("hooks")
    return _of(_Tensor, tensor)  # type: ignore[no-any-return]


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict: empty, or of pairs as Python 2 wrote it."""
    return {_key(key): value for key, value in pairs}


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes, which the second protocol of pickle keeps as text."""
    if encoding != "latin1":
        raise NoTensor("encoding")
    return bytes(_of(str, text).encode("latin1"))


DTYPE_STATES = tuple((3, order, None, None, None, -1, -1, 0) for order in "<|=")


def _dtype(kind: Any, align: Any, copy: Any) -> _DType:
    if not re.fullmatch(r"[?bBhHiIlLqQefd]|[biuf][1248]", kind):
        raise NoTensor("dtype")
    return _DType()


def _scalar(dtype: Any, content: Any) -> _Opaque:
    if len(_of(bytes, content)) > LONGEST_SCALAR:
        raise Refused("a number in it has too many bytes")
    _of(_DType, dtype)
    return _Opaque()


def _set(items: Iterable[Any]) -> _Opaque:
    for item in items:
        _key(item)
    return _Opaque()


def _device(kind: str, index: int = 0) -> _Opaque:
    _of(str, kind)
    _whole(index)
    return _Opaque()


KINDS = {f"torch.{kind}Storage": kind for kind in STORAGES}
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda size: _of(tuple, size),
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "collections.Counter": lambda counts: _of(dict, counts),
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    "numpy.dtype": _dtype,
}  # fmt: skip


# --- how much it is ---------------------------------------------------------------------------------


def _measure(value: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """The number of values, with shared ones written out, and the depth of a content.

    Raises:
        Refused: if it is too many or too deep, as every content is that holds itself.
    """
    if not isinstance(value, list | tuple | dict):
        return 1, 0
    if id(value) not in known:
        if depth > DEEPEST:
            raise Refused(f"it is nested more than {DEEPEST} deep")
        items = value.values() if isinstance(value, dict) else value
        parts = [_measure(item, known, depth + 1) for item in items]
        known[id(value)] = 1 + sum(size for size, _ in parts), 1 + max((deep for _, deep in parts), default=0)
    size, deep = known[id(value)]
    if deep > DEEPEST:
        raise Refused(f"it is nested more than {DEEPEST} deep")
    if size > MOST_VALUES:
        raise Refused(f"it unfolds to more than {MOST_VALUES:,} values")
    return size, deep
