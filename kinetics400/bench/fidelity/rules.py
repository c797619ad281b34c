"""A published rule, and how far ours is from the reference: a row of docs/fidelity.md."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

EXACT = 0.0
# Of the largest value: float32 sums in another order; gradients have longer ones.
FORWARD, GRADIENT = 1e-5, 1e-4


class Measured(NamedTuple):
    """What a comparison found."""

    compared: int
    """How many numbers."""
    largest: float
    """Difference; infinite where shapes differ or something is not a number."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of the paper's code."""

    part: str
    """Of the recipe: the table is in this order."""
    rule: str
    """What the paper's code does."""
    source: str
    """File in the paper's repository."""
    ours: str
    """Function below `kinetics400.`, or `--flag`."""
    reference: str
    """What ours is compared with."""
    test: str
    """`file::function` in tests/."""
    unit: str
    compared: int
    largest: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.largest <= self.allowed


def difference(pairs: Iterable[tuple[Any, Any]], *, relative: bool = False) -> Measured:
    """Compare (ours, theirs), anything that numpy makes an array of.

    Args:
        pairs: at least one; in each, shapes must be equal.
        relative: to the largest absolute value of theirs in the pair.
    """
    compared, largest = 0, 0.0
    for ours, theirs in pairs:
        one, two = (np.asarray(each, dtype=np.float64) for each in (ours, theirs))
        if one.shape != two.shape or not (np.isfinite(one).all() and np.isfinite(two).all()):
            return Measured(compared + one.size, float("inf"))
        found = float(np.abs(one - two).max(initial=0.0))
        if relative and found:
            found /= float(np.abs(two).max())
        compared, largest = compared + one.size, max(largest, found)
    if not compared:
        raise ValueError("nothing was compared")
    return Measured(compared, largest)
