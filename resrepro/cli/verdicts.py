"""How verdicts on the paper's claims are printed at the end of `resrepro reproduce`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from resrepro.claims import Verdict

STYLES = {"held": "green", "failed": "red", "undecided": "yellow", "not testable here": "dim"}


def show_verdicts(verdicts: "Sequence[Verdict]", console: Console) -> None:
    """Print each claim with its verdict, the paper's value and ours, the reason, and its notes."""
    for each in verdicts:
        lead = (f"Claim {each.number}", "bold"), f" (Section {each.section}): "
        console.print(Text.assemble("\n", *lead, (each.verdict, f"bold {STYLES[each.verdict]}")))
        values = f"{each.quantity}: the paper {each.paper}; ours {each.ours}" if each.ours else each.quantity
        for text in (each.words, values, each.why, *each.notes):
            if text:
                console.print(Padding(Text(text), (0, 0, 0, 2)))
