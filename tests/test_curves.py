"""Figures from run records: what is drawn, what is left out, and that it can be read."""

import csv
import itertools
import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from conftest import FIRST_IMAGES, runs_in, write_run, write_test_eval
from pictures import line, words

from resrepro.errors import RecordError
from resrepro.figures import Style, draw_figure, plot
from resrepro.figures.curves import Sheet, make_sheet, palette_named
from resrepro.figures.drawing import draw_sheet, spread
from resrepro.paper import curves
from resrepro.spec import catalogue

Points = list[tuple[int, float, float]]


def steps(length: int, last: float, start: float = 10.0) -> Points:
    """Twelve samples that fall by `start` to `last` percent; training error a point above validation."""
    errors = [round(last + start * (1 - k / 12), 4) for k in range(1, 13)]
    return [(length * k // 12, round(error + 1, 4), error) for k, error in enumerate(errors, 1)]


def train(runs: Path, experiment: str, last: float, seed: int = 0, **options: Any) -> Path:
    """Write the record of a run that ends at this held-out error."""
    length = options.get("iterations", catalogue.find(experiment).spec().recipe.iterations)
    return write_run(runs, experiment, seed, curve=steps(length, last), **options)


def sheet_of(runs: Path, exhibit: str = "figure6", **options: Any) -> Sheet:
    return make_sheet(exhibit, runs_in(runs), **options)


def drawn(runs: Path, exhibit: str = "figure6", **options: Any) -> Any:
    return draw_sheet(sheet_of(runs, exhibit, **options))


def labels(axes: Any) -> set[str]:
    return {name for each in axes.lines if (name := str(each.get_label())).startswith(("ours", "paper"))}


def read_off(exhibit: str, series: str, kind: str) -> list[tuple[float, float]]:
    """The paper's curve as it is packaged."""
    frame = curves(exhibit)
    own = frame[(frame["series"] == series) & (frame["kind"] == kind)]
    return sorted(zip(own["x"], own["value"], strict=True))


def test_lines_are_the_numbers_of_metrics_csv(tmp_path: Path) -> None:
    folder = train(tmp_path, "cifar10-plain56", 13.0)
    sheet = sheet_of(tmp_path)
    figure = draw_sheet(sheet)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    for kind, split in (("train", "train"), ("held_out", "test")):
        x, y = line(figure.axes[0], f"ours plain-56 {kind}")
        wanted = [row for row in rows if row["split"] == split]
        assert x == [int(row["iteration"]) / 1e4 for row in wanted]
        assert y == [float(row["top1_err"]) for row in wanted]
    assert sheet.notes == ()
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 6.4), (0, 6.4), (3.5, 6.4)]
    assert all(axes.get_ylim() == (0, 20) for axes in figure.axes)
    assert list(figure.axes[2].get_yticks()) == [0, 1, 5, 10, 20]
    assert figure.axes[0].get_xlabel() == "iter. (1e4)"
    assert "no runs yet" in [text.get_text() for text in figure.axes[1].texts]


def test_figure1_has_training_left_and_test_right(tmp_path: Path) -> None:
    train(tmp_path, "cifar10-plain20", 9.0)
    train(tmp_path, "cifar10-plain56", 13.0)
    left, right = drawn(tmp_path, "figure1").axes
    assert labels(left) == {"ours plain-20 train", "ours plain-56 train"}
    assert labels(right) == {"ours plain-20 held_out", "ours plain-56 held_out"}
    assert (left.get_ylabel(), right.get_ylabel()) == ("training error (%)", "test error (%)")
    assert {text.get_text() for text in right.texts} == {"20-layer", "56-layer"}
    assert all(line.get_linestyle() == "-" for line in (*left.lines, *right.lines))


def test_seeds_give_mean_and_sample_deviation_and_one_seed_no_band(tmp_path: Path) -> None:
    ends = (6.0, 6.5, 7.3)
    for seed, end in enumerate(ends):
        train(tmp_path, "cifar10-resnet110", end, seed)
        figure = drawn(tmp_path)
        assert any(axes.collections for axes in figure.axes) is (seed > 0)
    _, y = line(figure.axes[1], "ours ResNet-110 held_out")
    assert y[-1] == pytest.approx(sum(ends) / 3)
    [band] = [part for part in figure.axes[1].collections if part.get_label() == "band ResNet-110 held_out"]
    last = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(6.4)]
    mean, std = statistics.mean(ends), statistics.stdev(ends)
    assert (min(last), max(last)) == pytest.approx((mean - std, mean + std))
    assert "3 seeds per net" in words(figure)
    assert "n−1" in words(figure)


def test_shortened_validation_runs_are_said_to_be_that_and_the_papers_curves_are_scaled_to_them(
    tmp_path: Path,
) -> None:
    for net in ("plain20", "resnet20"):
        train(tmp_path, f"cifar10-{net}", 34.0, iterations=2000, split="45k5k", test_images=1000)
    figure = drawn(tmp_path, paper=True)
    assert line(figure.axes[1], "ours ResNet-20 held_out")[1][-1] == 34.0
    told = words(figure)
    assert "validation error (5,000 held-out training images)" in told
    assert "Shortened: 2,000 of the paper's 64,000 iterations, 1 seed per net, 45k/5k split" in told
    assert FIRST_IMAGES.format(1000) not in told  # no test error is drawn
    assert "theirs are test errors where ours are validation errors" in told
    assert figure.axes[1].get_xlim() == (0, 2000)
    assert figure.axes[2].get_xlim() == (pytest.approx(2000 * 3.5 / 6.4), 2000)
    assert figure.axes[1].get_ylim() == (0, 40)  # the paper's 0 to 20 would show nothing of it
    assert figure.axes[1].get_xlabel() == "iterations"
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    ours, theirs = (lines[f"{whose} plain-20 held_out"] for whose in ("ours", "paper"))
    wanted = [(pytest.approx(x / 6.4 * 2000), y) for x, y in read_off("figure6", "plain-20", "test")]
    assert [*zip(*theirs.get_data(), strict=True)] == wanted
    assert theirs.get_linewidth() < ours.get_linewidth()
    assert theirs.get_zorder() < ours.get_zorder()
    assert drawn(tmp_path, "figure1").axes[1].get_ylabel() == "validation error (%)"


def test_a_curve_on_a_part_of_the_test_set_is_told_whatever_was_measured_later(tmp_path: Path) -> None:
    folder = write_run(tmp_path, curve=[(32_000, 5.0, 9.0), (64_000, 1.0, 8.5)], test_images=1000)
    write_test_eval(folder, 8.75)
    told = words(drawn(tmp_path))
    assert FIRST_IMAGES.format(1000) in told
    assert "measured after training" not in told  # no curve shows that


def test_the_paper_alone(tmp_path: Path) -> None:
    figure = drawn(tmp_path, paper=True)
    assert len(labels(figure.axes[0])) == 8
    assert len(labels(figure.axes[2])) == 4
    assert "no runs of ours" in words(figure)
    figure = drawn(tmp_path, "figure4", paper=True)
    assert [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes] == [((0, 55), (20, 63))] * 2
    x, y = line(figure.axes[1], "paper ResNet-34 held_out")
    assert list(zip(x, y, strict=True)) == read_off("figure4", "ResNet-34", "val-centre-crop")
    with pytest.raises(RecordError, match=r"resrepro train --depth 56 --plain`.*--paper"):
        plot("figure6", tmp_path / "none", tmp_path)
    with pytest.raises(RecordError, match="--dataset digits") as caught:
        plot("demo", tmp_path / "none", tmp_path, paper=True)
    assert "--paper" not in str(caught.value)


def test_two_protocols_are_not_mixed_and_another_warm_up_is_another_group(tmp_path: Path) -> None:
    for name in ("cifar10-plain20", "cifar10-resnet110"):
        train(tmp_path, name, 15.0, iterations=2000)
    train(tmp_path, "cifar10-resnet110", 9.0, 1, iterations=2000, warmup_lr=0.0)
    train(tmp_path, "cifar10-plain32", 10.0)
    train(tmp_path, "cifar10-resnet20", 11.0, iterations=4000)
    sheet = sheet_of(tmp_path)
    seeds = {net: [run.seed for run in group.runs] for net, group in sheet.groups.items()}
    assert seeds == {"plain-20": [0], "ResNet-110": [0]}
    assert {curve.net for curve in sheet.curves} == seeds.keys()
    other = "Not drawn, another protocol: CIFAR-10, {} iterations (1 net, 1 run)."
    assert sheet.notes[:2] == (other.format("64,000"), other.format("4,000 of 64,000"))
    assert sheet.notes[2].endswith("warmup_lr=0 seed 1.")


def test_plain110_does_not_widen_the_frame(tmp_path: Path) -> None:
    train(tmp_path, "cifar10-plain20", 9.0)
    train(tmp_path, "cifar10-plain110", 61.0)
    figure = drawn(tmp_path)
    assert figure.axes[0].get_ylim() == (0, 20)
    assert "plain-110 ↑" in [text.get_text() for text in figure.axes[0].texts]
    assert "plain-110 ends above the frame, at 61.0 % (test)" in words(figure)


@pytest.mark.parametrize(("palette", "width"), [("paper", None), ("safe", 6.875), ("safe", 3.25)])
@pytest.mark.parametrize("exhibit", ["figure4", "figure4-folder", "figure6"])
def test_nothing_overlaps_or_is_cut_off(tmp_path: Path, exhibit: str, palette: str, width: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for depth in (20, 32, 44, 56, 110):
        train(tmp_path, f"cifar10-plain{depth}", 9.0)
        train(tmp_path, f"cifar10-resnet{depth}", 0.1 if depth > 44 else 9.0)
    for net, seed in itertools.product(("plain18", "plain34", "resnet18", "resnet34"), (0, 1)):
        write_run(tmp_path, f"folder-{net}", seed, curve=steps(720, 50.0 + seed, 35.0), iterations=720)
    figure = draw_sheet(sheet_of(tmp_path, exhibit, paper=True, palette=palette), Style(width=width))
    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = [*figure.texts, *figure.legends, *(text for axes in figure.axes for text in axes.texts)]
    for box in (artist.get_window_extent(renderer) for artist in inside):
        assert box.x0 >= 0 <= box.y0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    apart = [(artist.get_tightbbox(renderer) for artist in (*figure.axes, *figure.legends, *figure.texts))]
    for axes in figure.axes:
        for texts in (axes.texts, axes.get_xticklabels(), axes.get_yticklabels()):
            apart.append(text.get_window_extent(renderer) for text in texts)
        assert all(text.get_position()[0] > 1 for text in axes.texts if "-" in text.get_text())
    assert not any(a.overlaps(b) for boxes in apart for a, b in itertools.combinations(boxes, 2))


def test_five_nets_within_a_point_are_named_in_their_order_by_lines_that_do_not_cross(tmp_path: Path) -> None:
    ends = {20: 0.9, 32: 0.5, 44: 1.3, 56: 1.1, 110: 0.7}
    for depth, end in ends.items():
        train(tmp_path, f"cifar10-resnet{depth}", end)
    axes = drawn(tmp_path).axes[1]
    named = sorted(axes.texts, key=lambda text: text.get_position()[1])
    assert [text.get_text() for text in named] == [f"ResNet-{depth}" for depth in sorted(ends, key=ends.get)]
    leaders = [line.get_ydata() for line in axes.lines if line.get_label() == "leader"]
    for low, high in itertools.pairwise(sorted(leaders, key=lambda y: y[0])):
        assert all(a < b for a, b in zip(low, high, strict=True))


# --- Figure 4 ---------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """The four nets of Figure 4, trained to their end."""
    for net, end in {"plain18": 31.5, "plain34": 32.5, "resnet18": 31.0, "resnet34": 28.5}.items():
        write_run(tmp_path, f"imagenet-{net}", curve=steps(600_000, end))
    return tmp_path


def test_figure4_is_framed_and_coloured_as_the_papers(four: Path) -> None:
    sheet = sheet_of(four, "figure4", paper=True)
    figure = draw_sheet(sheet)
    assert sheet.notes == ()
    for axes, kind in zip(figure.axes, ("plain", "ResNet"), strict=True):
        assert axes.get_ylim() == (20, 63)
        assert list(axes.get_yticks()) == [20, 30, 40, 50, 60]
        assert axes.get_xlabel() == "iter. (1e4)"
        lines = {str(line.get_label()): line for line in axes.lines}
        assert labels(axes) == {
            f"{whose} {kind}-{depth} {part}"
            for whose in ("ours", "paper") for depth in (18, 34) for part in ("train", "held_out")
        }  # fmt: skip
        for depth, colour in ((18, "#00ffff"), (34, "#ff0000")):
            train, bold = (lines[f"ours {kind}-{depth} {part}"] for part in ("train", "held_out"))
            assert train.get_color() == bold.get_color() == colour
            assert train.get_linestyle() == bold.get_linestyle() == "-"
            assert train.get_linewidth() < bold.get_linewidth() / 2
    x, y = line(figure.axes[0], "ours plain-34 held_out")
    assert (x[-1], y[-1]) == (60, 32.5)
    assert line(figure.axes[0], "ours plain-34 train")[1][-1] == 33.5
    assert "validation error (centre crop)" in words(figure)
    assert "classes" not in words(figure)


@pytest.mark.parametrize(
    ("last", "start", "limits", "ticks"),
    [
        (40.0, 50.0, (40, 80), [40, 60, 80]), (61.0, 30.0, (60, 100), [60, 80, 100]),
        (15.0, 50.0, (0, 63), [0, 10, 20, 30, 40, 50, 60]), (15.0, 80.0, (0, 80), [0, 20, 40, 60, 80]),
        (30.0, 20.0, (20, 63), [20, 30, 40, 50, 60]),
    ],
)  # fmt: skip
def test_the_frame_of_figure4_follows_the_runs(
    tmp_path: Path, last: float, start: float, limits: tuple[int, int], ticks: list[int]
) -> None:
    write_run(tmp_path, "folder-resnet34", curve=steps(720, last, start), iterations=720)
    figure = drawn(tmp_path, "figure4-folder")
    for axes in figure.axes:
        assert axes.get_ylim() == limits
        assert list(axes.get_yticks()) == ticks
    [leader] = [line for line in figure.axes[1].lines if line.get_label() == "leader"]
    assert leader.get_ydata()[0] == pytest.approx((last - limits[0]) / (limits[1] - limits[0]))


def test_other_images_are_said_to_be_that_and_the_papers_curves_to_be_imagenets(tmp_path: Path) -> None:
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    for net in ("plain18", "plain34", "resnet18", "resnet34"):
        write_run(tmp_path, f"folder-{net}", curve=steps(720, 50.0), iterations=720, notices=(notice,))
    figure = drawn(tmp_path, "figure4-folder", paper=True)
    told = words(figure)
    assert "Shortened: 720 of the paper's 600,000 iterations" in told
    assert notice in told
    assert "a folder of other images instead of ImageNet" in told
    assert "Lower panels: the paper's curves of ImageNet's 1,000 classes, x scaled to this schedule" in told
    assert "theirs are" not in told  # both are validation errors
    ours, _, theirs, _ = figure.axes
    assert not [each for each in ours.lines if str(each.get_label()).startswith("paper")]
    assert line(theirs, "paper plain-18 held_out")[0][-1] == pytest.approx(55 / 60 * 720)
    assert (ours.get_ylim(), theirs.get_ylim()) == ((20, 63), (20, 63))
    assert (ours.get_title(), theirs.get_title()) == (
        "plain nets on tiny",
        "plain nets on ImageNet, the paper's",
    )


def test_figure4_shows_option_a_of_18_and_34_layers_alone(four: Path) -> None:
    for net in ("resnet34-b", "resnet34-c", "resnet50"):
        write_run(four, f"imagenet-{net}", curve=steps(600_000, 25.0))
    write_run(four, "imagenet-resnet18", 1, curve=[(5000, 90.0, 91.0)])
    write_run(four, "imagenet-plain34", 1, curve=[(5000, 90.0, 91.0)], status="diverged")
    sheet = sheet_of(four, "figure4")
    assert {net: [run.name for run in group.runs] for net, group in sheet.groups.items()} == {
        "plain-18": ["imagenet-plain18"], "plain-34": ["imagenet-plain34"],
        "ResNet-18": ["imagenet-resnet18"], "ResNet-34": ["imagenet-resnet34"],
    }  # fmt: skip
    unfinished, options = sheet.notes
    assert "imagenet-resnet18 seed 1 (partial at iteration 5,000)" in unfinished
    assert "imagenet-plain34 seed 1 (diverged at iteration 5,000)" in unfinished
    assert "imagenet-resnet34-b seed 0, imagenet-resnet34-c seed 0" in options


# --- files ------------------------------------------------------------------------------------------


def test_the_safe_palette_tells_nets_apart_by_marker(tmp_path: Path) -> None:
    for depth in (20, 32, 44, 56, 110):
        train(tmp_path, f"cifar10-resnet{depth}", 9.0)
    figure = drawn(tmp_path, palette="safe")
    bold = [line for line in figure.axes[1].lines if str(line.get_label()).endswith("held_out")]
    assert len({line.get_marker() for line in bold}) == len({line.get_color() for line in bold}) == 5


def test_pictures_are_of_two_forms_and_a_broken_record_is_warned_of(tmp_path: Path) -> None:
    train(tmp_path / "runs", "digits-plain20", 5.0)
    broken = train(tmp_path / "runs", "digits-plain56", 5.0)
    (broken / "metrics.csv").write_text("iteration\n")
    with pytest.warns(UserWarning, match="digits-plain56"):
        png, svg = plot("demo", [tmp_path / "runs"], tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")
    assert "dc:date" not in svg.read_text()


@pytest.mark.parametrize("exhibit", ["figure1", "figure3", "figure7"])
def test_the_users_matplotlib_settings_stay_out_and_stay(tmp_path: Path, exhibit: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 20, "svg.hashsalt": "mine"}):
        changed, _ = draw_figure(exhibit, [], tmp_path / "a", paper=True)
        assert matplotlib.rcParams["svg.hashsalt"] == "mine"
    plain, _ = draw_figure(exhibit, [], tmp_path / "b", paper=True)
    assert [path.read_bytes() for path in changed] == [path.read_bytes() for path in plain]


@pytest.mark.parametrize("exhibit", ["figure1", "figure3", "figure7"])
def test_a_figure_is_as_wide_as_asked_with_or_without_its_caption(
    tmp_path: Path, exhibit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(**style: Any) -> tuple[float, float]:
        draw_figure(exhibit, [], tmp_path, paper=True, style=Style(**style, formats=("svg",)))
        width, height = made.pop().get_size_inches()
        return float(width), float(height)

    made: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: made.append(figure))
    for width, inches in (("column", 3.25), ("4", 4.0), (9, 9.0)):
        assert size(width=width)[0] == pytest.approx(inches)
    assert size()[0] == size(caption=False)[0]
    assert size()[1] > size(caption=False)[1]


@pytest.mark.parametrize("backend", ["nowhere.inline", "matplotlib_inline.backend_inline"])  # a notebook's
def test_drawing_needs_neither_torch_nor_pyplot_nor_what_the_user_has_set_up(
    tmp_path: Path, backend: str
) -> None:
    (tmp_path / "matplotlibrc").write_text("font.family: nowhere\nlines.linewidth: 9\n")
    odd = {"MPLBACKEND": f"module://{backend}", "MPLCONFIGDIR": str(tmp_path), "LC_ALL": "xx_YY"}
    code = (
        "import sys, resrepro.figures as e; assert not {'matplotlib', 'pandas'} & set(sys.modules); "
        "e.plot('figure1', 'none', 'out', paper=True, formats=['svg', 'pdf']); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    environment = os.environ | odd | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, check=True)
    svg, pdf = plot("figure1", tmp_path, tmp_path, paper=True, formats=["svg", "pdf"])
    assert svg.read_bytes() == (tmp_path / "out" / svg.name).read_bytes()
    assert pdf.read_bytes() == (tmp_path / "out" / pdf.name).read_bytes()
    assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("name", "text"), [("paper", "text"), ("safe", "colours")])
def test_names_can_be_read_on_white_the_safe_ones_in_the_colours_of_their_lines(name: str, text: str) -> None:
    palette = palette_named(name)
    others = palette["other_text" if text == "text" else "others"]
    assert ("text" in palette) is (text == "text")
    assert palette[text].keys() == palette["colours"].keys()
    assert len(others) == len(palette["others"])
    for colour in (*palette[text].values(), *others):
        parts = [part / 255 for part in bytes.fromhex(colour[1:])]
        linear = [((part + 0.055) / 1.055) ** 2.4 if part > 0.04 else part / 12.92 for part in parts]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (light + 0.05) >= 4.5  # WCAG 2


def test_labels_move_no_further_than_they_must() -> None:
    assert spread([5.0, 50.0], 10, 100) == [5.0, 50.0]
    assert spread([52.0, 50.0], 10, 100) == [56.0, 46.0]
    assert spread([1.0, 0.0, 0.0], 10, 100) == [20.0, 0.0, 10.0]
    assert spread([100.0, 100.0], 10, 100) == [90.0, 100.0]
    assert spread([], 10, 100) == []
