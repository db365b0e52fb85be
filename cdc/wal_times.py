"""By what time all commits are known: times of the source's clock, each with the WAL's end of just after."""

from collections import deque
from datetime import datetime

MOST_TIMES = 256
"""So many times are kept that the stream has not come to; of more, every other one is given up."""


class KnownTimes:
    """Which of the times noted is the newest that the stream has passed.

    Commit times are not in commit order. But what had committed by a time lies in the WAL before the end that it had
    afterwards: once the stream is past that, nothing of before can come.
    """

    def __init__(self) -> None:
        self.newest: tuple[datetime, int] | None = None
        self._noted: deque[tuple[datetime, int]] = deque()

    def note(self, time: datetime, end: int) -> None:
        """Note a time, and the end of the WAL that was read after it; both in the order in which they were read."""
        if self._noted and self._noted[-1][1] == end:
            self._noted.pop()
        self._noted.append((time, end))
        if len(self._noted) > MOST_TIMES:
            self._noted = deque(list(self._noted)[::2])

    def pass_by(self, position: int) -> None:
        """Note that the stream has come to a position."""
        while self._noted and self._noted[0][1] <= position:
            self.newest = self._noted.popleft()

    def is_behind(self) -> bool:
        """Return whether the stream has not come to where the WAL ended last."""
        return bool(self._noted)
