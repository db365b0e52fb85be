"""The status of a capture: what is attached, how far it has come, what a person has to see to.

The structs here and their fields are the JSON of `viewkeeper-cdc status --json`; names are kept, and new ones may come.
Times are ISO 8601, sizes bytes, spans seconds; what is not known is null.
"""

from dataclasses import dataclass
from datetime import datetime

import msgspec
from confluent_kafka.admin import AdminClient

from cdc.cursor import Cursor, TableCursor
from cdc.outside import outside
from cdc.progress import Phase, phase
from cdc.slots import SlotState
from cdc.snapshot_progress import SnapshotProgress, SweepProgress, snapshot_progress, sweep_progress
from cdc.status_source import (
    AttachedTable,
    OpenTransaction,
    RequestStatus,
    StatusSource,
)
from cdc.status_topics import TopicStatus, topic_states
from cdc.table_options import Mode
from cdc.tables import SourceKind
from cdc.watching import CursorTail, Leader
from cdc.wire import cursor_topic_name
from runtime.kafka import BrokerUnavailable, admin, check_reachable
from runtime.settings import StatusSettings
from runtime.words import duration_words

OLD_WATERMARK_SECONDS = 10.0
FULL_LOG = 0.5
"""From this part of its limit on, a change log is for a person to see to."""


class ChangeLogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A table's change log: `bytes` is both parts with their indexes.

    Logging stops, and the table is to be read anew, when `filling_bytes`, the rows of the part that writers fill, reach
    `limit_bytes`. `records_waiting` is not covered by the cursor yet, counted up to a million; null while there is no
    position to count from.
    """

    bytes: int
    filling_bytes: int
    limit_bytes: int
    records_waiting: int | None


class TableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A table that is attached, or polled: then it has a `mode`. Only one with triggers has a level and a change log.

    `moving_to` is the source that the capture takes it over for when it is started with that one.
    `columns` are those that may leave the database, null for all; `masks` leave it as a keyed hash. `phase` is waiting,
    reading, sweeping or complete, null until the capture has taken the table up; `snapshot` is there while it is
    reading, `sweep` while it is sweeping. `freshness_seconds` is the source's clock minus `watermark_time`; `uncertain`
    says that the clock is behind a watermark. `held_back` has the keys of rows too large for the topic.
    """

    table: str
    kind: str
    level: str | None
    mode: str | None
    moving_to: str | None
    columns: tuple[str, ...] | None
    masks: tuple[str, ...]
    phase: str | None
    snapshot: SnapshotProgress | None
    sweep: SweepProgress | None
    watermark_time: datetime | None
    freshness_seconds: float | None
    uncertain: bool
    change_log: ChangeLogStatus | None
    topic: TopicStatus | None
    held_back: tuple[str, ...]


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The replication slot of a capture that reads the WAL.

    The server keeps `held_bytes` of WAL for it; `wal_status` is pg_replication_slots's. Both are null where the slot is
    gone. `trouble` says in words why it cannot be read from, null if it can.
    """

    name: str
    held_bytes: int | None
    wal_status: str | None
    trouble: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A capture and what belongs to it; `needs_a_person` says in words what somebody has to see to, empty mostly.

    `slot` is there when tables are read from the WAL, or when one was left.
    `broker_trouble` says in words why Kafka cannot be asked, null if it can: without it cursor and topics are unknown.
    `token_known` tells whether the source is the one that the cursor was published from; null while there is no cursor.
    """

    capture: str
    source: str
    source_time: datetime
    topic_prefix: str
    encoding: str
    leader: Leader
    broker_trouble: str | None
    token_known: bool | None
    slot: SlotStatus | None
    tables: tuple[TableStatus, ...]
    cursor_topic: TopicStatus | None
    requests: tuple[RequestStatus, ...]
    oldest_transaction: OpenTransaction | None
    needs_a_person: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kafka:
    """What Kafka has of a capture: its cursor, and `client` to ask for topics; or the `trouble` that it has instead."""

    client: AdminClient | None = None
    cursor: Cursor | None = None
    trouble: str | None = None


def read_status(settings: StatusSettings) -> Status:
    """Look at source and broker; takes up to three seconds when no leader is alive, ten more without the broker.

    Raises DatabaseUnavailable or ConfigurationError when one of them cannot be asked, and BrokerUnavailable where the
    capture has its lease in Kafka.
    """
    client = admin(settings, name="viewkeeper-cdc-status")
    with outside(settings, client, name="viewkeeper-cdc status") as capture:
        leader = capture.leader.settled()
        kafka = _ask_kafka(settings, client)
        cursor = kafka.cursor
        # A leader that is alive has compared the tokens, and is past the one that was read here.
        token_known = None if cursor is None else leader.alive or cursor.token in capture.leader.tokens
        return _status(settings, capture.status, kafka, leader, token_known)


def _ask_kafka(settings: StatusSettings, client: AdminClient) -> _Kafka:
    try:
        check_reachable(client, settings)
        with CursorTail(client, settings, settings.cdc_name) as tail:
            return _Kafka(client, tail.newest())
    except BrokerUnavailable as error:
        return _Kafka(trouble=str(error))


def _status(
    settings: StatusSettings, source: StatusSource, kafka: _Kafka, leader: Leader, token_known: bool | None
) -> Status:
    now = source.now()
    attached = source.tables()
    cursor_topic = cursor_topic_name(settings.topic_prefix)
    entries = {table.name: _entry(table, kafka.cursor) for table in attached}
    names = {table.name: f"{settings.topic_prefix}.{table.name}" for table in attached}
    topics = topic_states(kafka.client, [cursor_topic, *names.values()]) if kafka.client is not None else {}
    tables = tuple(
        _table(
            table,
            entries[table.name],
            topics.get(names[table.name]),
            now=now,
            is_running=leader.alive,
            records_waiting=source.records_waiting(table, entries[table.name]),
        )
        for table in attached
    )
    is_slot_used = any(SourceKind.WAL in (table.source, table.moving_to) for table in attached)
    state = source.slot()
    slot = _slot(state) if state is not None and (is_slot_used or state.exists) else None
    needs = [
        *_capture_needs(settings.cdc_name, leader, token_known),
        *_slot_needs(slot, is_used=is_slot_used),
        *source.left(),
        *source.gone(),
    ]
    if kafka.trouble is not None:
        needs.append(f"{kafka.trouble}; until it answers nothing is published, and changes wait in the source")
    for status in tables:
        needs.extend(_log_needs(status))
        if kafka.trouble is None:
            needs.extend(_table_needs(status, entries[status.table]))
    return Status(
        capture=settings.cdc_name,
        source=settings.cdc_source,
        source_time=now,
        topic_prefix=settings.topic_prefix,
        encoding=settings.encoding,
        leader=leader,
        broker_trouble=kafka.trouble,
        token_known=token_known,
        slot=slot,
        tables=tables,
        cursor_topic=topics.get(cursor_topic),
        requests=tuple(source.requests(kafka.cursor)),
        oldest_transaction=source.oldest_transaction(),
        needs_a_person=tuple(needs),
    )


def _entry(table: AttachedTable, cursor: Cursor | None) -> TableCursor | None:
    """Return a table's part of the cursor, unless that is of an earlier attachment."""
    entry = cursor.tables.get(table.name) if cursor else None
    return entry if entry and entry.attachment == table.attachment else None


def _table(
    table: AttachedTable,
    entry: TableCursor | None,
    topic: TopicStatus | None,
    *,
    now: datetime,
    is_running: bool,
    records_waiting: int | None,
) -> TableStatus:
    watermark = entry.watermark if entry else None
    return TableStatus(
        table=table.name,
        kind=table.kind,
        level=table.level,
        mode=table.mode,
        moving_to=table.moving_to,
        columns=None if table.columns is None else tuple(table.columns),
        masks=tuple(table.masks),
        phase=phase(entry).name.lower() if entry else None,
        snapshot=snapshot_progress(entry, total_rows=table.total_rows, now=now, is_running=is_running)
        if entry
        else None,
        sweep=sweep_progress(entry) if entry else None,
        watermark_time=watermark.time if watermark else None,
        freshness_seconds=max((now - watermark.time).total_seconds(), 0.0) if watermark else None,
        uncertain=watermark is not None and watermark.uncertain,
        change_log=_change_log(table, records_waiting),
        topic=topic,
        held_back=entry.held_back if entry else (),
    )


def _change_log(table: AttachedTable, records_waiting: int | None) -> ChangeLogStatus | None:
    if table.log_bytes is None or table.log_filling_bytes is None or table.log_limit_bytes is None:
        return None
    return ChangeLogStatus(
        bytes=table.log_bytes,
        filling_bytes=table.log_filling_bytes,
        limit_bytes=table.log_limit_bytes,
        records_waiting=records_waiting,
    )


def _capture_needs(capture: str, leader: Leader, token_known: bool | None) -> list[str]:
    needs = []
    if leader.name is None:
        needs.append(f"capture {capture} has no leader; run: viewkeeper-cdc run")
    elif not leader.alive:
        needs.append(f"capture {capture}: its leader {leader.name} gives no sign of life; is viewkeeper-cdc run up?")
    if token_known is False:
        needs.append(
            "the source's mark is not the cursor's: the database was restored, promoted with loss, or is another one"
        )
    return needs


def _slot(state: SlotState) -> SlotStatus:
    return SlotStatus(name=state.slot, held_bytes=state.held_bytes, wal_status=state.wal_status, trouble=state.trouble)


def _slot_needs(slot: SlotStatus | None, *, is_used: bool) -> list[str]:
    if slot is not None and not is_used:
        # An attach or a detach that was killed leaves one.
        keeps = f"replication slot {slot.name} is of no table, and the server keeps its WAL for it"
        return [f"{keeps}; unless an attach is at work, drop it: SELECT pg_drop_replication_slot('{slot.name}')"]
    if slot is None or slot.trouble is None:
        return []
    return [f"{slot.trouble}; run the capture once with VIEWKEEPER_CDC_ON_LOST_SLOT=snapshot"]


def _log_needs(table: TableStatus) -> list[str]:
    log = table.change_log
    if log is None or log.filling_bytes <= FULL_LOG * log.limit_bytes:
        return []
    return [f"{table.table}: its change log is {log.filling_bytes / log.limit_bytes:.0%} full"]


def _table_needs(table: TableStatus, entry: TableCursor | None) -> list[str]:
    needs, name = list[str](), table.table
    if entry is None:
        needs.append(f"{name} is attached, and the capture has not taken it up")
    elif table.phase == Phase.WAITING.name.lower():
        needs.append(f"{name} waits to be read anew; the capture's log says why")
    if entry is not None and (table.topic is None or entry.topic_id not in ("", table.topic.topic_id)):
        needs.append(f"topic {entry.topic} was deleted or made anew; run: viewkeeper-cdc snapshot {name}")
    elif table.topic is not None and table.topic.cleanup_policy != "compact":
        needs.append(f"topic {table.topic.name} has cleanup.policy={table.topic.cleanup_policy}, and is to be compact")
    if table.held_back:
        needs.append(f"{name}: {len(table.held_back)} rows are held back, too large for their topic")
    # A table that is read as a whole has a watermark of its newest reading.
    is_moving = table.mode != Mode.BULK
    if is_moving and table.freshness_seconds is not None and table.freshness_seconds > OLD_WATERMARK_SECONDS:
        needs.append(f"{name}: its watermark is {duration_words(table.freshness_seconds)} old")
    return needs
