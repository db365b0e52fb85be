"""The capture's loop: poll → publish → save the cursor, with the chunks of first snapshots between the polls."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from cdc import metrics
from cdc.change import Page
from cdc.cursor import Cursor
from cdc.cursors import read_cursors
from cdc.errors import CaptureError
from cdc.lease import Lease
from cdc.progress import begun, chunked, polled
from cdc.publisher import Publisher
from cdc.sweep import living_keys
from cdc.tables import CapturedTable
from cdc.topics import CHANGELOG_CONFIG, end_offsets, ensure_topic
from cdc.triggers import Chunk, Found, Round, Snapshots, TriggerSource
from cdc.wire import topic_name
from runtime.health import Health
from runtime.settings import CdcSettings
from runtime.stop import Stop

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0
"""The cursor is written at least so often, so that freshness is known on an idle system, too."""


_START_ANEW = (
    "run viewkeeper-cdc detach {table}, delete the topic, run viewkeeper-cdc attach {table}, "
    "and rebuild the views that read it"
)


class Capture:
    """One leader's work, from a cursor that was read back; thrown away after any error."""

    def __init__(
        self,
        settings: CdcSettings,
        *,
        source: TriggerSource,
        lease: Lease,
        publisher: Publisher,
        admin: AdminClient,
        cursors: Mapping[str, Cursor],
        health: Health,
        stop: Stop,
    ) -> None:
        self._settings = settings
        self._source = source
        self._lease = lease
        self._publisher = publisher
        self._admin = admin
        self._health = health
        self._stop = stop
        self._tables: tuple[CapturedTable, ...] = ()
        self._saved_at = float("-inf")
        self.cursor = cursors.get(settings.cdc_name) or Cursor(capture=settings.cdc_name, token="", tables={})

    def watch(self, attached: Sequence[CapturedTable], wanted: Sequence[CapturedTable]) -> None:
        """Capture the `wanted` ones of the tables that are `attached` now; a detached one leaves the cursor."""
        for table in wanted:
            if table not in self._tables:
                self._take_up(table)
        names = {str(table.name) for table in attached}
        kept = {name: entry for name, entry in self.cursor.tables.items() if name in names}
        self.cursor = replace(self.cursor, tables=kept)
        self._tables = tuple(wanted)

    def turn(self) -> bool:
        """Publish one round and, while a snapshot is incomplete, one chunk; return whether more is waiting."""
        began = time.monotonic()
        previous = {
            table.name: self.cursor.tables[str(table.name)].snapshot
            for table in self._tables
            if str(table.name) in self.cursor.tables
        }
        with self._source.round(self._tables, previous) as round_:
            self._check_history(round_.tokens)
            for page in self._pages(round_, previous):
                self._publisher.publish(page)
                self._commit_part(self._settings.cdc_chunk_rows)
                self._alive()
                if self._stop.requested:
                    self._publisher.abort()
                    return False
        fresh = [table for table in round_.tables if table.name not in previous]
        if round_.found or fresh:
            self._save_round(round_, fresh)
            metrics.ROUND_SECONDS.observe(time.monotonic() - began)
        elif began - self._saved_at >= HEARTBEAT_SECONDS:
            self._save_heartbeat(round_)
        self._alive()
        return self._chunk()

    def published_snapshot(self, table: CapturedTable) -> str | None:
        """Return the snapshot up to which Kafka has committed a table's changes, if it has any."""
        entry = self.cursor.tables.get(str(table.name))
        return entry.snapshot if entry else None

    @property
    def complete(self) -> bool:
        """Whether the snapshot of every table is complete."""
        return all(
            str(table.name) in self.cursor.tables and self.cursor.tables[str(table.name)].complete
            for table in self._tables
        )

    def _take_up(self, table: CapturedTable) -> None:
        topic = self._topic(table)
        count = ensure_topic(
            self._admin, self._settings, topic, partitions=self._settings.topic_partitions, config=CHANGELOG_CONFIG
        )
        ends = end_offsets(self._admin, topic, count, isolation=IsolationLevel.READ_UNCOMMITTED)
        entry = self.cursor.tables.get(str(table.name))
        if entry is not None and entry.attachment == table.attachment and entry.topic == topic:
            if len(entry.next_offsets) != count:
                raise CaptureError(
                    f"topic {topic} has {count} partitions, and had {len(entry.next_offsets)}: keys would change their "
                    f"partition; {_START_ANEW.format(table=table.name)}"
                )
            if any(end < known for end, known in zip(ends, entry.next_offsets, strict=True)):
                raise CaptureError(
                    f"topic {topic} holds less than was published to it: it was deleted and made anew, or Kafka lost "
                    f"records; {_START_ANEW.format(table=table.name)}"
                )
            self._publisher.know(topic, entry.next_offsets)
            return
        self._demand_sole_writer(table, topic)
        if any(ends):
            raise CaptureError(
                f"topic {topic} has records, but the cursor knows nothing of this attachment of {table.name}: rows "
                f"deleted meanwhile would stay in it for ever; {_START_ANEW.format(table=table.name)}"
            )
        self.cursor.tables.pop(str(table.name), None)
        self._publisher.know(topic, ends)

    def _demand_sole_writer(self, table: CapturedTable, topic: str) -> None:
        # Read again: another capture may have begun with this table since this session did.
        for name, cursor in read_cursors(self._admin, self._settings, self._stop).items():
            if name != self.cursor.capture and any(entry.topic == topic for entry in cursor.tables.values()):
                raise CaptureError(f"topic {topic} is written by capture {name}: detach {table.name} from one of them")

    def _check_history(self, tokens: tuple[str, str]) -> None:
        if self.cursor.token and self.cursor.token not in tokens:
            raise CaptureError(
                "the source has another history than the cursor: its mark is not the one that the newest cursor was "
                "published after. Either the database was restored or promoted with loss, or Kafka was set back, or "
                f"another database is captured under the same name, {self.cursor.capture}. In the last case give one "
                "of them another VIEWKEEPER_CDC_NAME and VIEWKEEPER_TOPIC_PREFIX; else begin anew under another "
                "VIEWKEEPER_TOPIC_PREFIX, and rebuild the views from there"
            )

    def _pages(self, round_: Round, previous: Snapshots) -> Iterator[Page]:
        for found in round_.found:
            if found.truncated or found.records > self._settings.cdc_chunk_rows:
                # Its first page can take minutes, and a Kafka transaction must not stay open for so long.
                self._commit_part(1)
            yield from self._source.pages(round_, found, previous)
            if found.truncated:
                yield from self._swept(round_, found)

    def _swept(self, round_: Round, found: Found) -> Iterator[Page]:
        """After a TRUNCATE, which logs no keys: look up every key that the topic holds."""
        topic = self._topic(found.table)
        known = self.cursor.tables[str(found.table.name)].next_offsets
        log.info("ghost_sweep", table=str(found.table.name), reason="TRUNCATE")
        for keys in living_keys(self._settings, topic, known, batch_keys=self._settings.cdc_chunk_rows):
            yield self._source.images(round_, found.table, keys)

    def _commit_part(self, least_records: int) -> None:
        """Commit a part of the round, without a cursor, if so many records are in the open Kafka transaction."""
        if self._publisher.records >= least_records:
            self._publisher.commit(self._flush, None)

    def _save_round(self, round_: Round, fresh: Sequence[CapturedTable]) -> None:
        def moved(token: str) -> Cursor:
            known = begun(
                replace(self.cursor, token=token),
                fresh,
                topic=self._topic,
                snapshot=round_.snapshot,
                next_offsets=self._publisher.next_offsets,
            )
            return polled(
                known,
                round_.tables,
                time=round_.time,
                snapshot=round_.snapshot,
                next_offsets=self._publisher.next_offsets,
            )

        self._save(self._flush, moved)

    def _save_heartbeat(self, round_: Round) -> None:
        # The old cursor and token under a newer time: no image and no snapshot moves, so nothing need be flushed.
        idle = polled(
            self.cursor, round_.tables, time=round_.time, snapshot=None, next_offsets=self._publisher.next_offsets
        )
        self._save(lambda: idle.token, lambda _token: idle)

    def _chunk(self) -> bool:
        """Publish the next chunk of the first table whose snapshot is incomplete; return whether there was one."""
        for table in self._tables:
            entry = self.cursor.tables.get(str(table.name))
            if entry is None or entry.complete:
                continue
            chunk = self._source.chunk(table, entry.resume_after)
            if chunk is None:
                continue
            self._save_chunk(table, chunk)
            return True
        return False

    def _save_chunk(self, table: CapturedTable, chunk: Chunk) -> None:
        def moved(token: str) -> Cursor:
            known = replace(self.cursor, token=token)
            return chunked(known, table, end=chunk.end, next_offsets=self._publisher.next_offsets)

        self._publisher.publish(chunk.page)
        self._save(self._flush, moved)
        if chunk.end is None:
            log.info("snapshot_complete", table=str(table.name))

    def _save(self, flush: Callable[[], str], cursor: Callable[[str], Cursor]) -> None:
        saved: list[Cursor] = []

        def record(token: str) -> Cursor:
            saved.append(cursor(token))
            return saved[0]

        self._publisher.commit(flush, record)
        self.cursor = saved[0]
        self._saved_at = time.monotonic()
        metrics.CURSORS.inc()
        for name, entry in self.cursor.tables.items():
            if entry.watermark is not None:
                metrics.WATERMARK.labels(name).set(entry.watermark.time.timestamp())

    def _flush(self) -> str:
        return self._lease.flush(published=self.cursor.token)

    def _alive(self) -> None:
        self._lease.progress()
        self._health.beat()

    def _topic(self, table: CapturedTable) -> str:
        return topic_name(self._settings.topic_prefix, table.name)
