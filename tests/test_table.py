"""The four forms of a table."""

import re
import shutil
import subprocess

import pytest

from resrepro.comparison.table import Row, Table, to_csv, to_latex, to_markdown, write_table
from resrepro.errors import RecordError

TABLE = Table(
    name="made_up",
    title="A table of 100 % & more_or_less",
    columns=("net", "test error: paper", "ours"),
    rows=(
        Row(("ResNet-20", "8.75", "8.70±0.10 (3)")),
        Row(("↳ shortened", "", "20.00 (1)"), (1, 2), None),
        Row(("plain-110", ">60", "—"), (), "Read off Figure 6 (±0.03)"),
    ),
    notes=("2,000 iterations instead of 64,000", "bn_group 64 instead of 0 (50% less)"),
    missing=(("plain-20", "resrepro train --depth 20 --plain"),),
    remarks=("A remark.",),
    records=({"net": "ResNet-20", "ours": 8.7}, {"net": "a,b", "ours": ""}),
)


def test_markdown_rows_all_have_as_many_cells_as_the_header():
    lines = [line for line in to_markdown(TABLE).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 1  # header, rule, rows, section
    assert {line.count("|") for line in lines} == {4}
    assert "↳ shortened <sup>1,2</sup>" in to_markdown(TABLE)
    assert "- plain-20: `resrepro train --depth 20 --plain`" in to_markdown(TABLE)


def test_csv_quotes_what_needs_it():
    assert to_csv(TABLE) == 'net,ours\nResNet-20,8.7\n"a,b",\n'


def test_latex_escapes_every_special_character():
    text = to_latex(TABLE)
    assert r"A table" in text.splitlines()[0]
    body = text.split(r"\begin{tabular}")[1]
    assert r"bn\_group 64 instead of 0 (50\% less)" in body
    assert "8.70$\\pm$0.10 (3)" in body
    assert not re.search(r"(?<!\\)[%#_]", body)
    assert "$>$60" in body  # a bare > prints as another sign in TeX's default encoding
    assert all(ord(character) < 128 for character in body)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path):
    document = r"\documentclass{article}\begin{document}" + to_latex(TABLE) + r"\end{document}"
    (tmp_path / "t.tex").write_text(document)
    call = subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, check=False
    )
    assert call.returncode == 0, call.stdout[-500:]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RecordError, match="cannot write"):
        write_table(TABLE, tmp_path / "file")
