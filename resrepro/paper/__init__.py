"""The paper's own numbers: every printed value (`published.csv`), the curves read off the vector plots
(`curves.csv`), and which rows form which exhibit (`layouts.toml`).
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from resrepro.spec.recipe import read_toml

if TYPE_CHECKING:
    import pandas as pd


class Number(NamedTuple):
    """A published value; `std` where the paper gives one. Errors are in percent."""

    value: float
    std: float | None = None


def _frame(name: str) -> "pd.DataFrame":
    import pandas as pd

    with resources.files(__package__).joinpath(name).open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, dtype=str)


@cache
def published() -> Mapping[tuple[str, str, str], Number]:
    """Numbers by (exhibit, row, metric), e.g. ("table6", "ResNet-20", "test_err"); of two the first."""
    numbers: dict[tuple[str, str, str], Number] = {}
    rows = _frame("published.csv")[["exhibit", "row", "metric", "value", "std"]]
    for exhibit, row, metric, value, std in rows.itertuples(index=False):
        with suppress(ValueError):  # some are none, such as "2n"
            numbers.setdefault((exhibit, row, metric), Number(float(value), float(std) if std else None))
    return numbers


def curves(exhibit: str) -> "pd.DataFrame":
    """The curves of one figure: panel, series, kind, x (1e4 iterations), value (percent), point."""
    frame = _frame("curves.csv").astype({"x": float, "value": float})
    return frame[frame["exhibit"] == exhibit].drop(columns="exhibit").reset_index(drop=True)


@cache
def layouts() -> Mapping[str, Mapping[str, Any]]:
    """For each exhibit that `compare` knows: its title, quantities and rows."""
    return with_twins(read_toml("layouts.toml", "resrepro.paper"))


def with_twins(layouts: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Some exhibits' layouts, and of those on ImageNet also their twins' on a folder of images. A twin is
    `of` the paper's exhibit, whose numbers stand in it; its title has a place for `data`.
    """
    twins, pattern = {}, r"\.( Training on)? ImageNet( validation)?:"
    for name, layout in layouts.items():
        title, found = re.subn(pattern, " on {data} instead of ImageNet:", layout["title"])
        if found:
            own = json.loads(json.dumps(layout).replace('"imagenet', '"folder'))
            twins[f"{name}-folder"] = {**own, "title": title, "of": name}
    return {**layouts, **twins}
