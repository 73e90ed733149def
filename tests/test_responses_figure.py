"""Figure 7: what is drawn is what was measured, the paper's nets and frame, and what is left out is told."""

from pathlib import Path
from typing import Any

import pytest
from conftest import runs_in, write_layers, write_run
from pictures import line, words

from resrepro.errors import RecordError
from resrepro.figures.responses import build, make_figure
from resrepro.paper import curves

NETS = {"plain20": 19, "plain56": 55, "resnet20": 19, "resnet56": 55, "resnet110": 109}


def made(runs: Path, *nets: str, dataset: str = "cifar10", seeds: int = 1, **options: Any) -> dict[str, Any]:
    """Runs with made-up responses; what was written, by `plain-20 seed`."""
    found = {}
    for net in nets:
        for seed in range(seeds):
            folder = write_run(runs, f"{dataset}-{net}", seed, **options)
            std = [1 + 0.2 * seed + (37 * index % NETS[net]) / NETS[net] for index in range(NETS[net])]
            found[f"{net} {seed}"] = write_layers(folder, std)
    return found


def test_the_lines_are_the_measured_numbers_in_the_nets_order_and_sorted(tmp_path: Path) -> None:
    found = made(tmp_path, *NETS)
    figure, notes = make_figure(runs_in(tmp_path))
    top, bottom = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["plain-20", "plain-56", "ResNet-20", "ResNet-56", "ResNet-110"]
    for net, label in zip(NETS, names, strict=True):
        std = found[f"{net} 0"].std
        assert line(top, f"ours {label}") == (list(range(1, NETS[net] + 1)), pytest.approx(std))
        assert line(bottom, f"ours {label}")[1] == pytest.approx(sorted(std, reverse=True))
    assert notes == ()
    assert len(top.lines) == len(bottom.lines) == 5
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("std of the response",) * 2
    assert ("original" in top.get_xlabel(), "sorted" in bottom.get_xlabel()) == (True, True)
    styles = {each.get_label(): (each.get_linestyle(), each.get_color()) for each in top.lines}
    assert styles["ours plain-56"] == ("--", "#ff0000")
    assert styles["ours ResNet-56"] == ("-", "#ff0000")
    assert styles["ours ResNet-110"] == ("-", "#000000")


def test_several_seeds_give_their_mean_and_a_band(tmp_path: Path) -> None:
    found = made(tmp_path, "resnet20", seeds=3)
    figure, _ = make_figure(runs_in(tmp_path))
    mean = [sum(layer) / 3 for layer in zip(*(each.std for each in found.values()), strict=True)]
    assert line(figure.axes[0], "ours ResNet-20")[1] == pytest.approx(mean)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (min(band), max(band)) == pytest.approx((min(mean) - 0.2, max(mean) + 0.2))
    assert "bands: ± standard deviation" in words(figure)


def test_the_papers_curves_are_those_read_off_its_figure(tmp_path: Path) -> None:
    made(tmp_path, "resnet20")
    figure, _ = make_figure(runs_in(tmp_path), paper=True)
    theirs = curves("figure7")
    for axes, name in zip(figure.axes, ("top(original)", "bottom(sorted)"), strict=True):
        for label in ("plain-20", "plain-56", "ResNet-20", "ResNet-56", "ResNet-110"):
            rows = theirs[(theirs["panel"] == name) & (theirs["series"] == label)].sort_values("x")
            drawn = rows["x"].tolist(), pytest.approx(rows["value"].tolist(), abs=0.0015)
            assert line(axes, f"paper {label}") == drawn
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["ResNet-20", "plain-20, the paper's alone"]
    assert texts[-1] == "the paper's curves (pale)"
    assert "Pale lines: the paper's curves" in words(figure)


@pytest.mark.parametrize(
    ("std", "ends"),
    [(1.0, (0.5, 3.5)), (3.42, (0.5, 3.5)), (3.5, (0.5, 4.0)), (0.3, (0.0, 3.5)), (20.2, (0.5, 21.0))],
)
def test_the_frame_is_the_papers_or_leaves_room(tmp_path: Path, std: float, ends: tuple) -> None:
    write_layers(write_run(tmp_path), [std, *[1.0] * 18])
    figure, _ = make_figure(runs_in(tmp_path))
    assert all(axes.get_ylim() == ends for axes in figure.axes)
    assert all(axes.get_xlim() == (0, 110) for axes in figure.axes)
    assert ("own frame ends at 0.5 and 3.5" in words(figure)) is (ends != (0.5, 3.5))


def test_cifar_comes_before_longer_runs_on_the_digits_which_are_called_so(tmp_path: Path) -> None:
    made(tmp_path / "both", "plain20", "plain56", dataset="digits")
    made(tmp_path / "both", "plain20", iterations=2000, split="45k5k")
    figure, _ = make_figure(runs_in(tmp_path / "both"))
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["ours plain-20"]
    assert "Shortened: 2,000 of the paper's 64,000 iterations, 1 seed per net, 45k/5k split." in words(figure)
    assert "all 5,000 validation images" in words(figure)
    made(tmp_path / "digits", "plain20", dataset="digits")
    figure, _ = make_figure(runs_in(tmp_path / "digits"))
    assert figure.axes[0].get_title() == "scikit-learn's digits, not CIFAR-10"
    assert "all 359 test images" in words(figure)
    assert "dataset digits instead of CIFAR-10" in words(figure)


def test_nothing_to_draw_is_told_with_the_way_out(tmp_path: Path) -> None:
    write_run(tmp_path, "cifar10-resnet56")
    with pytest.raises(
        RecordError, match=r"`resrepro eval RUN --responses` measures it.*cifar10-resnet56 seed 0"
    ):
        make_figure(runs_in(tmp_path))
    figure, _ = make_figure(runs_in(tmp_path), paper=True)
    assert "no runs of ours" in words(figure)


# --- in numbers -------------------------------------------------------------------------------------


def test_the_table_holds_the_papers_numbers_and_means_of_ours(tmp_path: Path) -> None:
    for seed, last in ((0, 2.0), (1, 3.0)):
        write_layers(
            write_run(tmp_path, "cifar10-resnet20", seed), [1.5, *[1.0] * 17, last],
            gradient_norm_start=(8.0, *[2.0] * 18), gradient_norm_end=(1.0, *[500.0] * 18),
        )  # fmt: skip
    table = build(runs_in(tmp_path))
    at = next(number for number, row in enumerate(table.rows) if row.cells[0] == "ResNet-20")
    assert table.rows[at].cells == ("ResNet-20", "1.71", "2.50", "1.13", "1.62", "1.54", "", "")
    assert table.rows[at + 1].cells == (
        "↳ ours", "1.50±0.00", "2.50±0.71", "1.00±0.00", "1.11±0.04", "1.00±0.00", "4.0", "500",
    )  # fmt: skip
    record = table.frame.set_index("net").loc["ResNet-20"]
    assert (record["n"], record["response_std_last_ours"], record["gradient_ratio_start"]) == (2, 2.5, 4)
    assert table.rows[1].cells[1:] == ("—",) * 7
    assert len(table.rows) == 10
    assert (
        "plain-20",
        "resrepro train --depth 20 --plain --seeds 0-1 && "
        "resrepro eval runs/cifar10-plain20/seed0 runs/cifar10-plain20/seed1 --responses",
    ) in table.missing
    write_layers(write_run(tmp_path), gradient_norm_end=(0.0, *[1.0] * 18))
    assert build(runs_in(tmp_path)).rows[at + 1].cells[-1] == "inf"  # one layer gets none
    assert build(()).missing[0] == (
        "plain-20",
        "resrepro train --depth 20 --plain && resrepro eval runs/cifar10-plain20/seed0 --responses",
    )


def test_what_fills_a_gap_follows_the_protocol_shown(tmp_path: Path) -> None:
    short: dict[str, Any] = {"iterations": 2000, "split": "45k5k", "precision": "bf16", "mode": "fast"}
    made(tmp_path, "plain20", "resnet20", seeds=2, **short)
    write_run(tmp_path, "cifar10-resnet56", 4)
    write_run(tmp_path, "cifar10-resnet32")  # which the figure does not show
    before, (_, notes) = build(runs_in(tmp_path)), make_figure(runs_in(tmp_path))
    lacking = "Not drawn, not measured by `resrepro eval RUN --responses`: cifar10-resnet56 seed 4."
    assert (before.remarks[-1], notes) == (lacking, (lacking,))
    name = "cifar10-plain56+iterations=2000+split=45k5k+precision=bf16"
    assert before.missing[0] == (
        "plain-56",
        "resrepro train --depth 56 --plain --iterations 2000 --split 45k5k --fast --seeds 0-1 && "
        f"resrepro eval runs/{name}/seed0 runs/{name}/seed1 --responses",
    )
    made(tmp_path, "plain56", seeds=2, **short)
    assert (tmp_path / name / "seed1").is_dir()
    after = build(runs_in(tmp_path))
    assert [row.cells[1] == "—" for row in after.rows[1::2]] == [False, False, False, True, True]
