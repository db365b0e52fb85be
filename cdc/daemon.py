"""The capture as a daemon: wait for the lease, lead until a stop or an error."""

from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial

import structlog

from cdc import metrics
from cdc.ahead import Ahead
from cdc.capture import Capture
from cdc.cursor import Cursor
from cdc.cursors import read_cursors
from cdc.encoding import Encoding
from cdc.encodings import encoding_of
from cdc.errors import CatalogChanged
from cdc.publisher import Publisher
from cdc.reading import Reader
from cdc.sources import OpenSource, open_source
from cdc.tables import CapturedTable
from cdc.taking_up import TakingUp
from cdc.topics import CURSOR_CONFIG, ensure_topic
from cdc.wire import cursor_topic_name
from runtime.errors import RetryableError
from runtime.health import Health
from runtime.kafka import admin, check_options, check_reachable, producer
from runtime.kafka import translated as kafka_translated
from runtime.postgres import ObjectMissing, cancel
from runtime.settings import CdcSettings
from runtime.stop import Stop

log = structlog.get_logger()

TAKE_SECONDS = 0.25
"""So often the lease, the stop and the change logs are looked at while there is nothing to publish."""
_INIT_SECONDS = 30.0


def run_session(settings: CdcSettings, stop: Stop, health: Health) -> None:
    """Run one session of the capture: connect, win the lease, lead; ends at a stop or at the first error."""
    health.not_ready("connecting")
    try:
        _run(settings, stop, health)
    except RetryableError as error:
        health.not_ready(f"to be tried again: {error}")
        raise


def _run(settings: CdcSettings, stop: Stop, health: Health) -> None:
    # Also a standby's, which speaks to no broker.
    check_options(settings)
    with open_source(settings) as opened, closing(encoding_of(settings)) as encoding:
        lease = opened.lease

        def waiting() -> None:
            # Those of before are another's to measure; while the same process tries again, it is good to see them age.
            metrics.WATERMARK.clear()
            health.beat()
            health.ready("standby: another process is the leader")

        if not lease.win(stop, waiting):
            return
        try:
            metrics.LEADER.set(1)
            with lease.kept(health.beat, opened.interrupt):
                _lead(settings, stop, health, opened, encoding)
        except ObjectMissing as error:
            # Altered or detached in the middle of a poll: the next session looks at the catalog and says what is wrong.
            raise CatalogChanged(f"a table was altered or detached meanwhile: {error}") from error
        finally:
            metrics.LEADER.set(0)
            # Without the connection there is nothing to release: the lease runs out.
            with suppress(RetryableError):
                lease.release()


def _lead(settings: CdcSettings, stop: Stop, health: Health, opened: OpenSource, encoding: Encoding) -> None:
    health.not_ready("reading the cursor back")
    client = admin(settings, name="viewkeeper-cdc-admin")
    check_reachable(client, settings)
    ensure_topic(client, settings, cursor_topic_name(settings.topic_prefix), partitions=1, config=CURSOR_CONFIG)
    transactional_id = f"{settings.topic_prefix}.{settings.cdc_name}"
    sender = producer(settings, transactional_id=transactional_id, name="viewkeeper-cdc")
    with kafka_translated("Kafka, init of transactions"):
        sender.init_transactions(_INIT_SECONDS)
    cursors = read_cursors(client, settings, stop)
    cursor = cursors.get(settings.cdc_name) or Cursor(capture=settings.cdc_name, token="", tables={})
    taking_up = TakingUp(settings, client, encoding, lambda: read_cursors(client, settings, stop))
    publisher = Publisher(
        sender,
        encoding,
        prefix=settings.topic_prefix,
        capture=settings.cdc_name,
        limits=taking_up.limits,
        hold_back=settings.cdc_on_oversize_row == "hold_back",
    )
    capture = Capture(cursor, lease=opened.lease, publisher=publisher, check_topics=taking_up.check)
    reader = Reader(settings, opened.source, taking_up, cursor, opened.handover)

    with Ahead(reader.units, interrupt=partial(cancel, opened.reading)) as units:
        while not stop.requested:
            unit = units.take(TAKE_SECONDS)
            if unit is not None:
                capture.save(unit)
                reader.told(capture.cursor.tables)
                _tell(health, capture.cursor, reader.tables)
            opened.lease.progress(reader.turned_at)
            opened.keep(reader.tables, capture.cursor)


def _tell(health: Health, cursor: Cursor, tables: Sequence[CapturedTable]) -> None:
    if not all(str(table.name) in cursor.tables and cursor.tables[str(table.name)].complete for table in tables):
        health.not_ready("leading; a snapshot is being read")
    else:
        health.ready("leading" if tables else "leading; no table is attached")
