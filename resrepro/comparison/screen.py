"""Tables in a terminal: whole at every width, and in characters that its encoding has."""

import codecs
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

SPELLED = "resrepro.spelled"  # the name of the error handler below
ASCII = {
    "±": "+-", "—": "-", "–": "-", "−": "-", "─": "-", "×": "x", "↳": ">", "→": "->", "†": "*", "…": "...",
    "│": "|", "•": "*", "·": ".", "✓": "ok", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
FULL = 80  # columns from which on a table that is too wide becomes two, not blocks
WRAP = 24  # columns that a cell of sentences needs at least
NO_BREAK = "\u00a0"
SPREAD = re.compile(r" (?=\([\d.,]+(±|\+-))")  # before a mean in brackets
SHORT = {  # words of headings that are longer than what stands below
    "difference": "diff.", "training": "train", "validation": "val.", "params": "par.", "layers": "lay.",
    "sample": "smp.",
}  # fmt: skip


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, in ASCII: accents fall, what has no like becomes a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = [unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() for c in lacking]
    return "".join(ASCII.get(c) or p or "?" for c, p in zip(lacking, plain, strict=True)), error.end


codecs.register_error(SPELLED, _spell)


def prepare() -> None:
    """Let the screen show what it cannot encode in ASCII, and take no width that is none."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=SPELLED)
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        if not re.fullmatch("0*[1-9][0-9]{0,4}", os.environ.get(name, "1")):
            del os.environ[name]


@dataclass
class Grid:
    """Rows below headings; where they do not fit a terminal, a block for each row. The first column has the
    row's name, and a row without one goes on with that above.
    """

    heads: Sequence[str]
    left: int = 1  # how many first columns are aligned to the left
    wraps: bool = False  # whether the last column has sentences, which may go on below
    said: Sequence[str] = ()  # headings of columns that say what the row's name says as well
    rows: list[tuple[list[Text], bool]] = field(default_factory=list)  # cells, and whether a line is above

    def add(self, *cells: str | Text, style: str = "", section: bool = False) -> None:
        """Add a row."""
        texts = [cell if isinstance(cell, Text) else Text(cell, style) for cell in cells]
        self.rows.append((texts, section and bool(self.rows)))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Text]:
        def known(text: str) -> str:
            return text.encode(options.encoding, SPELLED).decode(options.encoding)

        heads = [known(head) for head in self.heads]
        rows = [[known(cell.plain) for cell in cells] for cells, _ in self.rows]
        below = [[row[0].replace(" (", "\n("), *(SPREAD.sub("\n", cell) for cell in row[1:])] for row in rows]
        every = list(range(len(heads)))
        telling = [n for n in every if self._tells(n, rows)]
        plain = [head.replace(":", "") for head in heads]
        whole = [head.replace(" ", NO_BREAK) for head in plain]
        short = [" ".join(SHORT.get(word, word) for word in head.split(" ")) for head in plain]
        tries = [(whole, rows, [every])]
        tries += [(short, rows, [every]), (short, rows, [telling]), (short, below, [telling])]
        if options.max_width >= FULL:
            middle = len(telling) // 2 + 1
            tries.append((short, below, [telling[:middle], [0, *telling[middle:]]]))
        for named, shown, parts in tries:
            widths = [self._widths(part, named, shown, options.max_width) for part in parts]
            if all(widths):
                for part, width in zip(parts, widths, strict=True):
                    yield from self._columns(part, named, shown, width, known("─"))
                return
        yield from self._blocks(heads, rows)

    def _tells(self, column: int, rows: Sequence[Sequence[str]]) -> bool:
        """Whether a column has something to say in any row."""
        if self.heads[column] in self.said:
            return not all(row[0].endswith(row[column]) for row in rows)
        return column == 0 or any(row[column] for row in rows)

    def _widths(
        self, part: Sequence[int], heads: Sequence[str], rows: Sequence[Sequence[str]], room: int
    ) -> list[int]:
        """The columns' widths; none if there is not enough room."""
        cells = [max((len(line) for row in rows for line in row[n].split("\n")), default=0) for n in part]
        words = [max(map(len, heads[n].split(" "))) for n in part]
        widths = list(map(max, cells, words))
        spare = room - sum(widths) - len(widths) + 1
        if self.wraps and spare < 0 and widths[-1] + spare >= WRAP:
            widths[-1] += spare
            return widths
        return widths if spare >= 0 else []

    def _columns(
        self, part: Sequence[int], heads: Sequence[str], rows: Sequence[Sequence[str]],
        widths: Sequence[int], rule: str,
    ) -> Iterator[Text]:  # fmt: skip
        """The heading, a rule, and the rows below."""

        def line(cells: Sequence[str]) -> str:
            places = zip(part, cells, widths, strict=True)
            return " ".join(c.ljust(w) if n < self.left else c.rjust(w) for n, c, w in places).rstrip()

        stacks = [textwrap.wrap(heads[n], max(w, 1)) for n, w in zip(part, widths, strict=True)]
        lines = max(map(len, stacks))
        for each in zip(*([""] * (lines - len(stack)) + stack for stack in stacks), strict=True):
            yield Text(line(each).replace(NO_BREAK, " "))
        yield Text(rule * (sum(widths) + len(widths) - 1))
        for row, (texts, section) in zip(rows, self.rows, strict=True):
            if part[1:2] != [1] and not any(row[n] for n in part[1:]):
                continue  # in the second of two tables
            if section:
                yield Text("")
            cells = [row[n].split("\n") for n in part]
            if self.wraps:
                cells[-1] = [short for long in cells[-1] for short in textwrap.wrap(long, widths[-1]) or [""]]
            for each in zip_longest(*cells, fillvalue=""):
                text, start = Text(line(each)), 0
                for n, width in zip(part, widths, strict=True):
                    text.stylize(texts[n].style, start, start + width)
                    start += width + 1
                yield text

    def _blocks(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Text]:
        """Of each row its name and below it a line for each cell, with its heading."""
        blocks: list[list[list[str]]] = []
        for row in rows:
            if row[0] or not blocks:
                blocks.append([[] for _ in heads])
            for told, cell in zip(blocks[-1], row, strict=True):
                told += [cell.replace("\n", " ")] if cell else []
        for name, *cells in blocks:
            yield Text(" ".join(name), "bold")
            for head, told in zip(heads[1:], cells, strict=True):
                if told:
                    yield Text(f"  {head or 'note'}: {'; '.join(told)}")
