"""What a power cut may leave on the disk, worked out from the operations that came before it.

A file holds what it held when it was last forced to disk (`sync`); of what was written later everything
may be there, or half, or zeros in its place, or nothing. A folder holds the names that it had when it was
last forced (`sync_folder`); of the later steps all may have arrived, none, or the last one alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union
from unittest import mock

from resrepro.records import storage

OPERATIONS = ("create", "open_end", "write", "sync", "close", "cut", "link", "move", "remove", "sync_folder")
OF_FOLDERS = ("mkdir", "rmdir", "rename", "replace")  # of `os`; `storage.move` comes by here as well
CHANGE_NOTHING = ("open_end", "close", "move")  # by themselves
NAMES = ("none", "all", "last")  # of the steps since a folder was forced: which have arrived
CONTENT = ("lost", "zeros", "half", "whole")  # of the bytes since a file was forced

State = dict[str, bytes | None]  # files with their content, folders with None, by their path


@dataclass(eq=False)
class File:
    """A file: what it holds for who reads it now, and what is sure to be there after a power cut."""

    now: bytes = b""
    kept: bytes = b""

    def after(self, content: str) -> bytes:
        """What it holds after a power cut."""
        if content == "lost" or self.now is self.kept:
            return self.kept
        if content == "whole":
            return self.now
        same = _first_difference(self.kept, self.now)
        common, added = self.now[:same], self.now[same:]
        return common + (bytes(len(added)) if content == "zeros" else added[: len(added) // 2])


def _first_difference(one: bytes, other: bytes) -> int:
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


Step = tuple[tuple[str, Union[File, "Folder", None]], ...]  # names that change at once; None: is gone


@dataclass(eq=False)
class Folder:
    """A folder: its names now, those that are sure to be there after a power cut, the steps between."""

    now: dict[str, Union[File, "Folder"]] = field(default_factory=dict)
    kept: dict[str, Union[File, "Folder"]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    hangs_together: bool = False  # the last step could not have been made without those before it

    def change(self, *names: tuple[str, Union[File, "Folder", None]], new: bool = False) -> None:
        """Change some names in one step; a `new` one must not have been there."""
        self.hangs_together = new and any(name in self.kept for name, _ in names)
        self.steps.append(names)
        _take(self.now, names)

    def force(self) -> None:
        """What it holds now is sure to be there."""
        self.kept, self.steps = dict(self.now), []

    def after(self, names: str, content: str, path: str = "") -> State:
        """What it and all below it hold after a power cut."""
        entries = dict(self.kept)
        first = {"none": len(self.steps), "all": 0, "last": 0 if self.hangs_together else -1}[names]
        for step in self.steps[first:]:
            _take(entries, step)
        found: State = {}
        for name, node in entries.items():
            if isinstance(node, File):
                found[f"{path}{name}"] = node.after(content)
            else:
                found |= {f"{path}{name}": None} | node.after(names, content, f"{path}{name}/")
        return found


def _take(entries: dict[str, Any], step: Step) -> None:
    for name, node in step:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def whole_tree(path: Path) -> Folder:
    """A folder as it lies there, all of it forced to disk; without the locks, which are no records."""
    folder = Folder()
    for each in path.iterdir():
        if each.is_dir():
            folder.now[each.name] = whole_tree(each)
        elif ".lock" not in each.suffixes:
            content = each.read_bytes()
            folder.now[each.name] = File(content, content)
    folder.force()
    return folder


def write_state(state: State, root: Path) -> None:
    """Lay down what a power cut has left."""
    root.mkdir(parents=True)
    for path, content in state.items():
        if content is None:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).write_bytes(content)


class PowerCut:
    """Records what happens to the disk below `root`, and works out what a cut at any point may leave.

    `mark(n)` notes that from here on nothing before `n` may be lost.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, whole_tree(root)
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        self._open: dict[int, Path] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While active, all that goes through `storage` and every folder made or renamed is noted."""
        with ExitStack() as stack:
            for module, names in ((storage, OPERATIONS), (os, OF_FOLDERS)):
                for name in names:
                    noted = self._noting(name, getattr(module, name))
                    stack.enter_context(mock.patch.object(module, name, noted))
            yield

    def mark(self, number: int) -> None:
        self.events.append(("mark", (number,)))

    def _noting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            answer = real(*arguments, **options)
            about = arguments
            if name in ("create", "open_end"):
                self._open[answer] = arguments[0]
            if isinstance(arguments[0], int):  # a descriptor, unlike one of a file elsewhere
                about = (self._open.get(arguments[0], "elsewhere"), *arguments[1:])
            if name == "close":
                self._open.pop(arguments[0], None)
            if name not in CHANGE_NOTHING and Path(about[0]).is_relative_to(self.root):
                self.events.append((name, about))
            return answer

        return noted

    def states(self) -> Iterator[tuple[int, State]]:
        """After none, one, two .. of the events: the number marked last, and each state a cut may leave."""
        safe = -1
        yield from ((safe, state) for state in self._outcomes())
        for name, arguments in self.events:
            if name == "mark":
                (safe,) = arguments
            else:
                getattr(self, f"_{name}")(*arguments)
            yield from ((safe, state) for state in self._outcomes())

    def _outcomes(self) -> Iterator[State]:
        yield from (self.tree.after(names, content) for names in NAMES for content in CONTENT)

    def _place(self, path: Any) -> tuple[Folder, str]:
        *above, name = Path(path).relative_to(self.root).parts
        folder = self.tree
        for part in above:
            folder = folder.now[part]  # type: ignore[assignment]
        return folder, name

    def _node(self, path: Any) -> Any:
        if Path(path) == self.root:
            return self.tree
        folder, name = self._place(path)
        return folder.now[name]

    def _mkdir(self, path: Any, *_: Any) -> None:
        folder, name = self._place(path)
        folder.change((name, Folder()), new=True)

    def _rmdir(self, path: Any) -> None:
        folder, name = self._place(path)
        folder.change((name, None))

    def _create(self, path: Path) -> None:
        folder, name = self._place(path)
        folder.change((name, File()), new=True)

    def _remove(self, path: Path) -> None:
        folder, name = self._place(path)
        folder.change((name, None))

    def _link(self, path: Path, second: Path) -> None:
        folder, name = self._place(second)
        folder.change((name, self._node(path)), new=True)

    def _write(self, path: Path, content: bytes) -> None:
        self._node(path).now += bytes(content)

    def _cut(self, path: Path, size: int) -> None:
        file = self._node(path)
        file.now = file.now[:size]

    def _sync(self, path: Path) -> None:
        file = self._node(path)
        file.kept = file.now

    def _replace(self, source: Any, target: Any) -> None:
        (folder, old), (other, new) = self._place(source), self._place(target)
        if folder is not other:
            raise AssertionError("the records are never moved between folders")
        if folder.now.get(new) is not folder.now[old]:  # two names of one file both stay
            folder.change((old, None), (new, folder.now[old]))

    _rename = _replace

    def _sync_folder(self, path: Path) -> None:
        self._node(path).force()
