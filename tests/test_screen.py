"""Tables in a terminal: whole at every width and in every encoding."""

import io
import itertools
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, write_ensemble, write_run
from rich.console import Console

from resrepro.comparison.table import Grid, Row, Table, to_rich
from resrepro.comparison.tables import build
from resrepro.records.collection import collect

CELL = re.compile(r"[\d.]+±[\d.]+ \(\d+\)|\d+\.\d+ \(\d+\)")


def printed(table, width=80, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="resrepro.spelled", write_through=True)
    Console(file=file, width=width, highlight=False).print(table)
    return [line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Runs of many protocols, with large errors and spreads."""
    top = tmp_path_factory.mktemp("many")
    for seed in range(5):
        write_run(top, "cifar10-resnet110", seed, curve=[(64_000, 60 + 2 * seed, 50 + 2 * seed)])
    for experiment in ("cifar10-plain20", "cifar10-resnet20"):
        write_run(top, experiment, iterations=2000, split="45k5k")
    folders, small = [], {"iterations": 700, "batch_size": 64, "image_size": 64}
    for net, seed in itertools.product(("plain34", "resnet18", "resnet34-b", "resnet152"), range(3)):
        evals = {"ten_crop": (20 + 12.5 * seed, 10 + 6.5 * seed), "multi_scale": (20 + 12.5 * seed, 10.0)}
        for dataset, own in (("folder", small), ("imagenet", small), ("imagenet", {})):
            folders.append(write_run(top, f"{dataset}-{net}", seed, evals=evals, **own))
    write_ensemble(top, folders[-16::3], 19.5, 4.5)
    return collect([top])


EXHIBITS = "table2", "table2-folder", "table3", "table4", "table5", "table6", "figure1", "figure4", "figure6"


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("exhibit", EXHIBITS)
def test_no_cell_is_ever_cut_and_a_mean_keeps_its_count(many, exhibit, every):
    table = build(exhibit, many.runs, many.ensembles, every=every)
    for width in (120, 80, 60, 40, 30):
        lines = printed(to_rich(table), width)
        text = "\n".join(lines)
        assert (max(map(len, lines)) <= width, "…" in text) == (True, False)
        for cell in (cell for row in table.rows for cell in row.cells if CELL.fullmatch(cell)):
            assert cell in text, (width, cell)
        is_table = any(line.startswith("───") for line in lines)
        assert is_table or width < 80
        assert width > 40 or not is_table or exhibit in ("table2", "table2-folder")


def test_table_6_is_whole_in_80_columns_with_all_its_headings(many):
    lines = printed(to_rich(build("table6", many.runs)))
    rule = next(place for place, line in enumerate(lines) if line.startswith("─"))
    heads = " ".join(lines[2:rule])
    for word in ("net", "(M)", "paper", "test", "val.", "error", "diff.", "best", "run", "smp."):
        assert word in heads


def test_sets_of_notes_have_one_letter_each():
    rows = (Row(("a", "1"), (1, 2)), Row(("b", "2"), (2,)), Row(("c", "3"), (1, 2)), Row(("d", "4")))
    lines = printed(to_rich(Table("x", "X", ("net", "ours"), rows, notes=("one", "two"))))
    assert lines[4:8] == ["a      1 a", "b      2 b", "c      3 a", "d      4"]
    assert lines[8:10] == [" a one; two", " b two"]


def test_where_a_table_does_not_fit_rows_become_blocks():
    rows = (Row(("conv", "56x56", "3x3, 64")), Row(("", "blocks", "x 2"), (1,)), Row(("fc", "", "10-d")))
    lines = printed(to_rich(Table("x", "X", ("layer", "output", "18-layer"), rows, notes=("n",))), 16)
    assert lines[2:] == [
        "conv", "  output: 56x56;", "blocks", "  18-layer: 3x3,", "64; x 2", "  note: a", "fc",
        "  18-layer: 10-d", " a n",
    ]  # fmt: skip


def test_a_column_of_sentences_goes_on_below_while_there_is_room_for_it():
    grid = Grid(("name", "what"), left=2, wraps=True)
    grid.add("a", "some words that are many and do not fit")
    assert printed(grid, 30)[2:] == ["a    some words that are many", "     and do not fit"]
    assert printed(grid, 20)[0] == "a"


def test_what_an_encoding_lacks_is_written_in_ascii_and_columns_stay_in_line():
    rows = (Row(("ResNet-20", "8.75±0.06 (2)", "−0.10")), Row(("↳ é", "—", "+0.10")))
    lines = printed(to_rich(Table("x", "X", ("net", "ours", "difference"), rows)), encoding="ascii")
    assert lines[2:] == [
        "net                 ours difference",
        "------------------------------------",
        "ResNet-20 8.75+-0.06 (2)      -0.10",
        "> e                    -      +0.10",
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii:strict", "COLUMNS": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"},
    ],
)
def test_no_environment_makes_a_traceback(environment, tmp_path):
    def run(*words):
        command, given = [sys.executable, "-m", "resrepro", *map(str, words)], os.environ | environment
        return subprocess.run(command, env=given, capture_output=True, check=False)

    done = run("compare", "table6", "--runs", ROOT / "results", "--tables", tmp_path)
    assert (done.returncode, done.stderr, b"ResNet-1202 19.4" in done.stdout) == (0, b"", True)
    assert len(list(tmp_path.iterdir())) == 3
    done = run("list", "cifar10-resnet\u00e4")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
