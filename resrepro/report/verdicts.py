"""The verdicts on the paper's claims as the page shows them: counted, with a sign beside the word."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Said(Protocol):
    """What some runs say of a claim; only these fields are read."""

    @property
    def ours(self) -> str:
        """Our value."""

    @property
    def verdict(self) -> str:
        """One of KINDS."""

    @property
    def why(self) -> str:
        """What is missing, or the test with its interval."""


class Ruled(Said, Protocol):
    """What the runs of another protocol say of it."""

    @property
    def protocol(self) -> str:
        """Which runs these are, in short."""


class Judged(Said, Protocol):
    """A verdict on one claim."""

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
    def notes(self) -> tuple[str, ...]:
        """Shortened runs and departures."""

    @property
    def others(self) -> Sequence[Ruled]:
        """What other runs say of it."""


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
    return _kind(verdict.verdict, verdict.number)


def kinds_of_others(verdict: Judged) -> list[tuple[Ruled, Kind]]:
    """What other runs say of a claim, each with its kind.

    Raises:
        ValueError: if one is of none.
    """
    return [(other, _kind(other.verdict, verdict.number)) for other in verdict.others]


def _kind(word: str, number: int) -> Kind:
    for kind in KINDS:
        if kind.word == word:
            return kind
    raise ValueError(f"claim {number} has the verdict {word!r}, which is none.")


def counted(verdicts: Sequence[Judged]) -> list[tuple[Kind, int]]:
    """How many verdicts there are of each kind, those of none too."""
    counts = Counter(kind_of(verdict) for verdict in verdicts)
    return [(kind, counts[kind]) for kind in KINDS]
