"""The four forms of a table."""

import re
import shutil
import subprocess

import pytest
from conftest import write_ensemble
from rich.console import Console

from resrepro.comparison.table import Row, Table, to_csv, to_latex, to_markdown, to_rich, write_table
from resrepro.comparison.tables import build
from resrepro.errors import RecordError
from resrepro.records.collection import collect

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


def printed(table):
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(to_rich(table))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_every_exhibit_fits_a_terminal_of_80_columns_uncut(make_run, tmp_path):
    for seed in range(5):
        make_run(tmp_path, "cifar10-resnet110", seed)
    for experiment in ("cifar10-plain20", "cifar10-resnet20"):
        make_run(tmp_path, experiment, iterations=2000, split="45k5k")
    folders = []
    for net in ("plain34", "resnet18", "resnet34-b", "resnet152"):
        for seed in range(3):
            evals = {"ten_crop": (20 + 12.5 * seed, 10 + 6.5 * seed), "multi_scale": (20 + 12.5 * seed, 10.0)}
            settings = {"iterations": 700, "batch_size": 64, "image_size": 64}
            folders.append(make_run(tmp_path, f"imagenet-{net}", seed, evals=evals))
            make_run(tmp_path, f"folder-{net}", seed, evals=evals, **settings)
            make_run(tmp_path, f"imagenet-{net}", seed, evals=evals, **settings)
    write_ensemble(tmp_path, folders[-6:], 19.5, 4.5)
    found = collect([tmp_path])
    for exhibit in (
        "table2",
        "table3",
        "table4",
        "table5",
        "table6",
        "figure1",
        "figure4",
        "figure6",
        "demo",
    ):
        lines = printed(build(exhibit, found.runs, found.ensembles, every=True))
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines), f"{exhibit} is cut off at 80 columns"
        heads = lines[: next(number for number, line in enumerate(lines) if line.startswith("─"))]
        assert heads[-1].endswith("note"), f"{exhibit} has no room for its notes"


def test_long_names_go_on_below_in_the_terminal():
    lines = printed(
        Table("x", "X", ("net", "ours"), (Row(("GoogLeNet (ILSVRC'14)", "1")), Row(("VGG (v5)", "2"))))
    )
    assert any(line.startswith("GoogLeNet ") and line.endswith("1") for line in lines)
    assert "(ILSVRC'14)" in lines
    assert any(line.startswith("VGG (v5)") for line in lines)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RecordError, match="cannot write"):
        write_table(TABLE, tmp_path / "file")
