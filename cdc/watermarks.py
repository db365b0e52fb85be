"""A table's watermark in the cursor topic, for a command that has to know what the topic reflects."""

import time
from collections.abc import Callable
from datetime import datetime

from cdc.cursor import TableCursor, Watermark
from cdc.errors import CaptureError
from cdc.progress import phase
from cdc.tables import CapturedTable, SourceKind
from cdc.watching import CursorTail

LOOK_SECONDS = 0.05


class Watermarks:
    """Follows one table's part of the cursor, as long as it is the table's that was seen with fingerprint `shape`.

    What moves with passes alone, `pass_seconds` apart, is waited for so much longer.
    """

    def __init__(
        self,
        tail: CursorTail,
        table: CapturedTable,
        shape: str,
        *,
        wait_seconds: float,
        pass_seconds: float = 0.0,
        takes_estimates: bool = False,
    ) -> None:
        self._tail = tail
        self._table = table
        self._shape = shape
        self._wait_seconds = wait_seconds + pass_seconds
        self._pass_seconds = pass_seconds
        self._takes_estimates = takes_estimates

    def first(self) -> TableCursor:
        """Return the table's part of the newest cursor; raise CaptureError if it has no watermark."""
        entry = self._newest()
        if entry is None:
            raise CaptureError(
                f"{self._table.name} has not been taken up by the capture yet: see viewkeeper-cdc status"
            )
        if entry.watermark is None:
            raise CaptureError(
                f"{self._table.name} has no watermark, so that nothing tells how far its topic reflects it: "
                f"{phase(entry)}; run this again once it is complete, see viewkeeper-cdc status"
            )
        return entry

    def passed(self, time_of_source: datetime) -> tuple[TableCursor, Watermark]:
        """Wait until everything that was committed by a time has been published.

        Raises CaptureError if that takes too long, or if the table was altered or attached anew meanwhile.
        """
        deadline = time.monotonic() + self._wait_seconds
        while True:
            entry = self._newest()
            watermark = entry.watermark if entry else None
            # An uncertain time is one that the source's clock went back behind: more may have been committed by it.
            is_certain = watermark is not None and (self._takes_estimates or not watermark.uncertain)
            if entry and watermark and watermark.time >= time_of_source and is_certain:
                return entry, watermark
            if time.monotonic() > deadline:
                raise CaptureError(self._late(entry, time_of_source))
            time.sleep(LOOK_SECONDS)

    def reached(self, is_there: Callable[[str], bool]) -> None:
        """Wait for a position of the table that `is_there`; raises CaptureError if that takes too long."""
        deadline = time.monotonic() + self._wait_seconds
        while (entry := self._newest()) is None or entry.position is None or not is_there(entry.position):
            if time.monotonic() > deadline:
                raise CaptureError(
                    f"{self._table.name}: the capture did not take up the keys that differ within "
                    f"{self._wait_seconds:g} s: {self._advice()}"
                )
            time.sleep(LOOK_SECONDS)

    def _newest(self) -> TableCursor | None:
        cursor = self._tail.newest()
        entry = cursor.tables.get(str(self._table.name)) if cursor else None
        if entry is None:
            return None
        if entry.attachment != self._table.attachment or (entry.fingerprint and entry.fingerprint.shape != self._shape):
            raise CaptureError(
                f"{self._table.name} was altered or attached anew, before the capture saw it or while it was compared: "
                f"run this again{self._other_settings()}"
            )
        return entry

    def _other_settings(self) -> str:
        """Return in words which settings may make the table look otherwise than it does to the capture."""
        # The key of its masks is part of what a table looks like; so is how it is polled, or which source sees it.
        is_polled = self._table.source is SourceKind.TIMESTAMP
        source = "; or VIEWKEEPER_CDC_SOURCE is not what viewkeeper-cdc run has, since it moves: set it as it is there"
        key = "; or VIEWKEEPER_CDC_MASK_KEY is not what viewkeeper-cdc run has: set it as it is there"
        tables = "; or VIEWKEEPER_CDC_TABLES says otherwise of it than for viewkeeper-cdc run: set it as it is there"
        return (
            f"{source if self._table.moving_to else ''}{key if self._table.is_masked else ''}"
            f"{tables if is_polled else ''}"
        )

    def _late(self, entry: TableCursor | None, time_of_source: datetime) -> str:
        known = entry.watermark if entry else None
        words = "none" if known is None else f"{known.time.isoformat()}{' (uncertain)' if known.uncertain else ''}"
        return (
            f"{self._table.name} has not been published up to {time_of_source.isoformat()} of its source within "
            f"{self._wait_seconds:g} s; its watermark is {words}{f', {phase(entry)}' if entry else ''}: "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        passes = (
            f"its passes over all rows, {self._pass_seconds:g} s apart by VIEWKEEPER_CDC_BULK_SECONDS, may take longer "
            "than --wait-seconds; or "
        )
        return f"{passes if self._pass_seconds else ''}is viewkeeper-cdc run at work? see viewkeeper-cdc status"
