"""Whether a topic's image of a row is right, while both change: equal, different or undecided. Pure.

A look at a key is three readings: the row in the source, then what the topic shows once it reflects that reading, then
the row once more.
"""

from collections import Counter
from enum import StrEnum
from hashlib import blake2b

Digest = bytes
"""Stands for a row's bytes on the wire."""

CONFIRMATIONS = 5
"""So often must the same image be seen beside the same row, unequal to it: a source that goes there and back between
two looks can fool one of them."""
TRIES_A_CONFIRMATION = 2
"""So many looks are taken for each, since some tell nothing."""


class Kind(StrEnum):
    """How a key of the topic or the table differs."""

    MISSING = "missing"
    STALE = "stale"
    GHOST = "ghost"
    FOREIGN = "foreign"
    """A key of a form that the capture never writes, or in a partition where it never writes it: another program did,
    and no capture can delete it."""


class Outcome(StrEnum):
    """What became of a key that differed at first, besides the kinds of difference."""

    EQUAL = "equal"
    UNDECIDED = "undecided"
    HELD_BACK = "held_back"


Verdict = Kind | Outcome


def digest(row: bytes) -> Digest:
    """Return a row's digest, 16 bytes."""
    return blake2b(row, digest_size=16).digest()


class Judge:
    """Judges keys over several looks at each: they differ once that was seen so many times."""

    def __init__(self, confirmations: int = CONFIRMATIONS) -> None:
        self._needed = confirmations
        self._unequal: dict[bytes, tuple[Digest | None, Digest | None]] = {}
        self._confirmations: Counter[bytes] = Counter()

    def verdict(self, key: bytes, before: Digest | None, shown: Digest | None, after: Digest | None) -> Verdict | None:
        """Return what a further look shows, None while it does not tell; None stands for no row and no image."""
        if shown in (before, after):
            return Outcome.EQUAL
        if before == after:
            seen = before, shown
            self._confirmations[key] = self._confirmations[key] + 1 if self._unequal.get(key) == seen else 1
            self._unequal[key] = seen
        if self._confirmations[key] < self._needed:
            return None
        return difference(before, shown)


def difference(in_source: Digest | None, in_topic: Digest | None) -> Kind:
    """Return how a key differs whose row and image are unequal."""
    if in_topic is None:
        return Kind.MISSING
    return Kind.GHOST if in_source is None else Kind.STALE
