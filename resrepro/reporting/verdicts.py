"""The verdicts on the paper's claims as the page shows them: counted, with a sign beside the word."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Judged(Protocol):
    """A verdict on one claim; only these fields are read."""

    @property
    def number(self) -> int:
        """The claim's number, from 1."""

    @property
    def section(self) -> str:
        """Where in the paper it stands."""

    @property
    def words(self) -> str:
        """The claim, paraphrased."""

    @property
    def quantity(self) -> str:
        """What is compared."""

    @property
    def paper(self) -> str:
        """The paper's value."""

    @property
    def ours(self) -> str:
        """Our value."""

    @property
    def verdict(self) -> str:
        """One of KINDS."""

    @property
    def why(self) -> str:
        """What is missing, or the test with its interval."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Shortened runs and departures."""


@dataclass(frozen=True)
class Kind:
    """A kind of verdict: its word, the sign beside it, and its name in the style sheet."""

    word: str
    sign: str
    style: str


KINDS = (
    Kind("held", "✓", "held"),
    Kind("failed", "✗", "failed"),
    Kind("undecided", "?", "undecided"),
    Kind("not testable here", "–", "untestable"),
)


def kind_of(verdict: Judged) -> Kind:
    """The kind of a verdict.

    Raises:
        ValueError: if it is of none.
    """
    for kind in KINDS:
        if kind.word == verdict.verdict:
            return kind
    raise ValueError(f"claim {verdict.number} has the verdict {verdict.verdict!r}, which is none.")


def counted(verdicts: Sequence[Judged]) -> list[tuple[Kind, int]]:
    """How many verdicts there are of each kind, those of none too."""
    counts = Counter(kind_of(verdict) for verdict in verdicts)
    return [(kind, counts[kind]) for kind in KINDS]
