"""What may be measured of a trained net, and whether a record holds it. Nothing here imports torch."""

from resrepro.records import Run

RESPONSES = "responses"  # of every layer (Figure 7); whatever else is measured is a test protocol
OTHER_IMAGES = (
    "it was measured, but on other images than those of the run, so no table takes it: name those with "
    "--data."
)


def is_measured(what: str, run: Run | None) -> bool:
    """Whether a test protocol, or RESPONSES, of a finished run is recorded, whole and of its trained net."""
    if run is None or not run.finished:
        return False
    if what == RESPONSES:
        return run.responses is not None
    return run.evaluation(what, run.headline_split) is not None
