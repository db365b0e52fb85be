"""`viewkeeper-cdc reconcile`: one table after the other, each beside its topic."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient

from cdc.cursor import TableCursor
from cdc.errors import CaptureError
from cdc.images import Images, open_images
from cdc.masks import demand_key, mask_session
from cdc.reconciling import Reconciling, Say, Tally
from cdc.records import RecordReader
from cdc.session import SESSION
from cdc.source_rows import SourceRows
from cdc.status_source import STATUS_SESSION, StatusSource
from cdc.tables import CapturedTable, check_source, selected
from cdc.topics import end_offsets, topic_identities
from cdc.triggers import TriggerSource
from cdc.watching import CursorTail, LeaderWatch
from cdc.watermarks import Watermarks
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.kafka import admin, check_reachable
from runtime.postgres import ObjectMissing, connect, describe, translated
from runtime.settings import StatusSettings

_NAME = "viewkeeper-cdc reconcile"
# What is fetched ahead is most of what is in memory, and it comes compressed: little at a time, and no rest once the
# queue was full.
_FETCH = {
    "queued.max.messages.kbytes": 8 * 1024,
    "queued.min.messages": 10_000,
    "fetch.max.bytes": 1024 * 1024,
    "fetch.message.max.bytes": 128 * 1024,
    "fetch.queue.backoff.ms": 5,
}


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A table that was compared; `images` has the keys that were found to differ, until the next table is asked for."""

    table: TableName
    tally: Tally
    images: Images


def reconcile(
    settings: StatusSettings, names: Sequence[TableName], *, repair: bool, wait_seconds: float, say: Say
) -> Generator[Reconciled, None, None]:
    """Compare the topics of these tables, or of all that are captured, with their tables while both are in use.

    With `repair`, keys that differ are published anew by the capture that runs. Raises ConfigurationError for a table
    that is not attached, CaptureError if no capture runs, or if a table has no watermark to compare by.
    """
    where = describe(settings.source_url)
    client = admin(settings, name="viewkeeper-cdc-reconcile")
    session = SESSION | mask_session(settings.cdc_mask_key)
    with (
        closing(connect(settings.source_url, name=_NAME, settings=session)) as reading,
        closing(connect(settings.source_url, name=_NAME, settings=STATUS_SESSION)) as watching,
        CursorTail(client, settings, settings.cdc_name) as tail,
    ):
        with translated(where):
            check_source(reading, where)
        check_reachable(client, settings)
        _demand_capture(LeaderWatch(watching, settings.cdc_name, where=where), settings.cdc_name)
        source = TriggerSource(reading, settings.cdc_name, where=where)
        attached, looks = source.attached()
        tables = _chosen(attached, names, settings, where)
        demand_key(tables, settings.cdc_mask_key)
        followed = {
            table.name: Watermarks(tail, table, looks[table.attachment].shape, wait_seconds=wait_seconds)
            for table in tables
        }
        # All of them first: nothing is compared if one cannot be.
        entries = {name: watermarks.first() for name, watermarks in followed.items()}
        _demand_topics(client, entries)
        status = StatusSource(watching, settings.cdc_name, where=where)
        totals = {one.attachment: one.total_rows for one in status.tables()}
        for table in tables:
            entry, name = entries[table.name], table.name
            rows = SourceRows(source, table, entry.topic, now=status.now, wait_seconds=wait_seconds)
            with open_images() as images, closing(_reader(settings, entry)) as reader:
                one = Reconciling(images, reader, rows, followed[name], say=_of(table, say))
                try:
                    one.compare(_ends(client, entry), total_rows=totals.get(table.attachment))
                    if repair:
                        one.repair()
                except ObjectMissing as error:
                    raise CaptureError(
                        f"{name} was altered or detached while it was compared: run this again"
                    ) from error
                yield Reconciled(name, one.tally, images)


def _chosen(
    attached: Sequence[CapturedTable], names: Sequence[TableName], settings: StatusSettings, where: str
) -> Sequence[CapturedTable]:
    if not names:
        return selected(attached, settings.cdc_tables)
    known = {table.name: table for table in attached}
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"{where}: {name} is not attached to capture {settings.cdc_name}; run: viewkeeper-cdc attach {name}"
            )
    return [known[name] for name in dict.fromkeys(names)]


def _demand_capture(watch: LeaderWatch, capture: str) -> None:
    leader = watch.settled()
    if not leader.alive:
        found = f"its leader {leader.name} gives no sign of life" if leader.name else "none is running"
        raise CaptureError(
            f"capture {capture}: {found}, and only a running one tells how far its topics have come and repairs them; "
            "run: viewkeeper-cdc run"
        )


def _demand_topics(client: AdminClient, entries: Mapping[TableName, TableCursor]) -> None:
    found = topic_identities(client, [entry.topic for entry in entries.values()])
    for name, entry in entries.items():
        topic_id, partitions = found.get(entry.topic, ("", 0))
        if entry.topic_id not in ("", topic_id) or partitions != len(entry.next_offsets):
            raise CaptureError(
                f"topic {entry.topic} of {name} was deleted, made anew or given partitions: "
                "the log of viewkeeper-cdc run says what to do"
            )


def _reader(settings: StatusSettings, entry: TableCursor) -> RecordReader:
    beginning = (0,) * len(entry.next_offsets)
    return RecordReader(settings, entry.topic, beginning, name="reconcile", options=_FETCH)


def _ends(client: AdminClient, entry: TableCursor) -> tuple[int, ...]:
    return end_offsets(client, entry.topic, len(entry.next_offsets), isolation=IsolationLevel.READ_COMMITTED)


def _of(table: CapturedTable, say: Say) -> Say:
    return lambda words: say(f"{table.name}: {words}")
