"""Looking back: which rows of a window of time were not there when later ones were read. Pure, time passed in."""

from collections.abc import Iterable, Sequence

Order = tuple[str, ...]
"""What orders a row among those of its table, as texts: no two rows are equal in it."""

LEAST_INTERVAL_SECONDS = 1.0
_LOOKS_IN_WINDOW = 10


class LookBack:
    """Walks over the rows of a window, a page at a time, again and again, and tells those that have not been seen.

    It remembers what the window holds: some hundred bytes a row. `after` is where the next page begins, None at the
    window's beginning.
    """

    def __init__(self, window_seconds: float) -> None:
        self._interval_seconds = max(window_seconds / _LOOKS_IN_WINDOW, LEAST_INTERVAL_SECONDS)
        self._is_on = window_seconds > 0
        self._due_at = float("-inf")
        self._seen: set[Order] = set()
        # Of the walk that is under way, to be what is remembered after it: all else has left the window.
        self._walked: set[Order] = set()
        self.after: Order | None = None

    def is_due(self, now: float) -> bool:
        """Return whether a page of the window is to be read now."""
        return self._is_on and now >= self._due_at

    def note(self, rows: Iterable[Order]) -> None:
        """Note rows that are published anyway."""
        if self._is_on:
            rows = list(rows)
            self._seen.update(rows)
            self._walked.update(rows)

    def late(self, rows: Sequence[Order], *, is_last: bool, now: float) -> list[Order]:
        """Return those of the window's next rows that have not been seen before; `is_last` ends the walk."""
        late = [row for row in rows if row not in self._seen]
        self.note(rows)
        self.after = rows[-1] if rows else self.after
        if is_last:
            self._seen, self._walked = self._walked, set()
            self.after = None
            self._due_at = now + self._interval_seconds
        return late

    def forget(self) -> None:
        """Take every row of the window for one that has not been seen."""
        self._seen.clear()
        self._walked.clear()
        self.after = None
        self._due_at = float("-inf")
