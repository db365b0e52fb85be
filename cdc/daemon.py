"""The capture as a daemon: wait for the lease, lead until a stop or an error."""

import time
from contextlib import closing, suppress

import psycopg
import structlog

from cdc import metrics
from cdc.capture import Capture
from cdc.cursors import read_cursors
from cdc.errors import CatalogChanged
from cdc.lease import Lease
from cdc.pruning import prune
from cdc.publisher import Publisher
from cdc.tables import CapturedTable, captured_tables, check_source, selected
from cdc.topics import CURSOR_CONFIG, ensure_topic
from cdc.triggers import SESSION, TriggerSource
from cdc.wire import cursor_topic_name
from runtime.errors import RetryableError
from runtime.health import Health
from runtime.kafka import admin, check_reachable, producer
from runtime.kafka import translated as kafka_translated
from runtime.postgres import ObjectMissing, connect, describe, translated
from runtime.settings import CdcSettings
from runtime.stop import Stop

log = structlog.get_logger()

LOOK_SECONDS = 1.0
PRUNE_SECONDS = 2.0
_INIT_SECONDS = 30.0


def run_session(settings: CdcSettings, stop: Stop, health: Health) -> None:
    """Run one session of the capture: connect, win the lease, lead; ends at a stop or at the first error."""
    where = describe(settings.source_url)
    health.not_ready("connecting")
    name = f"viewkeeper-cdc {settings.cdc_name}"
    with (
        closing(connect(settings.source_url, name=name, settings=SESSION)) as reading,
        closing(connect(settings.source_url, name=f"{name} mark", settings=SESSION)) as marking,
    ):
        with translated(where):
            check_source(marking, where)
        lease = Lease(marking, settings.cdc_name, where=where, lease_seconds=settings.cdc_lease_seconds)

        def waiting() -> None:
            health.beat()
            health.ready("standby: another process is the leader")

        if not lease.win(stop, waiting):
            return
        try:
            metrics.LEADER.set(1)
            with lease.kept(health.beat):
                _lead(settings, stop, health, reading, marking, lease)
        except ObjectMissing as error:
            # Altered or detached in the middle of a poll: the next session looks at the catalog and says what is wrong.
            raise CatalogChanged(str(error)) from error
        finally:
            metrics.LEADER.set(0)
            # Without the connection there is nothing to release: the lease runs out.
            with suppress(RetryableError):
                lease.release()


def _lead(
    settings: CdcSettings,
    stop: Stop,
    health: Health,
    reading: psycopg.Connection,
    marking: psycopg.Connection,
    lease: Lease,
) -> None:
    health.not_ready("reading the cursor back")
    where = describe(settings.source_url)
    client = admin(settings, name="viewkeeper-cdc-admin")
    check_reachable(client, settings)
    ensure_topic(client, settings, cursor_topic_name(settings.topic_prefix), partitions=1, config=CURSOR_CONFIG)
    transactional_id = f"{settings.topic_prefix}.{settings.cdc_name}"
    sender = producer(settings, transactional_id=transactional_id, name="viewkeeper-cdc")
    with kafka_translated("Kafka, init of transactions"):
        sender.init_transactions(_INIT_SECONDS)
    capture = Capture(
        settings,
        source=TriggerSource(reading, settings.cdc_name, where=where, page_rows=settings.cdc_chunk_rows),
        lease=lease,
        publisher=Publisher(sender, prefix=settings.topic_prefix, capture=settings.cdc_name),
        admin=client,
        cursors=read_cursors(client, settings, stop),
        health=health,
        stop=stop,
    )
    looked_at = pruned_at = float("-inf")
    tables: tuple[CapturedTable, ...] = ()
    while not stop.requested:
        began = time.monotonic()
        if began - looked_at >= LOOK_SECONDS:
            tables, looked_at = _look(settings, marking, capture, where), began
        more = capture.turn()
        if began - pruned_at >= PRUNE_SECONDS:
            _prune(marking, capture, tables, where)
            pruned_at = began
        if capture.complete:
            health.ready("leading" if tables else "leading; no table is attached")
        else:
            health.not_ready("leading; a snapshot is being read")
        if not more:
            stop.wait(max(0.0, settings.cdc_poll_seconds - (time.monotonic() - began)))


def _look(
    settings: CdcSettings, marking: psycopg.Connection, capture: Capture, where: str
) -> tuple[CapturedTable, ...]:
    with translated(where):
        attached = captured_tables(marking, settings.cdc_name)
    tables = selected(attached, settings.cdc_tables)
    capture.watch(attached, tables)
    return tables


def _prune(marking: psycopg.Connection, capture: Capture, tables: tuple[CapturedTable, ...], where: str) -> None:
    for table in tables:
        published = capture.published_snapshot(table)
        if published is not None:
            prune(marking, table, published_snapshot=published, where=where)
