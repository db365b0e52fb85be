"""What a session needs of its source: who reads it, whose lease makes a leader, and who tidies up."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
import structlog

from cdc.cursor import Cursor
from cdc.errors import CaptureError
from cdc.handover import Handover
from cdc.housekeeping import Housekeeping
from cdc.kafka_lease import KafkaLease
from cdc.kafka_requests import REQUESTS_CONFIG, RequestTopic
from cdc.lease import Lease, RowLease
from cdc.masks import demand_key, mask_session
from cdc.polling import Intervals
from cdc.session import SESSION
from cdc.source import AttachedSource, Source
from cdc.statements import PARTS
from cdc.table_options import TableOptions, named_tables, table_options
from cdc.tables import CapturedTable, SourceKind, captured_tables, check_source, selected
from cdc.timestamp import TimestampSource
from cdc.timestamp_sql import CLUSTER, DATABASE
from cdc.timestamp_tables import still_attached
from cdc.topics import CURSOR_CONFIG, ensure_topic
from cdc.triggers import TriggerSource
from cdc.wal import WalSource
from cdc.wire import cursor_topic_name, requests_topic_name
from runtime.errors import ConfigurationError
from runtime.kafka import admin, check_reachable
from runtime.postgres import cancel, connect, describe, translated
from runtime.settings import CaptureSettings, CdcSettings

log = structlog.get_logger()

MEBIBYTE = 1024 * 1024
PAGE_KEYS = 20_000


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source for one session. `reading` is the connection that `source` waits on; `keep` is called now and then.

    `interrupt` ends, from another thread, what `keep` waits for. `handover` is there where tables may come from another
    source.
    """

    source: Source
    handover: Handover | None
    lease: Lease
    reading: psycopg.Connection
    keep: Callable[[Sequence[CapturedTable], Cursor], None]
    interrupt: Callable[[], None]


@contextmanager
def open_source(settings: CdcSettings) -> Iterator[OpenSource]:
    """Connect to what `VIEWKEEPER_CDC_SOURCE` asks for.

    Raises ConfigurationError or CaptureError, with what to do, if the database cannot be captured so.
    """
    with _OPENERS[settings.cdc_source](settings) as opened:
        yield opened


@contextmanager
def _open_attached(settings: CdcSettings) -> Iterator[OpenSource]:
    where = describe(settings.source_url)
    name = f"viewkeeper-cdc {settings.cdc_name}"
    session = SESSION | mask_session(settings.cdc_mask_key)
    with (
        closing(connect(settings.source_url, name=name, settings=session)) as reading,
        closing(connect(settings.source_url, name=f"{name} mark", settings=SESSION)) as marking,
        # Not the mark's, which the lease's thread uses in between.
        closing(connect(settings.source_url, name=f"{name} tidy", settings=SESSION)) as tidying,
    ):
        with translated(where):
            check_source(marking, where)
            _check_selection(settings, marking)
        part_limit_bytes = settings.cdc_log_limit_mb * MEBIBYTE // len(PARTS)
        kind = SourceKind(settings.cdc_source)
        remake = settings.cdc_on_lost_slot == "snapshot"
        lease = RowLease(marking, settings.cdc_name, where=where, lease_seconds=settings.cdc_lease_seconds)
        over = partial(
            _attached_over,
            settings,
            reading,
            where=where,
            leader=lease.leader,
            page_keys=settings.cdc_chunk_rows,
            remake=remake,
        )
        left = over(SourceKind.WAL if kind is SourceKind.TRIGGERS else SourceKind.TRIGGERS)
        with closing(over(kind)) as source:
            yield OpenSource(
                source=source,
                handover=Handover(left, source),
                lease=lease,
                reading=reading,
                keep=Housekeeping(
                    tidying,
                    settings.cdc_name,
                    lease.leader,
                    kind,
                    where=where,
                    part_limit_bytes=part_limit_bytes,
                ).keep,
                interrupt=partial(cancel, tidying),
            )


def _check_selection(settings: CdcSettings, connection: psycopg.Connection) -> None:
    """Raise ConfigurationError where a leader would, for what is selected: a standby is to tell before it is one."""
    try:
        tables = captured_tables(connection, settings.cdc_name)
    except CaptureError:
        # That a table was altered is for the leader to tell, which may first have to let its writers go on.
        return
    wanted = selected(tables, named_tables(settings.cdc_tables))
    demand_key([table.name for table in wanted if table.is_masked], settings.cdc_mask_key)


@contextmanager
def _open_timestamp(settings: CdcSettings) -> Iterator[OpenSource]:
    where = describe(settings.source_url)
    options = polled_options(settings.cdc_tables)
    demand_key([one.name for one in options if one.masks], settings.cdc_mask_key)
    name = f"viewkeeper-cdc {settings.cdc_name}"
    client = admin(settings, name="viewkeeper-cdc-requests")
    session = SESSION | mask_session(settings.cdc_mask_key)
    with (
        closing(connect(settings.source_url, name=name, settings=session)) as reading,
        # Not the reader's, which may be in the middle of a page.
        closing(connect(settings.source_url, name=f"{name} flush", settings=SESSION)) as flushing,
        closing(RequestTopic(settings, client, settings.cdc_name)) as requests,
    ):
        check_reachable(client, settings)
        token = source_token(flushing, where)
        _warn_of_replica(flushing, where)
        _warn_of_attached(flushing, settings.cdc_name, where)
        for topic, config in (
            (cursor_topic_name(settings.topic_prefix), CURSOR_CONFIG),
            (requests_topic_name(settings.topic_prefix), REQUESTS_CONFIG),
        ):
            ensure_topic(client, settings, topic, partitions=1, config=config)
        lease = KafkaLease(settings, flushing, where=where, token=token)
        try:
            yield OpenSource(
                source=TimestampSource(
                    reading,
                    settings.cdc_name,
                    where=where,
                    token=token,
                    options=options,
                    intervals=Intervals.of(settings),
                    requests=requests,
                ),
                handover=None,
                lease=lease,
                reading=reading,
                keep=lambda _tables, _cursor: None,
                interrupt=lambda: None,
            )
        finally:
            lease.release()


def polled_options(wanted: str) -> tuple[TableOptions, ...]:
    """Return the tables that the timestamp source polls; raise ConfigurationError if none is named."""
    options = table_options(wanted)
    if not options:
        raise ConfigurationError(
            "VIEWKEEPER_CDC_TABLES is missing: VIEWKEEPER_CDC_SOURCE=timestamp captures the tables of a .toml file, "
            "each with its mode; nothing is attached in the database"
        )
    return options


def source_token(connection: psycopg.Connection, where: str) -> str:
    """Return what tells the database from others, as far as its role may know."""
    with translated(where):
        (found,) = connection.execute(DATABASE)
        database, may_ask = found
        cluster = connection.execute(CLUSTER).fetchone() if may_ask else None
    return f"{cluster[0] if cluster else ''}/{database}"


def _warn_of_replica(connection: psycopg.Connection, where: str) -> None:
    with translated(where):
        is_replica = connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    if is_replica:
        log.warning("replica", source=where, reason="it shows what it has replayed: watermarks are estimates by that")


def _warn_of_attached(connection: psycopg.Connection, capture: str, where: str) -> None:
    with translated(where):
        for left in still_attached(connection, capture):
            log.warning("still_attached", reason=left)


def source_over(settings: CaptureSettings, reading: psycopg.Connection, *, where: str) -> AttachedSource:
    """Return the source that `VIEWKEEPER_CDC_SOURCE` asks for, over a connection, for reading rows and logging keys."""
    return _attached_over(settings, reading, SourceKind(settings.cdc_source), where=where)


def _attached_over(
    settings: CaptureSettings,
    reading: psycopg.Connection,
    kind: SourceKind,
    *,
    where: str,
    leader: str = "",
    page_keys: int = PAGE_KEYS,
    remake: bool = False,
) -> AttachedSource:
    if kind is SourceKind.TRIGGERS:
        return TriggerSource(reading, settings.cdc_name, where=where, leader=leader)
    return WalSource(
        reading,
        settings.cdc_name,
        url=settings.source_url,
        where=where,
        page_keys=page_keys,
        remake=remake,
    )


_OPENERS = {"triggers": _open_attached, "wal": _open_attached, "timestamp": _open_timestamp}
