"""Measuring what an exhibit needs of trained nets: a test protocol, or the responses of the layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrepro.records.measured import RESPONSES


def measure(what: str, folders: Sequence[Path], runs: Path, **means: Any) -> None:
    """Measure something of the net of a run, or of several together, and record it.

    Args:
        what: a test protocol, or RESPONSES, which are those of one run.
        folders: the run's folder; several are the members of an ensemble.
        runs: the runs folder, in which ensembles are recorded.
        **means: `data`, `device`, `threads`, `loading` and `say`, as for `evaluation.assessment.evaluate`.

    Raises:
        UsageError: if a run is not finished, or the protocol is none of its kind of images.
        RecordError: if a checkpoint is missing or broken, or the images are others.
        DataError: if the images are missing or damaged.
    """
    if what == RESPONSES:
        from resrepro.evaluation.measuring_responses import measure as measure_responses

        (folder,) = folders
        measure_responses(folder, **means)
        return
    from resrepro.evaluation.assessment import evaluate

    evaluate(folders if len(folders) > 1 else folders[0], protocol=what, runs=runs, **means)
