"""Every exhibit by its name, whether it comes from records or from the nets."""

import pytest

import resrepro
from resrepro import figures as exhibits
from resrepro.comparison import tables as comparison
from resrepro.errors import UsageError
from resrepro.figures import curves
from resrepro.paper import layouts
from resrepro.records.collection import collect


def test_the_names_are_those_of_the_layouts_and_of_what_has_a_module_of_its_own_in_the_papers_order():
    assert set(exhibits.tables()) == {"table1", "figure7", *layouts()}
    assert set(exhibits.figures()) == {"figure3", "figure7", *curves.exhibits()}
    assert exhibits.tables()[0] == "table1"
    assert exhibits.figures()[:3] == ("figure1", "figure1-digits", "figure3")
    names = ("table1", "table9", "table14", "figure6", "figure6-digits", "figure7", "demo")
    assert exhibits.in_order(sorted(names)) == names  # by number, not by letter


def test_table_1_needs_no_runs_and_is_written_where_asked(tmp_path):
    table = resrepro.compare("table1", runs=tmp_path / "nowhere", tables=tmp_path / "out")
    assert list(table.frame["layers"]) == [18, 34, 50, 101, 152]
    assert resrepro.compare("table1", tables=None) == table
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table1.md", "table1.csv", "table1.tex"}


def test_figure_3_needs_no_runs(tmp_path):
    paths = resrepro.plot("figure3", runs=tmp_path / "nowhere", figures=tmp_path / "out", palette="safe")
    assert [path.name for path in paths] == ["figure3.png", "figure3.svg"]
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert paths._repr_html_().startswith('<img style="max-width:100%" src="data:image/png;base64,iVBOR')
    _, notes = exhibits.draw_figure("figure3", (), tmp_path, paper=True)
    assert notes == ("The paper has no curves for figure3.",)


def test_all_others_come_from_records(make_run, tmp_path):
    make_run(tmp_path / "runs", "cifar10-resnet20")
    found = collect([tmp_path / "runs"])
    table = resrepro.compare("table6", runs=tmp_path / "runs", tables=None)
    assert table == comparison.build("table6", found.runs) == exhibits.build_table("table6", found)
    ours = resrepro.plot("figure6", runs=tmp_path / "runs", figures=tmp_path / "a", paper=True)
    theirs = exhibits.draw_figure("figure6", found.runs, tmp_path / "b", paper=True, stem="mine")[0]
    assert [path.name for path in theirs] == ["mine.png", "mine.svg"]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_what_there_is_not_is_refused_with_the_names_that_there_are():
    for call, name in ((resrepro.compare, "figure3"), (resrepro.plot, "table1")):
        with pytest.raises(UsageError, match=r"no exhibit '\w+' to \w+: there are .*figure1, .*demo"):
            call(name)
    for exhibit in ("figure3", "figure6", "figure7"):
        with pytest.raises(UsageError, match="no palette 'loud': there are paper, safe"):
            resrepro.plot(exhibit, palette="loud")
    for width in ("wide", 2, float("nan")):
        with pytest.raises(UsageError, match=r"no width .*give 3 to 40 inches, or column or text"):
            resrepro.plot("figure1", width=width)
    with pytest.raises(UsageError, match="no format 'eps': there are png, svg, pdf"):
        resrepro.plot("figure1", formats=["eps"])
