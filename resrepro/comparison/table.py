"""A table as data, what its cells and the commands that fill them say, and its four forms: Markdown, CSV,
LaTeX and the terminal's (rich).
"""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.comparison.groups import with_seeds
from resrepro.records import Run
from resrepro.records.storage import write_out
from resrepro.spec import catalogue, command_for

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

DASH = "—"
NONE = math.nan  # a number that there is not
GAPS = f"Cells with {DASH} are filled by:"


@dataclass(frozen=True)
class Row:
    """One line: cells as text, the numbers of its notes, and the section heading above it, if any."""

    cells: tuple[str, ...]
    notes: tuple[int, ...] = ()
    section: str | None = None

    @property
    def marks(self) -> str:
        """`1,3`: the numbers of its notes."""
        return ",".join(map(str, self.notes))


@dataclass(frozen=True)
class Table:
    """An exhibit's table. `notes` are numbered from 1; `missing` pairs a row label with the command that
    would fill it; `remarks` are sentences below the notes. `records` are the same rows as raw numbers, for
    CSV. A table of sentences has the share of the page that each column `wraps` at, and its own `lead` to
    what is missing.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    records: tuple[dict[str, object], ...] = field(default=(), repr=False)
    wraps: tuple[float, ...] = ()
    lead: str = GAPS

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
    """The folders of some runs, as words of a command that needs their checkpoints. Published records have no
    checkpoint, so they are named by the run that they were published from; and a command that is written to a
    table holds no path of this machine.
    """
    return shlex.join((run.runs_folder / run.name / run.folder.name).as_posix() for run in runs)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write `<name>.md`, `.csv` and `.tex` into a folder, return their paths; RecordError if that fails."""
    texts = {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table)}
    for kind, text in texts.items():
        write_out(folder / f"{table.name}.{kind}", text.encode())
    return [folder / f"{table.name}.{kind}" for kind in texts]


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown, with notes as superscript numbers."""
    lines = [f"# {table.title}", "", "| " + " | ".join(table.columns) + " |"]
    align = ":--" if table.wraps else "--:"
    lines.append("|" + "|".join([":--", *[align] * (len(table.columns) - 1)]) + "|")
    for row in table.rows:
        if row.section:
            lines.append(f"| *{row.section}* |" + " |" * (len(table.columns) - 1))
        first, *others = row.cells
        marks = f" <sup>{row.marks}</sup>" if row.notes else ""
        lines.append("| " + " | ".join([first + marks, *others]) + " |")
    if table.notes:
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(table.notes, 1))]
    if table.missing:
        lines += ["", table.lead, ""]
        lines += [f"- {label}: `{command}`" for label, command in table.missing]
    lines += [line for remark in table.remarks for line in ("", remark)]
    return "\n".join(lines) + "\n"


def to_json(table: Table) -> dict[str, Any]:
    """Its name, title, rows as raw numbers (None where there is none), notes, commands and remarks."""
    rows = [{key: None if value != value else value for key, value in row.items()} for row in table.records]
    missing = [{"row": label, "command": command} for label, command in table.missing]
    told = {"notes": list(table.notes), "missing": missing, "remarks": list(table.remarks)}
    return {"exhibit": table.name, "title": table.title, "rows": rows, **told}


def to_csv(table: Table) -> str:
    """The raw numbers, full precision, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table.records[0]) if table.records else [], lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({key: "" if value != value else value for key, value in record.items()})
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A tabular that needs no package, with its notes below it."""
    width = len(table.columns)
    wrapped = "".join(rf"p{{{share:g}\linewidth}}" for share in table.wraps)
    columns = wrapped or "l" + "r" * (width - 1)
    lines = [f"% {table.title}", rf"\begin{{tabular}}{{{columns}}}", r"\hline"]
    lines += [" & ".join(map(_tex, table.columns)) + r" \\", r"\hline"]
    for row in table.rows:
        if row.section:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(row.section)}}}}} \\")
        first, *others = map(_tex, row.cells)
        marks = f"$^{{{row.marks}}}$" if row.notes else ""
        lines.append(" & ".join([first + marks, *others]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", ""]
    lines += [rf"\par\noindent $^{{{number}}}$ {_tex(note)}" for number, note in enumerate(table.notes, 1)]
    filling = f" fills the cells with {_tex(DASH)}." if DASH in table.lead else ""
    if table.missing and not filling:
        lines.append(rf"\par\noindent {_tex(table.lead)}")
    for label, command in table.missing:
        lines.append(rf"\par\noindent {_tex(label)}: \texttt{{{_tex(command)}}}{filling}")
    lines += [rf"\par\noindent {_tex(remark)}" for remark in table.remarks]
    return "\n".join(lines) + "\n"


_TEX: dict[str, str | int | None] = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": "$<$", ">": "$>$", "−": "$-$", "→": r"$\to$", "↳": r"$\hookrightarrow$", "…": r"\dots{}",
    DASH: "---", "`": "",
}  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(str.maketrans(_TEX))


def to_rich(table: Table) -> "RenderableType":
    """The table for a terminal; notes as one letter for each set of them that a row has."""
    from rich.console import Group
    from rich.text import Text

    from resrepro.comparison.screen import Grid

    grid = Grid((*table.columns, ""), said=("layers",))
    sections: list[str] = []
    marks = Notes()
    for row in table.rows:
        sections += [row.section] if row.section else []
        first, *others = row.cells
        dagger = "†" if sections and first and not first.startswith("↳") else ""
        told = "; ".join(table.notes[number - 1] for number in row.notes)
        mark = chr(ord("a") + marks.number([told])[0] - 1) if told else ""
        grid.add(first + dagger, *others, mark, section=bool(row.section))
    below: list[RenderableType] = [Text(f" † {section}") for section in sections]
    below += [Text(f" {chr(ord('a') + number - 1)} {told}") for told, number in marks.items()]
    if table.missing:
        below.append(Text(f"\n{table.lead}"))
        below += [Text(f"   {command}", style="cyan") for _, command in table.missing]
    below += [Text("\n" + remark, style="dim") for remark in table.remarks]
    return Group(Text(table.title + "\n", style="bold"), grid, *below)
