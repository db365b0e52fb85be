"""`viewkeeper-cdc reconcile`: one table after the other, each beside its topic."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient

from cdc.cursor import TableCursor
from cdc.encoding import Encoding
from cdc.encodings import encoding_of
from cdc.errors import CaptureError
from cdc.images import Images, open_images
from cdc.judging import CONFIRMATIONS
from cdc.kafka_requests import RequestTopic
from cdc.masks import demand_key, mask_session
from cdc.outside import outside
from cdc.partitions import is_astray, partition_of, record_of
from cdc.polling import NOTHING
from cdc.reconciling import Reconciling, Say, Tally
from cdc.records import RecordReader
from cdc.session import SESSION
from cdc.source import Source
from cdc.source_rows import SourceRows
from cdc.sources import polled_options, source_over
from cdc.status_source import StatusSource
from cdc.table_options import Mode, TableOptions, named_tables, unnamed
from cdc.tables import CapturedTable, selected
from cdc.timestamp import TimestampSource
from cdc.timestamp_tables import polled_table
from cdc.topics import end_offsets, topic_identities
from cdc.watching import CursorTail, Watch
from cdc.watermarks import Watermarks
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.kafka import admin, check_reachable
from runtime.postgres import ObjectMissing, connect, describe, translated
from runtime.settings import ReconcileSettings

_NAME = "viewkeeper-cdc reconcile"
# What is fetched ahead is most of what is in memory, and it comes compressed: little at a time, and no rest once the
# queue was full.
_FETCH = {
    "queued.max.messages.kbytes": 8 * 1024,
    "queued.min.messages": 10_000,
    "fetch.message.max.bytes": 128 * 1024,
    "fetch.queue.backoff.ms": 5,
}


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A table that was compared; `images` has the keys that were found to differ, until the next table is asked for.

    `name` returns a key's JSON, and where its record lies if no capture writes the key there.
    """

    table: TableName
    tally: Tally
    images: Images
    name: Callable[[bytes], str]


def reconcile(
    settings: ReconcileSettings, names: Sequence[TableName], *, repair: bool, wait_seconds: float, say: Say
) -> Generator[Reconciled, None, None]:
    """Compare the topics of these tables, or of all that are captured, with their tables while both are in use.

    With `repair`, keys that differ are published anew by the capture that runs. Raises ConfigurationError for a table
    that is not captured, CaptureError if no capture runs, or if a table has no watermark to compare by, and for a
    polled one that is gone: after all others are compared, unless it is asked for by name.
    """
    where = describe(settings.source_url)
    client = admin(settings, name="viewkeeper-cdc-reconcile")
    with (
        _reading(settings, client) as (source, gone),
        outside(settings, client, name=_NAME) as capture,
        CursorTail(client, settings, settings.cdc_name) as tail,
        closing(encoding_of(settings)) as encoding,
    ):
        check_reachable(client, settings)
        _demand_capture(capture.leader, settings.cdc_name)
        if not gone.keys().isdisjoint(names):
            raise next(gone[name] for name in names if name in gone)
        chosen = _chosen(source, names, settings, where)
        demand_key([table.name for table, _ in chosen if table.is_masked], settings.cdc_mask_key)
        bulk = _bulk(settings)
        comparisons = [
            _Comparison(
                settings,
                client,
                table,
                source,
                encoding,
                capture.status,
                Watermarks(
                    tail,
                    table,
                    shape,
                    wait_seconds=wait_seconds,
                    pass_seconds=settings.cdc_bulk_seconds if table.name in bulk else 0.0,
                    # What this source may have missed is what is looked for: its estimate says what it has come by.
                    takes_estimates=settings.cdc_source == "timestamp",
                ),
                # A pass reads and publishes every row, and takes long: what is unequal after one was not its doing.
                confirmations=1 if table.name in bulk else CONFIRMATIONS,
            )
            for table, shape in chosen
        ]
        # All of them first: nothing is compared if one cannot be.
        _demand_topics(client, {one.table.name: one.entry for one in comparisons})
        for one in comparisons:
            with one.made(repair=repair, wait_seconds=wait_seconds, say=say) as result:
                yield result
        if gone and not names:
            raise CaptureError("\n".join(map(str, gone.values())))


@contextmanager
def _reading(
    settings: ReconcileSettings, client: AdminClient
) -> Iterator[tuple[Source, Mapping[TableName, CaptureError]]]:
    """Give what reads the tables, and why it does not read those that are gone."""
    where = describe(settings.source_url)
    session = SESSION | mask_session(settings.cdc_mask_key)
    with closing(connect(settings.source_url, name=_NAME, settings=session)) as connection:
        if settings.cdc_source != "timestamp":
            yield source_over(settings, connection, where=where), {}
            return
        options = polled_options(settings.cdc_tables)
        gone = _gone(connection, options, where)
        with closing(RequestTopic(settings, client, settings.cdc_name)) as requests:
            source = TimestampSource(
                connection,
                settings.cdc_name,
                where=where,
                token="",
                options=[one for one in options if one.name not in gone],
                intervals=NOTHING,
                requests=requests,
            )
            yield source, gone


def _gone(
    connection: psycopg.Connection, options: Sequence[TableOptions], where: str
) -> Mapping[TableName, CaptureError]:
    """Return why polled tables cannot be compared that were dropped or renamed."""
    gone = {}
    for one in options:
        try:
            with translated(where):
                polled_table(connection, one, where=where)
        except CaptureError as error:
            gone[one.name] = error
    return gone


class _Comparison:
    """A table that can be compared, as its part of the cursor says."""

    def __init__(
        self,
        settings: ReconcileSettings,
        client: AdminClient,
        table: CapturedTable,
        source: Source,
        encoding: Encoding,
        status: StatusSource,
        watermarks: Watermarks,
        *,
        confirmations: int,
    ) -> None:
        self._settings = settings
        self._client = client
        self._source = source
        self._encoding = encoding
        self._status = status
        self._watermarks = watermarks
        self._confirmations = confirmations
        self.table = table
        self.entry = watermarks.first()
        if self.entry.encoding != settings.encoding:
            raise ConfigurationError(
                f"topic {self.entry.topic} is written with VIEWKEEPER_ENCODING={self.entry.encoding}: "
                "set that here, too"
            )

    @contextmanager
    def made(self, *, repair: bool, wait_seconds: float, say: Say) -> Iterator[Reconciled]:
        name, topic = self.table.name, self.entry.topic
        beginning = (0,) * len(self.entry.next_offsets)
        ends = end_offsets(self._client, topic, len(beginning), isolation=IsolationLevel.READ_COMMITTED)
        totals = {one.attachment: one.total_rows for one in self._status.tables()}
        rows = SourceRows(
            self._source, self._encoding, self.table, topic, now=self._status.now, wait_seconds=wait_seconds
        )
        reader = RecordReader(self._settings, topic, beginning, name="reconcile", options=_FETCH)
        with open_images() as images, closing(reader):
            one = Reconciling(
                images,
                reader,
                rows,
                self._watermarks,
                confirmations=self._confirmations,
                say=lambda words: say(f"{name}: {words}"),
            )
            try:
                one.compare(ends, total_rows=totals.get(self.table.attachment))
                if repair:
                    one.repair()
            except ObjectMissing as error:
                raise CaptureError(f"{name} was altered or detached while it was compared: run this again") from error
            yield Reconciled(name, one.tally, images, partial(_named, rows, len(beginning)))


def _named(rows: SourceRows, partitions: int, image: bytes) -> str:
    if not is_astray(image):
        return rows.name(image)
    key, partition = record_of(image)
    home = partition_of(key, partitions)
    place = "" if home == partition else f" (in partition {partition}, and belongs in {home})"
    return f"{rows.name(key)}{place}"


def _chosen(
    source: Source, names: Sequence[TableName], settings: ReconcileSettings, where: str
) -> list[tuple[CapturedTable, str]]:
    """Return the tables that are named, or all that are captured, each with the shape that it has now."""
    attached, looks = source.attached()
    known = {table.name: table for table in attached}
    for name in names:
        if name not in known:
            if settings.cdc_source == "timestamp":
                raise unnamed(name)
            raise ConfigurationError(
                f"{where}: {name} is not attached to capture {settings.cdc_name}; run: viewkeeper-cdc attach {name}"
            )
    if names:
        tables = [known[name] for name in dict.fromkeys(names)]
    elif settings.cdc_source == "timestamp":
        # Those of the setting, without any that is gone.
        tables = list(attached)
    else:
        tables = list(selected(attached, named_tables(settings.cdc_tables)))
    if not tables and settings.cdc_source != "timestamp":
        raise ConfigurationError(
            f"{where}: no table is attached to capture {settings.cdc_name}; run: viewkeeper-cdc attach TABLE…"
        )
    return [(table, looks[table.attachment].shape) for table in tables]


def _bulk(settings: ReconcileSettings) -> Set[TableName]:
    """Return the tables whose watermarks move with passes over all rows alone."""
    options = polled_options(settings.cdc_tables) if settings.cdc_source == "timestamp" else ()
    return {one.name for one in options if one.mode is Mode.BULK}


def _demand_capture(watch: Watch, capture: str) -> None:
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
