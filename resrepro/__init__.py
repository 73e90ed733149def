"""Reproduce 'Deep Residual Learning for Image Recognition' (He, Zhang, Ren, Sun, 2015).

    import resrepro as rr
    net = rr.build_net("cifar10", 56)                # images (N, 3, 32, 32) -> logits (N, 10)
    run = rr.train("digits-plain20", seed=0)         # a run folder with its record
    rr.evaluate(run)                                 # {"test": Errors(...)}
    rr.evaluate(run, protocol="ten_crop", data="DIR")  # of a run on photographs: {"val": Errors(...)}
    rr.load_net(run)                                 # trained: pixels (N, 3, 32, 32) uint8 -> logits (N, 10)
    rr.load_runs("runs")                             # pandas, one row per run
    rr.compare("table6"); rr.plot("figure6")         # tables/ and figures/; both show themselves in notebooks

Names are loaded when first used, so that what needs no torch never imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resrepro.evaluation import evaluate
    from resrepro.evaluation.sources import load_net
    from resrepro.figures import compare, plot
    from resrepro.nets import build_net
    from resrepro.records.collection import load_runs
    from resrepro.training.session import train

__all__ = ["build_net", "compare", "evaluate", "load_net", "load_runs", "plot", "train"]

_HOMES = {
    "build_net": "nets", "compare": "figures", "evaluate": "evaluation", "load_net": "evaluation.sources",
    "load_runs": "records.collection", "plot": "figures", "train": "training.session",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
