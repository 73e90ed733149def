"""responses.csv: read back as it was written, refused where it is broken or of another net."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_layers, write_run

from resrepro.errors import RecordError
from resrepro.records import read_run
from resrepro.records.collection import collect, publish
from resrepro.records.reading import SEAL, describe_curve, read_responses
from resrepro.spec import digest_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", "cifar10-resnet20")


def test_numbers_come_back_to_eight_digits(run):
    figures = 10 ** np.random.default_rng(0).uniform(-300, 30, (3, 19))
    figures[:, 0] = 0
    std, start, end = figures.tolist()
    found = write_layers(run, std, gradient_norm_start=start, gradient_norm_end=end)
    read = (*found.std, *found.gradient_norm_start, *found.gradient_norm_end)
    assert read == pytest.approx((*std, *start, *end), rel=1e-7)
    (run / "responses.csv").write_bytes(found.to_bytes())
    assert read_responses(read_run(run)) == found == read_run(run).responses


def test_any_reader_of_tables_reads_it_and_a_run_that_was_not_measured_has_none(run):
    assert read_responses(read_run(run)) is read_run(run).responses is None
    found = write_layers(run)
    frame = pd.read_csv(run / "responses.csv", comment="#")
    assert frame["index"].tolist() == list(range(1, 20))
    assert (tuple(frame["std"]), tuple(frame["layer"])) == (found.std, found.layers)


@pytest.mark.parametrize(
    "other", [{"digest": "0" * 64}, {"seed": 1}, {"iteration": 63_999}, {"std": (1.0,) * 18}]
)
def test_what_was_measured_on_another_net_is_no_number_of_this_run(run, other):
    count, found = len(other.get("std", range(19))), write_layers(run)
    columns = dict.fromkeys(("std", "gradient_norm_start", "gradient_norm_end"), (1.0,) * count)
    changed = dataclasses.replace(found, **columns | {"layers": found.layers[:count]} | other)
    (run / "responses.csv").write_bytes(changed.to_bytes())
    with pytest.raises(RecordError, match=rf"not measured on the trained net.*eval {run} --responses`"):
        read_responses(read_run(run))
    whole = collect([run.parent.parent])
    assert whole.runs[0].responses is None
    assert "not measured on the trained net" in whole.broken[0]


# --- files of strangers -----------------------------------------------------------------------------


def forge(run: Path, rows: Callable[[str], str]) -> None:
    """Change the rows of a whole file, and seal it anew."""
    path = run / "responses.csv"
    first, _, below = path.read_text().partition("\n")
    changed = rows(below).encode("utf-8", "surrogateescape")
    content = json.loads(first.removeprefix("# ")) | {"rows": describe_curve(changed)}
    del content[SEAL]
    path.write_bytes(b"# " + json.dumps({**content, SEAL: digest_of(content)}).encode() + b"\n" + changed)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda text: text.replace("0.25", "low", 1), "could not convert"),
        (lambda text: text.replace("0.25", "0.25,0.25", 1), "6 values instead of 5"),
        (lambda text: text.replace("std", "sd", 1), "its columns are not"),
        (lambda text: text[:-1], "last row is cut off"),
        (lambda text: "\n".join(text.split("\n")[:1]) + "\n", "not measured on the trained net"),
        (lambda text: "", "its columns are not"),
    ],
)
def test_rows_that_are_none_are_refused_however_well_sealed(run, rows, told):
    write_layers(run)
    forge(run, rows)
    with pytest.raises(RecordError, match=told):
        read_responses(read_run(run))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"# \n", b"# []\n", b"# {}\n", b"index,layer\n", b"\xff\xfe", b"# " + b"[" * 99_999],
)
def test_a_file_of_something_else_is_refused(run, content):
    (run / "responses.csv").write_bytes(content)
    with pytest.raises(RecordError, match=r"responses\.csv is broken"):
        read_responses(read_run(run))


def test_published_records_carry_it(run, tmp_path):
    found = write_layers(run)
    assert read_run(publish(read_run(run), tmp_path / "results")).responses == found
