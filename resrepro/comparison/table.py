"""A table as data, what its cells and the commands that fill them say, and its four forms: Markdown, CSV,
LaTeX, and in a terminal: whole at every width, and in characters that its encoding has.
"""

import codecs
import math
import os
import re
import shlex
import statistics
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from resrepro.comparison.groups import with_seeds
from resrepro.records import Run
from resrepro.records.storage import write_out
from resrepro.spec import catalogue, command_for

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Template

DASH = "—"
NONE = math.nan  # a number that there is not
GAPS = f"Cells with {DASH} are filled by:"
TEX = str.maketrans({
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": "$<$", ">": "$>$", "−": "$-$", "→": r"$\to$", "↳": r"$\hookrightarrow$", "…": r"\dots{}",
    DASH: "---", "`": "",
})  # fmt: skip
SPELLED = "resrepro.spelled"  # the name of the error handler `_spell`
ASCII = {
    "±": "+-", "—": "-", "–": "-", "−": "-", "─": "-", "×": "x", "↳": ">", "→": "->", "†": "*", "…": "...",
    "│": "|", "•": "*", "·": ".", "✓": "ok", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
WRAP = 24  # columns that a cell of sentences needs at least
REPEATING = "layers"  # the heading of a column that says what the row's name says as well
NO_BREAK = "\u00a0"
SPREAD = re.compile(r" (?=\([\d.,]+(±|\+-))")  # before a mean in brackets
SHORT = {  # words of headings that are longer than what stands below
    "difference": "diff.", "training": "train", "validation": "val.", "params": "par.", "layers": "lay.",
    "sample": "smp.",
}  # fmt: skip


class Row(NamedTuple):
    """One line: cells as text, the numbers of its notes, and the section heading above it, if any."""

    cells: tuple[str, ...]
    notes: tuple[int, ...] = ()
    section: str | None = None


@dataclass(frozen=True)
class Table:
    """An exhibit's table."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # numbered from 1
    missing: tuple[tuple[str, str], ...] = ()  # the label of a row, and the command that would fill it
    remarks: tuple[str, ...] = ()  # sentences below the notes
    records: tuple[dict[str, object], ...] = field(default=(), repr=False)  # the rows as raw numbers, for CSV
    wraps: tuple[float, ...] = ()  # of a table of sentences the share of the page that each column has
    lead: str = GAPS  # to what is missing

    @property
    def frame(self) -> "pd.DataFrame":
        """The raw numbers as a frame, one row per net and protocol, NaN where there is none."""
        import pandas as pd

        return pd.DataFrame(list(self.records))

    def _repr_markdown_(self) -> str:
        return to_markdown(self)


class Notes(dict[str, int]):
    """Sentences with their numbers, from 1, in the order in which they are first needed."""

    def number(self, sentences: Iterable[str]) -> tuple[int, ...]:
        """The numbers of some sentences, which are kept."""
        return tuple(sorted(self.setdefault(text, len(self) + 1) for text in sentences))


def spell_mean(values: Sequence[float], digits: int = 2) -> str:
    """`6.61±0.16 (5)`, or `6.61 (1)` for a single run."""
    spread = f"±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):,.{digits}f}{spread} ({len(values)})"


def train_command(experiment: str) -> str:
    """The command that trains what the paper trained of an experiment."""
    found = catalogue.find(experiment)
    return with_seeds(command_for(found.spec()), len(found.seeds))


def eval_command(runs: Iterable[Run], protocol: str | None = None) -> str:
    """The command that evaluates finished runs under a test protocol, or as their recipe says."""
    told = f" --protocol {protocol}" if protocol else ""
    return f"resrepro eval {run_folders(runs)}{told} --data DIR"


def run_folders(runs: Iterable[Run]) -> str:
    """The folders of runs as words of a command; of published ones those of the runs with checkpoints."""
    return shlex.join((run.runs_folder / run.name / run.folder.name).as_posix() for run in runs)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write `<name>.md`, `.csv` and `.tex` into a folder, return their paths; RecordError if that fails."""
    texts = {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table)}
    paths = [folder / f"{table.name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_out(path, text.encode())
    return paths


@cache
def _template(name: str) -> "Template":
    """A template of this package; its marks are such as neither Markdown nor LaTeX has."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("resrepro.comparison", ""), keep_trailing_newline=True, trim_blocks=True,
        variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
    )  # fmt: skip
    environment.filters["tex"] = lambda text: text.translate(TEX)
    return environment.get_template(name)


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown, with notes as superscript numbers."""
    return _template("table.md.j2").render(table=table)


def to_latex(table: Table) -> str:
    """A tabular that needs no package, with its notes below it."""
    return _template("table.tex.j2").render(table=table)


def to_json(table: Table) -> dict[str, Any]:
    """Its name, title, rows as raw numbers (None where there is none), notes, commands and remarks."""
    rows = [{key: None if value != value else value for key, value in row.items()} for row in table.records]
    missing = [{"row": label, "command": command} for label, command in table.missing]
    told = {"notes": list(table.notes), "missing": missing, "remarks": list(table.remarks)}
    return {"exhibit": table.name, "title": table.title, "rows": rows, **told}


def to_csv(table: Table) -> str:
    """The raw numbers, full precision, whole ones whole, empty where there is none."""
    import pandas as pd

    return pd.DataFrame(list(table.records), dtype=object).to_csv(index=False, lineterminator="\n")


# --- in a terminal --------------------------------------------------------------------------------------


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
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]


@dataclass
class Grid:
    """Rows below headings; where they do not fit a terminal, a block for each row that has a name."""

    heads: Sequence[str]
    left: int = 1  # how many first columns are aligned to the left
    wraps: bool = False  # whether the last column has sentences, which may go on below
    rows: list[tuple[list[Text], bool]] = field(default_factory=list)  # cells, and whether a line is above

    def add(self, *cells: str | Text, style: str = "", section: bool = False) -> None:
        """Add a row."""
        texts = [cell if isinstance(cell, Text) else Text(cell, style) for cell in cells]
        self.rows.append((texts, section and bool(self.rows)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        def known(text: str) -> str:
            return text.encode(options.encoding, SPELLED).decode(options.encoding)

        def tells(column: int) -> bool:
            repeats = heads[column] == REPEATING
            return any(row[column] and not (repeats and row[0].endswith(row[column])) for row in rows)

        heads = [known(head) for head in self.heads]
        rows = [[known(cell.plain) for cell in cells] for cells, _ in self.rows]
        below = [[row[0].replace(" (", "\n("), *(SPREAD.sub("\n", cell) for cell in row[1:])] for row in rows]
        every = list(range(len(heads)))
        telling = [column for column in every if column == 0 or tells(column)]
        plain = [head.replace(":", "") for head in heads]
        whole = [head.replace(" ", NO_BREAK) for head in plain]
        short = [" ".join(SHORT.get(word, word) for word in head.split(" ")) for head in plain]
        tries = [(whole, rows, every), (short, rows, every), (short, rows, telling), (short, below, telling)]
        for named, shown, columns in tries:
            if lines := self._lines(columns, named, shown, options.max_width):
                yield from lines
                return
        blocks: list[list[list[str]]] = []  # of each row what its columns tell
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

    def _lines(
        self, columns: Sequence[int], heads: Sequence[str], rows: Sequence[Sequence[str]], room: int
    ) -> list[Text]:
        """The heading, a rule, and the rows below; nothing if there is not enough room."""
        cells = [max((len(line) for row in rows for line in row[n].split("\n")), default=0) for n in columns]
        widths = list(map(max, cells, (max(map(len, heads[n].split(" "))) for n in columns)))
        spare = room - sum(widths) - len(widths) + 1
        if spare < 0:
            widths[-1] += spare
            if not self.wraps or widths[-1] < WRAP:
                return []

        def line(cells: Sequence[str]) -> str:
            places = zip(columns, cells, widths, strict=True)
            return " ".join(c.ljust(w) if n < self.left else c.rjust(w) for n, c, w in places).rstrip()

        stacks = [textwrap.wrap(heads[n], max(w, 1)) for n, w in zip(columns, widths, strict=True)]
        tall = max(map(len, stacks))
        above = zip(*([""] * (tall - len(stack)) + stack for stack in stacks), strict=True)
        lines = [Text(line(each).replace(NO_BREAK, " ")) for each in above]
        lines.append(Text("─" * (sum(widths) + len(widths) - 1)))
        for row, (texts, section) in zip(rows, self.rows, strict=True):
            lines += [Text("")] if section else []
            stacks = [row[n].split("\n") for n in columns]
            if self.wraps:
                stacks[-1] = [part for long in stacks[-1] for part in textwrap.wrap(long, widths[-1]) or [""]]
            for each in zip_longest(*stacks, fillvalue=""):
                lines.append(Text(line(each)))
                start = 0
                for n, width in zip(columns, widths, strict=True):
                    lines[-1].stylize(texts[n].style, start, start + width)
                    start += width + 1
        return lines


def to_rich(table: Table) -> RenderableType:
    """The table for a terminal; notes as one letter for each set of them that a row has."""
    grid = Grid((*table.columns, ""))
    sections: list[str] = []
    letters: dict[str, str] = {}
    for row in table.rows:
        sections += [row.section] if row.section else []
        first, *others = row.cells
        dagger = "†" if sections and first and not first.startswith("↳") else ""
        told = "; ".join(table.notes[number - 1] for number in row.notes)
        letter = letters.setdefault(told, chr(ord("a") + len(letters))) if told else ""
        grid.add(first + dagger, *others, letter, section=bool(row.section))
    below = [Text(f" † {section}") for section in sections]
    below += [Text(f" {letter} {told}") for told, letter in letters.items()]
    if table.missing:
        below.append(Text(f"\n{table.lead}"))
        below += [Text(f"   {command}", style="cyan") for _, command in table.missing]
    below += [Text("\n" + remark, style="dim") for remark in table.remarks]
    return Group(Text(table.title + "\n", style="bold"), grid, *below)
