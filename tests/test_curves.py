"""Figures from run records: what is drawn, what is left out, and that it can be read."""

import csv
import itertools
import json
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest import FIRST_IMAGES, write_run, write_test_eval

from resrepro.errors import RecordError, UsageError
from resrepro.figures import draw_figure, plot
from resrepro.figures.curves import exhibits, make_sheet, select
from resrepro.figures.drawing import contrast, draw_sheet, readable, spread, text_width, wrap
from resrepro.records import Run
from resrepro.records.collection import collect
from resrepro.records.reading import METRICS_COLUMNS
from resrepro.spec import catalogue

Samples = Sequence[tuple[int, Mapping[str, float]]]


def make_figure(exhibit: str, runs: Sequence[Run], **options: Any) -> tuple[Any, tuple[str, ...]]:
    """The figure as a matplotlib object, and sentences on what was left out."""
    sheet, notes = make_sheet(exhibit, runs, **options)
    return draw_sheet(sheet), notes


def make_run(
    runs: Path,
    experiment: str,
    seed: int,
    samples: Samples,
    *,
    headline: str = "test",
    status: str | None = None,
    notices: Sequence[str] = (),
    shortcut: str | None = None,
    **settings: Any,
) -> Path:
    """Write the record of a run with these errors."""
    spec = catalogue.derive(catalogue.find(experiment), shortcut, **settings)
    folder = runs / spec.name / f"seed{seed}"
    folder.mkdir(parents=True)
    images = {"train": 45000, "val": 5000} if spec.recipe.split == "45k5k" else {"train": 50000}
    images["test"] = 10000
    env = {"mode": "default", "data": {"images": images, "sha256": {"train": "of all runs here"}}}
    lines = [",".join(METRICS_COLUMNS)]
    for iteration, errors in samples:
        lines += [f"{iteration},1,{split},1.0,{error},1.0,0.1,1,1" for split, error in errors.items()]
    full = catalogue.find(experiment).spec().recipe.iterations
    result = {
        "status": status or ("shortened" if spec.recipe.iterations < full else "complete"),
        "iteration": samples[-1][0],
        "iterations": spec.recipe.iterations,
        "headline": headline,
        "last": {split: {"top1_err": error, "top5_err": 1.0} for split, error in samples[-1][1].items()},
        "best": None,
        "seconds": 1.0,
        "departures": catalogue.departures(spec),
        "notices": list(notices),
    }
    head = {"name": spec.name, "digest": spec.digest, "seed": seed, "spec": spec.to_json()}
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for name, content in (("spec", head), ("env", env), ("result", result)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def falling(length: int, last: float, held_out: str = "test") -> list[tuple[int, dict[str, float]]]:
    """Eight samples that fall to `last` percent; training error half a point below."""
    parts = [(length * k // 8, round(last + (8 - k) * 1.5, 4)) for k in range(1, 9)]
    return [(iteration, {"train": max(error - 0.5, 0), held_out: error}) for iteration, error in parts]


def read(runs: Path) -> tuple[Run, ...]:
    collection = collect([runs])
    assert not collection.broken
    return collection.runs


def line(axes: Any, label: str) -> tuple[list[float], list[float]]:
    """x and y of the one line with this label."""
    [found] = [line for line in axes.lines if line.get_label() == label]
    return [float(x) for x in found.get_xdata()], [float(y) for y in found.get_ydata()]


def labels(axes: Any) -> set[str]:
    drawn = {str(line.get_label()) for line in axes.lines}
    return {label for label in drawn if label.startswith(("ours", "paper"))}


def words(figure: Any) -> str:
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join([*legend, *(text.get_text() for text in reversed(figure.texts))])


def test_lines_are_the_numbers_of_metrics_csv(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "cifar10-plain56", 0, falling(64000, 13.0))
    figure, notes = make_figure("figure6", read(tmp_path))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for kind, split in (("train", "train"), ("held_out", "test")):
        x, y = line(figure.axes[0], f"ours plain-56 {kind}")
        wanted = [row for row in rows if row["split"] == split]
        assert x == [int(row["iteration"]) / 1e4 for row in wanted]
        assert y == [float(row["top1_err"]) for row in wanted]
    assert notes == ()
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 6.4), (0, 6.4), (3.5, 6.4)]
    assert all(axes.get_ylim() == (0, 20) for axes in figure.axes)
    assert list(figure.axes[2].get_yticks()) == [0, 1, 5, 10, 20]
    assert figure.axes[0].get_xlabel() == "iter. (1e4)"
    assert "no runs yet" in [text.get_text() for text in figure.axes[1].texts]


def test_figure1_has_training_left_and_test_right(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-plain20", 0, falling(64000, 9.0))
    make_run(tmp_path, "cifar10-plain56", 0, falling(64000, 13.0))
    left, right = make_figure("figure1", read(tmp_path))[0].axes
    assert labels(left) == {"ours plain-20 train", "ours plain-56 train"}
    assert labels(right) == {"ours plain-20 held_out", "ours plain-56 held_out"}
    assert (left.get_ylabel(), right.get_ylabel()) == ("training error (%)", "test error (%)")
    assert {text.get_text() for text in right.texts} == {"20-layer", "56-layer"}
    assert all(line.get_linestyle() == "-" for line in (*left.lines, *right.lines))


def test_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    ends = (6.0, 6.5, 7.3)
    for seed, end in enumerate(ends):
        make_run(tmp_path, "cifar10-resnet110", seed, falling(64000, end))
    figure, _ = make_figure("figure6", read(tmp_path))
    _, y = line(figure.axes[1], "ours ResNet-110 held_out")
    assert y[-1] == pytest.approx(sum(ends) / 3)
    [band] = [part for part in figure.axes[1].collections if part.get_label() == "band ResNet-110 held_out"]
    last = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(6.4)]
    assert max(last) == pytest.approx(statistics.mean(ends) + statistics.stdev(ends))
    assert min(last) == pytest.approx(statistics.mean(ends) - statistics.stdev(ends))
    assert "3 seeds per net" in words(figure)
    assert "n−1" in words(figure)


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-resnet110", 0, falling(64000, 6.0))
    figure, _ = make_figure("figure6", read(tmp_path))
    assert not any(axes.collections for axes in figure.axes)


def test_shortened_validation_runs_are_said_to_be_that(tmp_path: Path) -> None:
    notice = "the test set holds only the first 1,000 of the 10,000 test images"
    samples = [
        (iteration, errors | {"test": 99.0}) for iteration, errors in falling(2000, 34.0, held_out="val")
    ]
    make_run(
        tmp_path, "cifar10-resnet20", 0, samples, headline="val", notices=[notice],
        iterations=2000, split="45k5k",
    )  # fmt: skip
    figure, _ = make_figure("figure6", read(tmp_path), paper=True)
    assert line(figure.axes[1], "ours ResNet-20 held_out")[1][-1] == 34.0
    told = words(figure)
    assert "validation error (5,000 held-out training images)" in told
    assert "Shortened: 2,000 of the paper's 64,000 iterations, 1 seed per net, 45k/5k split" in told
    assert notice not in told  # no test error is drawn
    assert "theirs are test errors where ours are validation errors" in told
    assert figure.axes[1].get_xlim() == (0, 2000)
    assert figure.axes[2].get_xlim() == (pytest.approx(2000 * 3.5 / 6.4), 2000)
    assert figure.axes[1].get_ylim() == (0, 40)  # the paper's 0 to 20 would show nothing of it
    assert figure.axes[1].get_xlabel() == "iterations"
    figure, _ = make_figure("figure1", _as_plain20(tmp_path))
    assert figure.axes[1].get_ylabel() == "validation error (%)"


def test_a_curve_on_a_part_of_the_test_set_is_told_whatever_was_measured_later(tmp_path: Path) -> None:
    folder = write_run(tmp_path, curve=[(32_000, 5.0, 9.0), (64_000, 1.0, 8.5)], test_images=1000)
    write_test_eval(folder, 8.75)
    told = words(make_figure("figure6", read(tmp_path))[0])
    assert FIRST_IMAGES.format(1000) in told
    assert "measured after training" not in told  # no curve shows that


def _as_plain20(runs: Path) -> tuple[Run, ...]:
    samples = falling(2000, 34.0, held_out="val")
    make_run(runs, "cifar10-plain20", 0, samples, headline="val", iterations=2000, split="45k5k")
    return read(runs)


def test_paper_curves_are_scaled_to_the_schedule(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-plain56", 0, falling(2000, 15.0), iterations=2000)
    figure, _ = make_figure("figure6", read(tmp_path), paper=True)
    text = resources.files("resrepro.paper").joinpath("curves.csv").read_text()
    wanted = [
        (float(row["x"]) / 6.4 * 2000, float(row["value"]))
        for row in csv.DictReader(text.splitlines())
        if (row["exhibit"], row["series"], row["kind"]) == ("figure6", "plain-56", "test")
    ]
    x, y = line(figure.axes[0], "paper plain-56 held_out")
    assert x == pytest.approx([x for x, _ in sorted(wanted)])
    assert y == [y for _, y in sorted(wanted)]
    [ours] = [line for line in figure.axes[0].lines if line.get_label() == "ours plain-56 held_out"]
    [theirs] = [line for line in figure.axes[0].lines if line.get_label() == "paper plain-56 held_out"]
    assert theirs.get_linewidth() < ours.get_linewidth()
    assert theirs.get_zorder() < ours.get_zorder()


def test_the_paper_alone(tmp_path: Path) -> None:
    figure, _ = make_figure("figure6", [], paper=True)
    assert len(labels(figure.axes[0])) == 8
    assert len(labels(figure.axes[2])) == 4
    assert "no runs of ours" in words(figure)
    with pytest.raises(RecordError, match=r"resrepro train --depth 56 --plain`.*--paper"):
        plot("figure6", tmp_path / "none", tmp_path)
    with pytest.raises(RecordError, match="--dataset digits") as caught:
        plot("demo", tmp_path / "none", tmp_path, paper=True)
    assert "--paper" not in str(caught.value)


def test_unknown_names_are_told_in_one_sentence() -> None:
    with pytest.raises(
        UsageError, match=r"^no exhibit 'figure9': there are figure1, figure4, figure6, .*demo\.$"
    ):
        make_figure("figure9", [])
    with pytest.raises(UsageError, match=r"^no palette 'pale': there are paper, safe\.$"):
        plot("figure6", palette="pale")
    assert exhibits() == (
        "figure1", "figure4", "figure6", "figure1-digits", "figure6-digits", "demo",
    )  # fmt: skip


def test_two_protocols_are_not_mixed(tmp_path: Path) -> None:
    for name in ("cifar10-plain20", "cifar10-plain56"):
        make_run(tmp_path, name, 0, falling(2000, 15.0), iterations=2000)
    make_run(tmp_path, "cifar10-resnet20", 0, falling(4000, 11.0), iterations=4000)
    figure, notes = make_figure("figure6", read(tmp_path))
    assert labels(figure.axes[0]) == {f"ours plain-{d} {k}" for d in (20, 56) for k in ("train", "held_out")}
    assert labels(figure.axes[1]) == set()
    assert len(notes) == 1
    other = "Not drawn, another protocol: CIFAR-10, {} iterations (1 net, 1 run)."
    assert notes == (other.format("4,000 of 64,000"),)
    # One net of full length has nothing to stand beside; two come first, though more are shortened.
    make_run(tmp_path, "cifar10-plain32", 0, falling(64000, 10.0))
    chosen, notes = select("figure6", read(tmp_path))
    assert chosen.keys() == {"plain-20", "plain-56"}
    assert notes == (other.format("64,000"), other.format("4,000 of 64,000"))
    make_run(tmp_path, "cifar10-plain44", 0, falling(64000, 10.0))
    make_run(tmp_path, "cifar10-plain32", 0, falling(2000, 10.0), iterations=2000)
    assert select("figure6", read(tmp_path))[0].keys() == {"plain-32", "plain-44"}


def test_more_seeds_come_before_fewer_changes(tmp_path: Path) -> None:
    changed = {"iterations": 2000, "precision": "bf16"}
    for name in ("cifar10-plain20", "cifar10-plain56"):
        make_run(tmp_path, name, 0, falling(2000, 15.0), iterations=2000)
        make_run(tmp_path, name, 0, falling(2000, 15.0), **changed)
    chosen = select("figure1", read(tmp_path))[0]
    assert {run.name.count("+") for group in chosen.values() for run in group.runs} == {1}
    make_run(tmp_path, "cifar10-plain20", 1, falling(2000, 15.0), **changed)
    chosen = select("figure1", read(tmp_path))[0]
    assert [len(group.runs) for group in chosen.values()] == [2, 1]


def test_incomplete_data_are_not_paper_exact(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-plain32", 0, falling(64000, 10.0), notices=["only some images"])
    for name in ("cifar10-plain20", "cifar10-plain56"):
        make_run(tmp_path, name, 0, falling(2000, 15.0), iterations=2000)
    assert select("figure6", read(tmp_path))[0].keys() == {"plain-20", "plain-56"}


def test_a_warm_up_is_no_other_protocol_but_another_group(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-plain20", 0, falling(64000, 10.0))
    make_run(tmp_path, "cifar10-resnet110", 0, falling(64000, 6.0))
    make_run(tmp_path, "cifar10-resnet110", 1, falling(64000, 9.0), warmup_lr=0.0)
    groups, notes = select("figure6", read(tmp_path))
    assert {net: [run.seed for run in group.runs] for net, group in groups.items()} == {
        "plain-20": [0],
        "ResNet-110": [0],
    }
    assert "warmup_lr=0 seed 1" in notes[0]


def test_unfinished_runs_and_other_shortcuts_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-resnet20", 0, falling(64000, 9.0))
    make_run(tmp_path, "cifar10-resnet32", 0, falling(32000, 9.0), status="partial")
    make_run(tmp_path, "cifar10-resnet44", 0, falling(32000, 9.0), status="diverged")
    make_run(tmp_path, "cifar10-resnet56", 0, falling(64000, 7.0), shortcut="B")
    cells, notes = select("figure6", read(tmp_path))
    assert cells.keys() == {"ResNet-20"}
    assert "cifar10-resnet32 seed 0 (partial at iteration 32,000)" in notes[0]
    assert "cifar10-resnet44 seed 0 (diverged" in notes[0]
    assert "cifar10-resnet56+shortcut=B seed 0" in notes[1]


def test_plain110_does_not_widen_the_frame(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-plain20", 0, falling(64000, 9.0))
    make_run(tmp_path, "cifar10-plain110", 0, falling(64000, 61.0))
    figure, _ = make_figure("figure6", read(tmp_path))
    assert figure.axes[0].get_ylim() == (0, 20)
    assert "plain-110 ↑" in [text.get_text() for text in figure.axes[0].texts]
    assert "plain-110 ends above the frame, at 61.0 % (test)" in words(figure)


def test_the_demo_draws_its_own_nets_alone(tmp_path: Path) -> None:
    for name in ("digits-plain20", "digits-plain32", "digits-resnet56", "cifar10-plain56"):
        length = 240 if name.startswith("digits") else 64000
        make_run(tmp_path, name, 0, falling(length, 3.0))
    plain, residual = make_figure("demo", read(tmp_path))[0].axes
    assert {text.get_text() for text in plain.texts} == {"plain-20"}
    assert {text.get_text() for text in residual.texts} == {"ResNet-56"}
    assert plain.get_ylim() == residual.get_ylim() == (0, 100)


@pytest.mark.parametrize("palette", ["paper", "safe"])
def test_nothing_overlaps_and_nothing_is_cut_off(tmp_path: Path, palette: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for depth in (20, 32, 44, 56, 110):
        make_run(tmp_path, f"cifar10-plain{depth}", 0, falling(64000, 9.0))
        make_run(tmp_path, f"cifar10-resnet{depth}", 0, falling(64000, 0.1 if depth > 44 else 9.0))
    figure, _ = make_figure("figure6", read(tmp_path), paper=True, palette=palette)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
        assert all(text.get_position()[0] > 1 for text in axes.texts if "-" in text.get_text())
    every = [*figure.texts, *figure.legends, *(text for axes in figure.axes for text in axes.texts)]
    for artist in every:
        box = artist.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for axes, following in zip(figure.axes, figure.axes[1:], strict=False):
        right = max(text.get_window_extent(renderer).x1 for text in axes.texts)
        assert right < following.get_tightbbox(renderer, for_layout_only=True).x0


# --- Figure 4 ---------------------------------------------------------------------------------------


def steps(length: int, last: float, start: float = 10.0) -> list[tuple[int, float, float]]:
    """Twelve samples that fall by `start` to `last` percent; training error a point above validation."""
    return [
        (length * k // 12, round(last + 1 + start * (1 - k / 12), 4), round(last + start * (1 - k / 12), 4))
        for k in range(1, 13)
    ]


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """The four nets of Figure 4, trained to their end."""
    ends = {"plain18": 31.5, "plain34": 32.5, "resnet18": 31.0, "resnet34": 28.5}
    for net, end in ends.items():
        write_run(tmp_path, f"imagenet-{net}", curve=steps(600_000, end))
    return tmp_path


def test_figure4_is_framed_and_coloured_as_the_papers(four: Path) -> None:
    figure, notes = make_figure("figure4", read(four), paper=True)
    assert notes == ()
    for axes, kind in zip(figure.axes, ("plain", "ResNet"), strict=True):
        assert axes.get_ylim() == (20, 63)
        assert list(axes.get_yticks()) == [20, 30, 40, 50, 60]
        assert axes.get_xlabel() == "iter. (1e4)"
        assert labels(axes) == {
            f"{whose} {kind}-{depth} {part}"
            for whose in ("ours", "paper") for depth in (18, 34) for part in ("train", "held_out")
        }  # fmt: skip
        lines = {str(line.get_label()): line for line in axes.lines}
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


def test_the_papers_figure4_alone_is_drawn_to_its_end(tmp_path: Path) -> None:
    figure, _ = make_figure("figure4", [], paper=True)
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 55), (0, 55)]
    assert [axes.get_ylim() for axes in figure.axes] == [(20, 63), (20, 63)]
    text = resources.files("resrepro.paper").joinpath("curves.csv").read_text()
    wanted = sorted(
        (float(row["x"]), float(row["value"]))
        for row in csv.DictReader(text.splitlines())
        if (row["exhibit"], row["series"], row["kind"]) == ("figure4", "ResNet-34", "val-centre-crop")
    )
    x, y = line(figure.axes[1], "paper ResNet-34 held_out")
    assert list(zip(x, y, strict=True)) == wanted
    assert "±0.06" in words(figure)
    with pytest.raises(RecordError, match=r"--dataset imagenet --depth 34 --plain --data DIR`.*--paper"):
        plot("figure4", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("last", "start", "limits", "ticks"),
    [
        (40.0, 50.0, (20, 80), [20, 40, 60, 80]),
        (61.0, 30.0, (20, 100), [20, 40, 60, 80, 100]),
        (15.0, 50.0, (0, 63), [0, 10, 20, 30, 40, 50, 60]),
        (15.0, 80.0, (0, 80), [0, 20, 40, 60, 80]),
        (25.0, 60.0, (20, 80), [20, 40, 60, 80]),
    ],
)
def test_the_frame_of_figure4_is_higher_or_lower_where_runs_need_it(
    tmp_path: Path, last: float, start: float, limits: tuple[int, int], ticks: list[int]
) -> None:
    write_run(tmp_path, "folder-resnet34", curve=steps(720, last, start), iterations=720)
    figure, _ = make_figure("figure4", read(tmp_path), paper=True)
    for axes in figure.axes:
        assert axes.get_ylim() == limits
        assert list(axes.get_yticks()) == ticks
    [leader] = [line for line in figure.axes[1].lines if line.get_label() == "leader" and _is_ours(line)]
    end = (last - limits[0]) / (limits[1] - limits[0])
    assert leader.get_ydata()[0] == pytest.approx(end)


def _is_ours(leader: Any) -> bool:
    return bool(leader.get_color() == readable("#ff0000"))


def test_other_images_are_said_to_be_that_and_the_papers_curves_to_be_imagenets(tmp_path: Path) -> None:
    for net in ("plain18", "plain34", "resnet18", "resnet34"):
        write_run(tmp_path, f"folder-{net}", curve=steps(720, 50.0), iterations=720)
    figure, _ = make_figure("figure4", read(tmp_path), paper=True)
    told = words(figure)
    assert "Shortened: 720 of the paper's 600,000 iterations" in told
    assert "10 classes, 5,000 training and 500 validation images" in told
    assert "a folder of other images instead of ImageNet" in told
    assert "the paper's curves of ImageNet's 1,000 classes, x scaled to this schedule" in told
    assert "theirs are" not in told  # both are validation errors
    assert figure.axes[0].get_xlabel() == "iterations"
    assert line(figure.axes[0], "paper plain-18 held_out")[0][-1] == pytest.approx(55 / 60 * 720)


def test_what_a_notice_says_of_the_images_is_not_said_twice(tmp_path: Path) -> None:
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    write_run(tmp_path, "folder-plain18", curve=steps(720, 50.0), iterations=720, notices=(notice,))
    told = words(make_figure("figure4", read(tmp_path), paper=True)[0])
    assert notice in told
    assert told.count("10 classes") == 1
    assert "ImageNet's 1,000 classes" in told


def test_runs_on_imagenet_come_before_those_on_other_images(tmp_path: Path) -> None:
    for net in ("plain18", "plain34", "resnet18"):
        write_run(tmp_path, f"folder-{net}", curve=steps(720, 50.0), iterations=720)
    assert select("figure4", read(tmp_path))[0].keys() == {"plain-18", "plain-34", "ResNet-18"}
    write_run(tmp_path, "imagenet-resnet18", curve=steps(360, 70.0), iterations=360)
    groups, notes = select("figure4", read(tmp_path))
    assert {net: group.first.name for net, group in groups.items()} == {
        "ResNet-18": "imagenet-resnet18+iterations=360"
    }
    assert notes == (
        "Not drawn, another protocol: folder of images, 720 of 600,000 iterations (3 nets, 3 runs).",
    )


def test_figure4_shows_option_a_of_18_and_34_layers_alone(four: Path) -> None:
    for net in ("resnet34-b", "resnet34-c", "resnet50"):
        write_run(four, f"imagenet-{net}", curve=steps(600_000, 25.0))
    write_run(four, "imagenet-resnet18", 1, curve=[(5000, 90.0, 91.0)])
    groups, notes = select("figure4", read(four))
    assert {net: [run.name for run in group.runs] for net, group in groups.items()} == {
        "plain-18": ["imagenet-plain18"], "plain-34": ["imagenet-plain34"],
        "ResNet-18": ["imagenet-resnet18"], "ResNet-34": ["imagenet-resnet34"],
    }  # fmt: skip
    assert "imagenet-resnet18 seed 1 (partial at iteration 5,000)" in notes[0]
    assert "imagenet-resnet34-b seed 0, imagenet-resnet34-c seed 0" in notes[1]
    assert len(notes) == 2


@pytest.mark.parametrize("palette", ["paper", "safe"])
def test_nothing_of_figure4_is_cut_off(tmp_path: Path, palette: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for net, seed in itertools.product(("plain18", "plain34", "resnet18", "resnet34"), (0, 1)):
        write_run(tmp_path, f"folder-{net}", seed, curve=steps(720, 50.0 + seed, 35.0), iterations=720)
    figure, _ = make_figure("figure4", read(tmp_path), paper=True, palette=palette)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for artist in [*figure.texts, *figure.legends, *(text for axes in figure.axes for text in axes.texts)]:
        box = artist.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_the_safe_palette_tells_nets_apart_by_marker(tmp_path: Path) -> None:
    for depth in (20, 32, 44, 56, 110):
        make_run(tmp_path, f"cifar10-resnet{depth}", 0, falling(64000, 9.0))
    figure, _ = make_figure("figure6", read(tmp_path), palette="safe")
    bold = [line for line in figure.axes[1].lines if str(line.get_label()).endswith("held_out")]
    assert len({line.get_marker() for line in bold}) == len({line.get_color() for line in bold}) == 5


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "runs", "digits-plain20", seed, falling(240, 5.0 + seed))
    first = plot("demo", tmp_path / "runs", tmp_path / "a")
    again = draw_figure("demo", read(tmp_path / "runs"), tmp_path / "b")
    assert [path.name for path in first] == ["demo.png", "demo.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again.paths]
    assert ET.fromstring(first[1].read_text()).tag.endswith("svg")
    assert "dc:date" not in first[1].read_text()


def test_a_broken_record_is_warned_of(tmp_path: Path) -> None:
    make_run(tmp_path, "digits-plain20", 0, falling(240, 5.0))
    broken = make_run(tmp_path, "digits-plain56", 0, falling(240, 5.0))
    (broken / "metrics.csv").write_text("iteration\n")
    with pytest.warns(UserWarning, match="digits-plain56"):
        paths = plot("demo", [tmp_path], tmp_path / "figures")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_the_users_matplotlib_settings_stay_out_and_stay(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.hashsalt": "mine"}):
        changed = draw_figure("figure1", [], tmp_path / "a", paper=True)
        assert matplotlib.rcParams["svg.hashsalt"] == "mine"
    plain = draw_figure("figure1", [], tmp_path / "b", paper=True)
    assert [path.read_bytes() for path in changed.paths] == [path.read_bytes() for path in plain.paths]


def test_drawing_needs_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, resrepro.figures as e; assert not {'matplotlib', 'pandas'} & set(sys.modules); "
        f"e.plot('figure1', {str(tmp_path)!r}, {str(tmp_path)!r}, paper=True); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_can_be_read_on_white() -> None:
    for colour in ("#bfbf00", "#00ffff", "#00ff00", "#ff0000", "#000000", "#ff00ff", "#56b4e9", "#cc79a7"):
        assert contrast(readable(colour)) >= 4.5
    assert contrast("#ffffff") == pytest.approx(1)
    assert contrast("#000000") == pytest.approx(21)
    assert readable("#000000") == "#000000"


def test_labels_move_no_further_than_they_must() -> None:
    assert spread([5.0, 50.0], 10, 0, 100) == [5.0, 50.0]
    assert spread([52.0, 50.0], 10, 0, 100) == [56.0, 46.0]
    assert spread([1.0, 0.0, 0.0], 10, 0, 100) == [20.0, 0.0, 10.0]
    assert spread([100.0, 100.0], 10, 0, 100) == [90.0, 100.0]
    assert spread([], 10, 0, 100) == []


def test_wrapped_text_fits_and_loses_no_word() -> None:
    text = "trained on 45,000 images and validated on the last 5,000; " * 5
    lines = wrap(text, 4.0, 9)
    assert " ".join(lines).split() == text.split()
    assert len(lines) > 1
    assert all(text_width(line, 9) <= 4.0 for line in lines)
