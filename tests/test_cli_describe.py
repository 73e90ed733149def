"""`resrepro describe`, and Table 1 and Figure 3 as commands."""

import json
import re
import subprocess
import sys

import pytest
from commands import call

from resrepro.figures.exhibits import figures, tables
from resrepro.nets import description
from resrepro.spec import catalogue

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_describe_shows_every_net_within_80_columns():
    code, told, _ = call("describe")
    assert code == 0
    assert max(map(len, told.splitlines())) <= 80
    assert "…" not in told
    assert re.search(r"^ResNet-1202 +200 200 200 +1202 +19,421,274 +2\.829 *$", told, re.M)
    assert re.search(r"^ResNet-50 +3 4 6 3 +50 +25,557,032 +3\.858 +3\.8 +\+0\.058$", told, re.M)
    assert re.search(r"^ResNet-34 \(C\) +3 4 6 3 +34 +22,716,840 +3\.831 *$", told, re.M)
    assert re.search(r"^VGG-19 +19 +143,667,240 +19\.632 +19\.6 +\+0\.032$", told, re.M)


def test_describe_write_builds_the_nets_shows_them_and_says_where_they_are_written(tmp_path, monkeypatch):
    one = catalogue.experiments()["imagenet-resnet18"]  # test_description builds them all
    monkeypatch.setattr(catalogue, "experiments", lambda: {one.name: one})
    monkeypatch.setattr(description, "summary_path", lambda: tmp_path / "nets.json")
    code, told, _ = call("describe", "--write")
    assert code == 0
    assert told.splitlines()[-1] == "Written: resrepro/spec/catalogue/nets.json"
    assert "ResNet-18" in told
    assert "ResNet-34" not in told
    [net] = json.loads((tmp_path / "nets.json").read_text())["nets"].values()
    assert (net["layers"], net["parameters"]) == (18, 11_515_688)


def test_describe_write_into_a_package_that_is_closed_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(description, "summary_path", lambda: tmp_path / "file" / "nets.json")
    monkeypatch.setattr(description, "describe_all", dict)
    code, told, error = call("describe", "--write")
    assert (code, told) == (1, "")
    assert error.startswith("error: cannot write resrepro/spec/catalogue/nets.json")
    assert error.count(".") == 2  # that of the name and the full stop


def test_table_1_and_figure_3_are_written_beside_what_comes_from_records():
    code, told, _ = call("compare", "table1", "table6")
    assert code == 0
    assert "Written: tables/table1.md, tables/table1.csv, tables/table1.tex" in told
    assert "Written: tables/table6.md" in told
    code, told, _ = call("plot", "figure3")
    assert (code, told) == (0, "Written: figures/figure3.png, figures/figure3.svg\n")


def test_a_wrong_name_among_right_ones_draws_nothing(tmp_path):
    for words in (("compare", "table1", "table99"), ("plot", "figure3", "figure99")):
        code, told, error = call(*words)
        assert (code, told) == (2, "")
        assert "99" in error
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(("command", "names"), [("compare", tables), ("plot", figures)])
def test_help_lists_the_exhibits_that_there_are(command, names):
    code, told, _ = call(command, "--help")
    words = " ".join(re.sub(r"[│\s]+", " ", told).split())
    assert code == 0
    assert f"{', '.join(names())}. (default: " in words


def test_nets_table_1_and_figure_3_need_no_torch():
    code = (
        "import sys\n"
        "from resrepro.cli import app\n"
        "for words in (['describe'], ['compare', 'table1'], ['plot', 'figure3']):\n"
        "    app(words, standalone_mode=False)\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_naming_the_exhibits_costs_the_other_helps_nothing():
    code = (
        "import sys\n"
        "from resrepro.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'resrepro.figures', 'resrepro.paper'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
