"""What is read off a figure of matplotlib."""

from typing import Any


def line(axes: Any, label: str) -> tuple[list[float], list[float]]:
    """x and y of the one line with this label."""
    [found] = [line for line in axes.lines if line.get_label() == label]
    return [*map(float, found.get_xdata())], [*map(float, found.get_ydata())]


def words(figure: Any) -> str:
    """Its legend and the lines at its foot."""
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join([*legend, *(text.get_text() for text in reversed(figure.texts))])
