"""One leader's publishing: each unit in a Kafka transaction of its own, with the cursor that covers it."""

import time
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from cdc import metrics
from cdc.change import Unit
from cdc.cursor import Cursor, TableCursor
from cdc.errors import HistoryChanged
from cdc.lease import Lease
from cdc.progress import published
from cdc.publisher import Publisher
from cdc.rounds import NOTHING_KNOWN

log = structlog.get_logger()

_TOKENS_IN_FLIGHT = 4
"""Units are read while those before are published, so that one may have seen an older mark than the newest."""


class Capture:
    """Publishes units and saves the cursor with each; thrown away after any error.

    `check_topics` raises, now and then, if the topics of tables are other ones than their parts of the cursor name.
    """

    def __init__(
        self,
        cursor: Cursor,
        *,
        lease: Lease,
        publisher: Publisher,
        check_topics: Callable[[Iterable[TableCursor]], None],
    ) -> None:
        self.cursor = cursor
        self._lease = lease
        self._publisher = publisher
        self._check_topics = check_topics
        # Empty until the first unit, whose reader has compared it with the cursor.
        self._tokens: deque[str] = deque(maxlen=_TOKENS_IN_FLIGHT)

    def save(self, unit: Unit) -> None:
        """Publish a unit, and the cursor as it is then.

        Raises HistoryChanged if the unit was read from another history of the source than those before.
        """
        began = time.monotonic()
        if not self._tokens:
            self._tokens.extend(unit.tokens)
        elif unit.tokens and unit.tokens.isdisjoint(self._tokens):
            raise HistoryChanged("the source's mark is none that this capture wrote lately: its history is another one")
        for table in unit.tables.values():
            self._publisher.know(table)
        for page in unit.pages:
            self._publisher.publish(page)
        saved: list[Cursor] = []

        def record(token: str) -> Cursor:
            saved.append(self._moved(unit, token))
            return saved[0]

        # A heartbeat repeats the old cursor under a newer time: no image and no snapshot moves, so nothing is flushed.
        flush = (lambda: self.cursor.token) if unit.heartbeat else self._flush
        self._publisher.commit(flush, record, lambda: self._check_topics(unit.tables.values()))
        self._report(self.cursor, saved[0])
        self.cursor = saved[0]
        metrics.CURSORS.inc()
        if unit.pages:
            metrics.PUBLISH_SECONDS.observe(time.monotonic() - began)

    def _moved(self, unit: Unit, token: str) -> Cursor:
        tables = {
            name: published(
                table,
                self.cursor.tables.get(name),
                next_offsets=self._publisher.next_offsets(table.topic),
                known=unit.known_by.get(name, NOTHING_KNOWN),
                held_back=self._publisher.held_back(table.topic),
            )
            for name, table in unit.tables.items()
        }
        return Cursor(capture=self.cursor.capture, token=token, tables=tables)

    def _flush(self) -> str:
        token = self._lease.flush(published=self.cursor.token)
        self._tokens.append(token)
        return token

    def _report(self, before: Cursor, after: Cursor) -> None:
        for name in before.tables.keys() - after.tables.keys():
            metrics.WATERMARK.remove(name)
        for name, table in after.tables.items():
            if table.watermark is not None:
                metrics.WATERMARK.labels(name).set(table.watermark.time.timestamp())
            if table.complete and not _was_complete(before.tables.get(name)):
                log.info("snapshot_complete", table=name)


def _was_complete(table: TableCursor | None) -> bool:
    return table is not None and table.complete
