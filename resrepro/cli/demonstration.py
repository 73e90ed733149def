"""The demo's nets, and the one sentence that its records support."""

from collections.abc import Sequence

from resrepro.records import Run

DEMO_EXPERIMENTS = ("digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56")


def verdict(runs: Sequence[Run]) -> str:
    """What the demo's runs show about degradation (the paper's Figure 1), computed from their records.

    Only the paper's contrast is looked at: training error of 20 against 56 layers, plain and residual.
    """
    errors = {
        run.experiment: run.last("train")
        for run in runs
        if run.experiment in DEMO_EXPERIMENTS and run.finished
    }
    if any(errors.get(name) is None for name in DEMO_EXPERIMENTS):
        missing = [name for name in DEMO_EXPERIMENTS if errors.get(name) is None]
        return f"No verdict: {', '.join(missing)} did not finish."
    plain20, plain56, resnet20, resnet56 = (errors[name] or 0.0 for name in DEMO_EXPERIMENTS)
    plain = f"the plain net goes from {plain20:.1f} % training error at 20 layers to {plain56:.1f} % at 56"
    residual = f"the residual net from {resnet20:.1f} % to {resnet56:.1f} %"
    if plain56 > plain20 and plain56 - plain20 > resnet56 - resnet20:
        cured = "and shortcuts cure it" if resnet56 <= resnet20 + 1 else "and shortcuts lessen it"
        return f"Depth degrades the plain net {cured}: {plain}, {residual} (one seed, digits)."
    return f"These runs do not show the paper's degradation: {plain}, {residual} (one seed, digits)."
