"""Text in figures: colours that can be read, lines that fit, labels that do not overlap."""

import colorsys
from collections.abc import Sequence

FONT = "DejaVu Sans"  # ships with matplotlib, hence the same everywhere


def spread(positions: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Positions as close as possible to those given (least squares), at least `pitch` apart.

    All within `low` to `high` where there is room for them; the order is kept.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[list[float]] = []  # sum and count of neighbours that must move as one
    for rank, index in enumerate(order):
        blocks.append([positions[index] - rank * pitch, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    shifted = [total / count for total, count in blocks for _ in range(int(count))]
    ceiling = max(low, high - (len(positions) - 1) * pitch)
    placed = [0.0] * len(positions)
    for rank, (index, value) in enumerate(zip(order, shifted, strict=True)):
        placed[index] = min(max(value, low), ceiling) + rank * pitch
    return placed


def text_width(text: str, size: float) -> float:
    """The width of a text in inches at a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of words that are at most `width` inches wide at a size in points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def mixed(colour: str, white: float) -> str:
    """A colour with a share of white (0 to 1) in it."""
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in bytes.fromhex(colour[1:]))


def contrast(colour: str) -> float:
    """Contrast ratio of a colour on white (WCAG 2), 1 to 21."""
    parts = [part / 255 for part in bytes.fromhex(colour[1:])]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def readable(colour: str) -> str:
    """The colour, darkened until text in it can be read on white (contrast 4.5 and more)."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in bytes.fromhex(colour[1:])))
    while contrast(colour) < 4.5:
        lightness *= 0.97
        parts = colorsys.hls_to_rgb(hue, lightness, saturation)
        colour = "#" + "".join(f"{int(part * 255):02x}" for part in parts)
    return colour
