"""`resrepro bench` as people type it: real children, tiny nets."""

import csv

import pytest
from commands import call

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.slow
def test_bench_measures_writes_and_draws_what_it_was_asked_for(tmp_path):
    code, stdout, stderr = call(
        "bench", "--depth", 8, "--batch-size", 16, "--rounds", 1, "--seconds", 0.1, "--threads", 1,
        "--device", "cpu", "--modes", "usual,fast", "--csv", "out/bench.csv", "--figures", "figures",
    )  # fmt: skip
    assert code == 0, stderr
    assert max(map(len, stdout.splitlines()[:-1])) <= 80
    folder = tmp_path / "here"
    with (folder / "out/bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["workers"]) for row in rows] == [
        ("usual", "0"), ("usual", "2"), ("fast", ""),
    ]  # fmt: skip
    for row in rows:
        assert float(row["images_per_s_median"]) > 0
        assert float(row["peak_memory_mib"]) > 100
        assert float(row["share_of_peak"]) > 0
        assert float(row["data_s"]) > 0
        assert float(row["ratio_to_usual_median"]) == pytest.approx(
            float(row["images_per_s_median"])
            / max(float(other["images_per_s_median"]) for other in rows if other["mode"] == "usual")
        )
    assert sum(row["counted"] == "True" for row in rows) == 2
    assert {path.name for path in (folder / "figures").iterdir()} == {"bench.png", "bench.svg"}
    assert (folder / "out/bench-times.csv").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("bench --depth 21", "nearest is 20 or 26"),
        ("bench --modes sloth", "no mode 'sloth'"),
        ("bench --rounds 0", "--rounds"),
        ("bench --depth 8 --device abacus --modes default", "no device 'abacus'"),
    ],
)
def test_a_bad_request_gets_one_sentence_and_leaves_nothing_behind(words, part, tmp_path):
    code, _, stderr = call(*words.split())
    assert (code, part in stderr, stderr.count("error:")) == (2, True, 1), stderr
    assert list((tmp_path / "here").iterdir()) == []
