"""Table 1: every printed number against the built nets, and the four forms of the table."""

import re

import pytest
from rich.console import Console

from resrepro.comparison.architecture_table import build, printed_flops, table1_nets
from resrepro.comparison.tables import to_latex, to_markdown, to_rich
from resrepro.paper import published
from resrepro.spec.architecture import architectures, vgg19

PRINTED = {key[1:]: number.value for key, number in published().items() if key[0] == "table1"}


@pytest.fixture(scope="module")
def table():
    return build()


@pytest.fixture(scope="module")
def nets(table):
    return table.frame.set_index("net")


def test_every_structural_number_that_the_paper_prints_is_that_of_the_built_net(nets):
    structure = {key: value for key, value in PRINTED.items() if key[1] != "flops"}
    assert len(structure) == 5 * 20
    assert {key: nets.loc[key] for key in structure} == structure


def test_multiply_adds_agree_to_the_printed_digit_that_of_50_layers_cut_off(nets):
    for heading in nets.index:
        counted, paper = nets.loc[heading, "flops"] / 1e9, PRINTED[heading, "flops"] / 1e9
        expected = int(counted * 10) / 10 if heading == "50-layer" else round(counted, 1)
        assert expected == paper, heading


def test_the_printed_row_is_the_papers_and_ours_is_not_adjusted(table):
    rows = {row.cells[1]: row.cells[2:] for row in table.rows if row.cells[0].startswith("FLOPs")}
    assert rows["paper"] == ("1.8", "3.6", "3.8", "7.6", "11.3")
    assert rows["ours"] == ("1.79", "3.64", "3.86", "7.57", "11.28")
    assert rows["diff."] == ("−0.01", "+0.04", "+0.06", "−0.03", "−0.02")


def test_only_a_count_that_does_not_round_to_the_printed_one_has_a_note(table):
    [row] = [row for row in table.rows if row.cells[1] == "diff."]
    assert [table.notes[number - 1] for number in row.notes] == [
        "50-layer: 3.86 is 3.8 only when cut off, not rounded"
    ]


def test_a_count_without_projections_is_told_for_the_bottleneck_nets(table):
    # The four projections of option B in closed form; the first at stride 1.
    projections = 56**2 * 64 * 256 + sum((56 // k) ** 2 * 128 * k * 256 * k for k in (2, 4, 8))
    net = table1_nets()["152-layer"]
    assert net.projections == projections
    assert f"{(net.multiply_adds - projections) / 1e9:.2f}" in table.notes[1]


def test_a_column_reads_as_in_the_paper(table):
    column = [cells[4] for cells in (row.cells for row in table.rows)]
    first = [row.cells[0] for row in table.rows]
    start = first.index("conv4_x")
    assert column[start : start + 4] == ["1x1, 256", "3x3, 256", "1x1, 1024", "x 6"]
    assert table.rows[start].cells[1] == "14x14"
    assert column[:2] == ["7x7, 64 /2", "3x3 max /2"]
    assert [row.cells[1] for row in table.rows if row.cells[0]][:6] == [
        "112x112", "56x56", "28x28", "14x14", "7x7", "1x1",
    ]  # fmt: skip


def test_the_table_fits_a_terminal_of_80_columns_uncut(table):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(to_rich(table))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert re.search(r"parameters +ours 11,515,688 21,623,848 25,557,032 44,549,160 60,192,808 ", text)
    assert "152-layer note" in text


def test_markdown_and_latex_have_all_rows(table):
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}
    latex = to_latex(table)
    assert latex.count(r"\\") == len(table.rows) + 1
    assert latex.isascii()


def test_printed_flops_are_those_of_table_1_figure_3_or_none():
    found = {name: printed_flops(net) for name, net in architectures().items()}
    assert {name: value for name, value in found.items() if value} == {
        "imagenet-plain34": 3.6e9, "imagenet-resnet18": 1.8e9, "imagenet-resnet34": 3.6e9,
        "imagenet-resnet50": 3.8e9, "imagenet-resnet101": 7.6e9, "imagenet-resnet152": 11.3e9,
    }  # fmt: skip
    assert printed_flops(vgg19()) == 19.6e9
