"""The report: what is in it, that it is well formed, and that records cannot break out of it."""

import base64
import hashlib
import json
import re
import statistics
from pathlib import Path

import pytest
from commands import call
from conftest import ROOT, falling_curve, rewrite, write_run
from reports import HOSTILE, KINDS, LINE_END, Page, records, ruling, verdict_of, verdicts

from resrepro import figures as exhibits
from resrepro.comparison.table import Row
from resrepro.paper import curves
from resrepro.records.collection import Collection, collect
from resrepro.report import build_report, chart_of, curve_data, lacking, protocols, section
from resrepro.spec import catalogue

LIMIT = 2_000_000  # bytes
EMPTY = Collection((), ())
FEW = ("table6", "figure1")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return records(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(found):
    return build_report(found, verdicts())


@pytest.fixture(scope="module")
def page(whole):
    return Page(whole)


def test_every_exhibit_has_a_section_and_a_way_to_it(page):
    first, *ids = [element.attributes["id"] for element in page.all("section")]
    assert first == "glance"  # the first screen
    others = {"claims", "departures", "protocol", "environment"}
    every = {*exhibits.tables(), *exhibits.figures(), *others} - {"demo"}
    assert set(ids) == {name for name in every if not name.endswith("-folder")}  # no run is on a folder
    links = [element.attributes["href"] for element in page.all("a") if "nav" in element.inside]
    assert links == [f"#{name}" for name in ids]


def test_ids_are_unique_and_whatever_is_pointed_at_is_there(page):
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    for element in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert element.attributes.get(name, ids[0]) in ids
        target = element.attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids


def test_everything_that_can_be_used_or_seen_has_a_name(page):
    assert page.open == []
    assert all(element.text.strip() for element in page.all("summary", "th", "legend"))
    for button in page.all("button"):
        assert button.text.strip() or {"aria-label", "data-count"} & button.attributes.keys()
    assert all("label" in element.inside for element in page.all("input"))
    assert all(element.attributes["alt"] for element in page.all("img"))
    assert all(element.attributes["aria-label"] for element in page.with_class("plot"))


def test_the_size_stays_below_the_limit_and_nothing_is_loaded(found, whole, page):
    assert len(whole.encode()) < LIMIT
    assert all(element.attributes["src"].startswith("data:image/svg+xml") for element in page.all("img"))
    assert page.all("link", "iframe", "object", "embed", "base", "form") == []
    assert all("src" not in element.attributes for element in page.all("script"))
    links = [element.attributes["href"] for element in page.all("a")]
    assert [link for link in links if "://" in link] == ["https://arxiv.org/abs/1512.03385"]
    assert build_report(found, verdicts(), FEW) == build_report(found, verdicts(), FEW)


def test_only_the_scripts_and_the_style_of_the_page_are_let_through(page):
    (policy,) = [each.attributes["content"] for each in page.all("meta") if "http-equiv" in each.attributes]
    run = [element.text for element in page.all("script") if element.attributes.get("type") is None]
    for text in [*run, page.all("style")[0].text]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.count("sha256-") == len(run) + 1
    assert (policy.startswith("default-src 'none'"), "unsafe" in policy) == (True, False)
    names = {name for element in page.elements for name in element.attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_verdicts_are_counted_and_told_in_a_word_and_a_sign(page):
    claims = [element for element in page.all("li") if "data-kind" in element.attributes]
    assert len(claims) == 27
    told = [next(word for word in KINDS if word in claim.text) for claim in claims]
    assert told == [verdict.verdict for verdict in verdicts()]
    buttons = [" ".join(one.text.split()) for one in page.all("button") if "data-kind" in one.attributes]
    assert buttons == ["27 all", "6 ✓ held", "7 ✗ failed", "7 ? undecided", "7 – not testable here"]
    assert "difference 8.2, 95 % interval 7.1 to 9.2" in claims[0].text
    assert "shortened: 2,000 of 64,000 iterations" in claims[0].text


def test_what_other_runs_say_stands_below_a_claim_and_is_summed_up():
    told = [
        verdict_of(1, "undecided", others=(ruling(), ruling("undecided", why="one seed"))),
        verdict_of(2, "held", others=(ruling(),)),
        verdict_of(3, "undecided", others=(ruling("failed"),)),
        verdict_of(4, "undecided", others=(ruling(),)),
    ]
    page = Page(build_report(EMPTY, told, ()))
    claims = [element for element in page.all("li") if "data-kind" in element.attributes]
    assert "digits: ✓ held. 49.0 ± 11.5 against 0.1. difference 49.0" in " ".join(claims[0].text.split())
    assert "one seed" in claims[0].text
    (summed,) = [element.text for element in page.all("p") if "On other runs" in element.text]
    assert summed == "On other runs, shown with each claim, claims 1 and 4 held; claim 3 failed."
    assert "On other runs" not in build_report(EMPTY, [verdict_of(1)], ())


def test_the_tables_say_what_compare_says(page, found):
    table = exhibits.build_table("table6", found)
    cells = [" ".join(element.text.split()) for element in page.all("td", "th")]
    shown = {cell for row in table.rows for cell in row.cells[1:] if cell}
    assert "9.96±0.18 (2)" not in shown  # not a number of these records
    assert shown <= set(cells)
    assert all(note in page.text for note in table.notes)
    assert all(remark.split("`")[0] in page.text for remark in table.remarks)
    commands = [element.text for element in page.all("code")]
    assert all(command in commands for _, command in table.missing)


def test_rows_without_runs_of_ours_are_folded_unless_all_are():
    cells = ("NIN", ""), ("a", "—"), ("↳ x", "5"), ("b", "—"), ("c", "4")
    assert lacking([Row(each) for each in cells]) == {3}
    assert lacking((Row(("a", "—")), Row(("b", "—")))) == frozenset()


def test_charts_hold_means_seeds_and_the_curves_of_the_paper(found):
    chart = chart_of("figure6", found.runs)
    assert chart is not None
    assert chart.depths == [20, 32, 44, 56, 110, 1202]
    assert [name for name, _, shown in chart.lines if not shown] == ["seed"]

    def lines(kind, whose):
        wanted, drawn = ("plain-56", kind, whose), chart.data["panels"][0]["lines"]
        return [line for line in drawn if (line["net"], line["kind"], line["whose"]) == wanted]

    (ours,), seeds, (paper,) = lines("train", "ours"), lines("train", "seed"), lines("held_out", "paper")
    points = [falling_curve(2000, 100, seed) for seed in (0, 1)]
    assert ours["x"] == [point.iteration for point in points[0]]
    expected = [statistics.fmean(p.train for p in both) for both in zip(*points, strict=True)]
    assert ours["y"] == pytest.approx(expected, abs=1e-3)
    assert [line["seed"] for line in seeds] == [0, 1]
    assert seeds[1]["y"] == [point.train for point in points[1]]
    rows = curves("figure6").query("panel == 'left' and series == 'plain-56' and kind == 'test'")
    rows = rows.sort_values("x")
    assert paper["y"] == pytest.approx(rows["value"].tolist())
    assert paper["x"] == pytest.approx([x * 10_000 * 2_000 / 64_000 for x in rows["x"]], abs=0.1)


def test_the_curves_are_told_in_words(page):
    rows = curves("figure6").query("panel == 'left' and series == 'plain-56'").sort_values("x")
    ends = rows.groupby("kind")["value"].last().round(1)
    ours = "plain-56: ours ends at 5.1 ± 0.2 % training and 10.1 ± 0.2 % test error"
    paper = f"the paper's ends at {ends['train']} % training and {ends['test']} % test error."
    assert f"{ours}; {paper}" in page.text


def test_nothing_in_a_record_becomes_markup_or_ends_a_script(tmp_path):
    clean = Page(build_report(records(tmp_path / "clean", ("word",)), [verdict_of(1)], FEW))
    bad = verdict_of(1, text=HOSTILE)
    found = records(tmp_path / "bad", (HOSTILE,))
    for run in found.runs:
        rewrite(run.folder / "env.json", lambda env: env.update(cpu=HOSTILE, gpu=HOSTILE))
    hostile = Page(build_report(collect([tmp_path / "bad"]), [bad], FEW))
    assert hostile.text.count("window.hacked = 1") >= 6 + 2 + 3  # verdict, machine, notes and departures
    shapes = [[(e.tag, *e.attributes) for e in page.elements if e.tag != "code"] for page in (clean, hostile)]
    assert shapes[0] == shapes[1]
    data = next(element.text for element in hostile.all("script") if element.attributes.get("id") == "curves")
    assert set(json.loads(data)) == {"figure1"}


def test_the_data_of_the_curves_cannot_end_their_script(found):
    figure = section("figure1", found)
    assert figure.chart is not None
    figure.chart.data["panels"][0]["lines"][0]["net"] = HOSTILE + LINE_END
    text = str(curve_data([figure]))
    assert "<" not in text
    assert LINE_END not in text
    assert json.loads(text)["figure1"]["panels"][0]["lines"][0]["net"] == HOSTILE + LINE_END


def test_the_protocol_has_every_setting_with_its_mark():
    known = {one["name"]: one for one in protocols()}
    recipe = catalogue.recipes()["cifar-64k"]
    assert [setting for setting, _, _ in known["cifar-64k"]["settings"]] == list(recipe.settings.values())
    assert sum(count for _, count in known["cifar-64k"]["counts"]) == len(recipe.settings)
    assert [setting.key for setting, _, _ in known["cifar-64k-warm"]["settings"]] == ["warmup_lr"]
    assert set(known) == {*catalogue.recipes(), *catalogue.protocols()}


def test_departures_and_environment_are_told_with_their_runs(page):
    for told in (
        "2,000 iterations instead of 64,000", "cifar10-plain20+iterations=2000",
        "CIFAR-10: 8 runs of 4 nets, shortened to 2,000 of 64,000 iterations.",
        "8 runs: cpu, a made-up CPU, torch 2.6.0",
    ):  # fmt: skip
        assert told in page.text


def test_without_records_the_side_of_the_paper_is_there_and_says_so():
    page = Page(build_report(EMPTY, (), ("table6", "figure6", "demo")))
    assert all(told in page.text for told in ("There are no finished runs yet", "8.75", "no runs of ours"))
    assert page.all("h2")[0].text.startswith("Table 6")


def test_unfinished_runs_and_broken_files_are_counted_without_a_path(tmp_path):
    write_run(tmp_path, "cifar10-resnet20", curve=[(1000, 50.0, 50.0)])
    (write_run(tmp_path, "cifar10-resnet20", 1) / "result.json").write_text("{")
    text = Page(build_report(collect([tmp_path]), (), ("table6",))).text
    assert "1 unfinished or diverged run enters no number here." in text
    assert ("1 file of the records could not be read" in text, str(tmp_path) in text) == (True, False)


@pytest.mark.usefixtures("empty_folder")
def test_the_command_writes_a_file_and_overwrites_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(exhibits, "tables", lambda: ("table6",))
    monkeypatch.setattr(exhibits, "figures", lambda: ())
    write_run(tmp_path / "runs", "cifar10-resnet20", iterations=2000)
    words = f"report --runs {tmp_path / 'runs'} --out"
    assert [call(words, "new/page.html")[0] for _ in range(2)] == [0, 0]
    assert "ResNet-20" in Page(Path("new/page.html").read_text(encoding="utf-8")).text
    Path("notes.html").write_text("<p>mine</p>")
    assert [call(words, place)[0] for place in ("notes.html", "spec.json", "new")] == [2, 2, 2]
    assert Path("notes.html").read_text() == "<p>mine</p>"


def test_the_library_comes_with_its_licence_and_version():
    folder = ROOT / "resrepro" / "report" / "uplot"
    assert "(v1.6.32)" in (folder / "uPlot.iife.min.js").read_text(encoding="utf-8")[:100]
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "1.6.32" in (ROOT / "resrepro" / "report" / "page.html.j2").read_text(encoding="utf-8")


def test_the_committed_report_is_one_of_ours_and_small_enough():
    text = (ROOT / "docs" / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT
    every, left_out = (
        {*exhibits.tables(), *exhibits.figures()},
        {"demo", *(f"table{n}-folder" for n in "345")},
    )
    assert {element.attributes["id"] for element in Page(text).all("section")} >= every - left_out
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users)/", text)
