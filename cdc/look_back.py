"""Looking back: which rows of a window of time were not there when later ones were read. Pure, time passed in.

A walk begins with a snapshot, and with a place that the polls have come to: it goes over the window's rows up to there,
what lies behind is theirs. So each row of a transaction that had ended by then is found, and the next walk need not be
told of it: the server, which knows a row's transaction, leaves it out. Of all others those that are published already
are remembered, each with its version: a row that was written again may have kept its place in the order.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Order = tuple[str, ...]
"""What orders a row among those of its table, as texts: no two rows are equal in it."""

Version = int
"""The xid that wrote a row, 0 where that is not told.

It tells any two versions apart that were read: a snapshot has all that a transaction did, subtransactions included, or
nothing of it. So what a later one shows anew is another transaction's, and no xid is given out twice in a window.
"""

LEAST_INTERVAL_SECONDS = 1.0
_LOOKS_IN_WINDOW = 10
MOST_REMEMBERED = 100_000
"""So many rows, some hundred bytes each, are remembered at most, twice that during a walk: more are published again."""
_XIDS = 2**31
"""Of transactions that are so far apart, the rows do not tell which one was earlier."""


@dataclass(frozen=True, slots=True)
class Walked:
    """A row that a walk has come to; `is_asked` unless it was found for sure by the walk before.

    `is_open` says that the next walk will be asked for it again, `is_cut` that more may lie behind it.
    """

    order: Order
    version: Version
    is_asked: bool
    is_open: bool
    is_cut: bool


class LookBack:
    """Walks over the rows of a window, a page at a time, again and again, and tells those that are not published.

    `newest` is what the window is counted from, the newest timestamp when the walk before was begun: what was not
    committed by then may be as old as that allows, however much time has passed since, or a session has ended. All
    transactions before `since` had ended then; None where that is not known. A walk goes from `after`, None at the
    window's beginning, to `until`, None while there is none; all transactions before `begun` had ended when it began.

    Rows that tell no transaction are all asked for, each time: what is remembered of them is not `bounded`.
    """

    def __init__(self, window_seconds: float, *, bounded: bool = True) -> None:
        self._window_seconds = window_seconds
        self._interval_seconds = max(window_seconds / _LOOKS_IN_WINDOW, LEAST_INTERVAL_SECONDS)
        self._most = MOST_REMEMBERED if bounded else sys.maxsize
        self._due_at = float("-inf")
        # Published rows that a walk is asked for: the one that is under way, or else the next one, and the one after.
        self._remembered: dict[Order, Version] = {}
        self._kept: dict[Order, Version] = {}
        self._polled = 0
        self._is_resumed = False
        self.newest: str | None = None
        self.since: str | None = None
        self.begun: str | None = None
        self.after: Order | None = None
        self.until: Order | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is a window."""
        return self._window_seconds > 0

    @property
    def open_since(self) -> str | None:
        """The xid from which on transactions' rows are asked for by the next walk that begins."""
        return self.since if self.until is None else self.begun

    def resume(self, newest: str | None, since: str | None) -> None:
        """Count the session's first window from a timestamp; None stands for all rows. Later calls do nothing."""
        if self.is_on and not self._is_resumed:
            self.newest, self.since, self._is_resumed = newest, since, True

    def turn(self, place: Order | None, xmin: str, now: float) -> None:
        """Begin a walk, if it is due, before the rows behind `place` are polled by a snapshot with this xmin.

        Much that was polled makes it due, too: what comes behind it need not be remembered then.
        """
        is_due = now >= self._due_at or self._polled >= MOST_REMEMBERED // 2
        if not self.is_on or place is None or self.until is not None or not is_due:
            return
        # Another server's, or too long ago.
        if self.since is not None and not 0 <= int(xmin) - int(self.since) < _XIDS:
            self.since = None
        self.until, self.begun, self._polled = place, xmin, 0

    def note(self, rows: Mapping[Order, Version]) -> None:
        """Note rows of transactions from `open_since` on that are published anyway."""
        if self.is_on:
            self._polled += len(rows)
            self._remember(self._remembered if self.until is None else self._kept, rows.items())

    def late(self, rows: Sequence[Walked], *, is_last: bool, now: float) -> list[Order]:
        """Return those of the walk's next rows that are not published; `is_last` ends it."""
        asked = [row for row in rows if row.is_asked]
        late = [row.order for row in asked if self._remembered.get(row.order) != row.version]
        self._remember(self._kept, ((row.order, row.version) for row in asked if row.is_open))
        self.after = rows[-1].order if rows else self.after
        if is_last:
            self._end(now)
        return late

    def forget(self, newest: str | None, since: str | None) -> None:
        """Take no row for published, in a window that is counted from `newest` and `since` once more."""
        self._remembered.clear()
        self._kept.clear()
        self.newest, self.since = newest, since
        self.begun = self.after = self.until = None
        self._due_at = float("-inf")

    def _end(self, now: float) -> None:
        is_full = len(self._kept) >= self._most
        if is_full:
            # What did not fit is published by each walk, as long as a transaction of before it is open: not too often.
            self._polled = 0
        self._remembered, self._kept = self._kept, {}
        self.newest, self.since = self.until[0] if self.until else self.newest, self.begun
        self.begun = self.after = self.until = None
        self._due_at = now + (self._window_seconds if is_full else self._interval_seconds)

    def _remember(self, where: dict[Order, Version], rows: Iterable[tuple[Order, Version]]) -> None:
        for order, version in rows:
            if len(where) >= self._most:
                return
            where[order] = version
