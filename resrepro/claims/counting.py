"""Claims that need no runs: parameters and multiply-adds, counted on the nets as built."""

from collections.abc import Callable, Mapping

from resrepro.claims.comparing import FAILED, HELD
from resrepro.claims.entries import Check, Source, value_of
from resrepro.claims.testing import Outcome
from resrepro.spec.architecture import Architecture, Part, architectures, vgg19

VGG_19 = "VGG-19"
TITLES = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "work_with_projection": "multiply-adds of a bottleneck block with a projection over those without",
}
COUNTS: Mapping[str, Callable[[Architecture], int]] = {
    "parameters": lambda net: net.parameters,
    "multiply_adds": lambda net: net.multiply_adds,
}


def count(test: Check) -> Outcome:
    """The outcome of a test of kind `count`: exact, so it either holds or fails."""
    low, high = test.region
    if test.measure == "work_with_projection":
        ratios = projection_ratios(architectures()[test.of])
        low_high = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
        told = f"{architectures()[test.of].label} {' to '.join(low_high)}"
    else:
        ours, theirs = _counted(test.measure, test.of), _counted(test.measure, test.over)
        ratios = [ours / theirs]
        told = f"{_name(test.of)} {spell_count(ours)} against {_name(test.over)} {spell_count(theirs)}"
        told += f" ({'equal' if ours == theirs else spell_ratio(ratios[0])})"
    state = HELD if all(low <= ratio <= high for ratio in ratios) else FAILED
    return Outcome(state, ours=(told,), told=("counted on the nets as built",))


def _counted(measure: str, name: str | Source) -> float:
    """A count of a net of ours, of VGG-19, or as published."""
    if isinstance(name, tuple):
        return value_of(name)
    return COUNTS[measure](vgg19() if name == VGG_19 else architectures()[name])


def _name(name: str | Source) -> str:
    if isinstance(name, tuple):
        return name[1]
    return name if name == VGG_19 else architectures()[name].label


def spell_count(value: float) -> str:
    """`1.73 million`, `3.66 billion`, as the paper counts."""
    unit, word = (1e9, "billion") if value >= 1e9 else (1e6, "million")
    return f"{value / unit:.2f} {word}"


def spell_ratio(ratio: float) -> str:
    """A ratio of two counts in percent."""
    return f"{100 * ratio:.1f} %"


def paper_ratio(test: Check) -> str:
    """The paper's own two counts and their ratio."""
    values = [value_of(source) for source in test.ratio]
    told = " against ".join(
        f"{row} {spell_count(value)}" for (_, row, _), value in zip(test.ratio, values, strict=True)
    )
    return f"{told} ({spell_ratio(values[0] / values[1])})"


def projection_ratios(net: Architecture) -> list[float]:
    """Multiply-adds of each block of identity shortcut, with a projection in its place over those without.

    Such a block has as many channels at its start as at its end, so its projection is a square matrix, and
    its weights grow by the same ratio.
    """
    return [
        _with_projection(part) for part in net.parts if part.shortcut and part.shortcut.kind == "identity"
    ]


def _with_projection(block: Part) -> float:
    last = block.layers[-1]
    own = sum(layer.multiply_adds for layer in block.layers)
    return 1 + last.channels**2 * last.size**2 / own
