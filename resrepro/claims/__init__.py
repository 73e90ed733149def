"""The paper's claims in words, tested on run records: a verdict on each, with its test and its interval."""

from resrepro.claims.entries import claims, find_claim
from resrepro.claims.judging import Ruling, Verdict, judge
from resrepro.claims.listing import table

__all__ = ["Ruling", "Verdict", "claims", "find_claim", "judge", "table"]
