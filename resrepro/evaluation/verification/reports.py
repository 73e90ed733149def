"""What a look at a record found: the state of each file, troubles and notes in sentences, what is left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from resrepro.errors import RecordError
from resrepro.records import MALFORMED
from resrepro.records.files import printable

WHOLE, UNSEALED, MISSING, BROKEN = "whole", "whole, without a checksum", "missing", "broken"
Content = TypeVar("Content")


@dataclass(frozen=True)
class Report:
    """What was found at one place.

    Attributes:
        path: the run's folder, or the file of an evaluation or ensemble.
        kind: "run", "evaluation" or "ensemble".
        summary: how far a run came and what there is of it, in a few words; empty where that is unknown.
        parts: by file of a run, WHOLE, UNSEALED (of a format without checksums), MISSING or BROKEN.
        troubles: a sentence on each thing that is broken or missing.
        notes: sentences on what is no trouble, but worth knowing.
        uses: what the record can be used for, and what not any more: tables, `eval`, `train`.
    """

    path: Path
    kind: str
    summary: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether anything is."""
        return bool(self.troubles)


@dataclass
class Findings:
    """What was found so far in one run's folder."""

    folder: Path
    parts: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def blame(self, name: str, sentence: str) -> None:
        """File a trouble under the file that it is in."""
        self.parts[name] = BROKEN if (self.folder / name).exists() else MISSING
        told = in_brief(self.folder, sentence)
        if told not in self.troubles:
            self.troubles.append(told)

    def read(self, name: str, read: Callable[[], Content]) -> Content | None:
        """What `read` makes of a file; None, and a trouble, if it cannot be read."""
        try:
            content = read()
        except RecordError as error:
            self.blame(name, str(error))
        except MALFORMED as error:
            self.blame(name, f"{name} is broken: {type(error).__name__} {error}.")
        else:
            self.parts[name] = WHOLE
            return content
        return None


def in_brief(folder: Path, sentence: str) -> str:
    """A reader's sentence as it stands below the folder's name, in characters that can be printed."""
    return shown(sentence.replace(f"{folder}/", "").replace(f" in {folder} ", " "))


def shown(text: str) -> str:
    """A text that a stranger had a part in, control characters written out and no word endless."""
    return " ".join(map(printable, text.split(" ")))


def shown_path(path: Path) -> str:
    """The same of a path, of which every name may be long."""
    return "/".join(map(printable, str(path).split("/")))
