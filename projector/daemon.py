"""The projector: batch → project → write, each batch in one transaction with its offsets."""

import time
from collections.abc import Sequence

import structlog
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from cdc.decodings import open_decoding
from cdc.wire import cursor_topic_name
from projector.consumer import CLIENT_NAME, Batch, ChangelogConsumer, open_consumer
from projector.definition import View
from projector.kept import KeptView, apply_batch, check, resume, start_offsets
from projector.metrics import AS_OF_SECONDS, BATCH_SECONDS, BATCHES, LAG_RECORDS, RECORDS_APPLIED
from projector.registry import active_versions, database_id
from projector.topics import Topic, describe_topics
from runtime.health import Health
from runtime.kafka import BrokerUnavailable, admin, check_reachable
from runtime.postgres import connect, describe, translated
from runtime.settings import ProjectorSettings
from runtime.stop import Stop

log = structlog.get_logger()

POLL_SECONDS = 0.25
"""How long a loop waits for records: also how long a stop waits for the loop."""

IDLE_WRITE_SECONDS = 1.0
"""Positions that moved without records (markers at a partition's end) are stored so often."""

MEASURE_SECONDS = 0.5
TOPICS_POLL_SECONDS = 0.5
TOPICS_CHECK_SECONDS = 30.0
SAY_AGAIN_SECONDS = 10.0

SESSION_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "client_encoding": "UTF8",
    # An instance that is paused or cut off within a transaction holds offset rows: its successor gets them soon.
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "lock_timeout": "5s",
}


class Projector:
    """Keeps the declared views in step with their topics until it is told to stop."""

    def __init__(self, settings: ProjectorSettings, views: Sequence[View], health: Health, stop: Stop) -> None:
        self._settings = settings
        self._views = views
        self._health = health
        self._stop = stop
        self._where = describe(settings.view_url)
        self._admin = admin(settings, name=CLIENT_NAME)

    def session(self) -> None:
        """Start from what is stored and apply batches until the stop; for `runtime.daemon.keep_running`."""
        self._health.not_ready("starting")
        self._health.beat()
        url = self._settings.view_url
        with (
            connect(url, name=CLIENT_NAME, settings=SESSION_SETTINGS) as connection,
            open_decoding(self._settings) as decoding,
            translated(self._where),
        ):
            kept = [
                KeptView(version, self._settings.topic_prefix, decoding)
                for version in active_versions(connection, self._views, where=self._where)
            ]
            check_reachable(self._admin, self._settings)
            names = sorted(_topic_names(kept))
            self._wait_for_topics(names)
            if self._stop.requested:
                return
            resume(connection, kept, lambda: self._describe(names))
            with open_consumer(
                self._settings,
                group=group_name(self._settings, self._views, database_id(connection)),
                cursor_topic=cursor_topic_name(self._settings.topic_prefix),
                start_at=lambda: start_offsets(connection, kept),
            ) as consumer:
                consumer.subscribe(names)
                self._keep(connection, consumer, kept)

    def _keep(self, connection: Connection, consumer: ChangelogConsumer, kept: Sequence[KeptView]) -> None:
        idle, measure, topics = Every(IDLE_WRITE_SECONDS), Every(MEASURE_SECONDS), Every(TOPICS_CHECK_SECONDS)
        caught_up = False
        while not self._stop.requested:
            batch = consumer.next_batch(self._settings.projector_batch_records, timeout_seconds=POLL_SECONDS)
            self._health.beat()
            if batch.records or batch.cursors or idle.due():
                _apply(connection, consumer, kept, batch)
            caught_up |= consumer.caught_up
            if measure.due():
                _measure(consumer, kept)
                self._say_state(consumer, caught_up=caught_up)
            if topics.due():
                self._check_topics(connection, kept)
        self._health.not_ready("stopping")

    def _say_state(self, consumer: ChangelogConsumer, *, caught_up: bool) -> None:
        lag_records = sum(consumer.lag_records().values())
        if consumer.spare:
            self._health.ready("standby: no partition")
        elif caught_up:
            # Ready for good: an instance that is taken out of service for its lag would only lag more.
            self._health.ready(f"caught up once, lag {lag_records} records")
        else:
            self._health.not_ready(f"catching up, lag {lag_records} records")

    def _wait_for_topics(self, names: Sequence[str]) -> None:
        say = Every(SAY_AGAIN_SECONDS)
        while missing := sorted(set(names).difference(self._describe(names))):
            if say.due():
                log.warning(
                    "waiting_for_topics",
                    missing=missing,
                    advice="the capture makes them: is viewkeeper-cdc attached to these tables and running, "
                    "with the same VIEWKEEPER_TOPIC_PREFIX?",
                )
            self._health.not_ready(f"topics are missing: {', '.join(missing)}")
            self._health.beat()
            if self._stop.wait(TOPICS_POLL_SECONDS):
                break

    def _check_topics(self, connection: Connection, kept: Sequence[KeptView]) -> None:
        try:
            check(connection, kept, lambda: self._describe(sorted(_topic_names(kept))))
        except BrokerUnavailable as error:
            log.warning("topics_not_checked", reason=str(error))

    def _describe(self, names: Sequence[str]) -> dict[str, Topic]:
        return describe_topics(self._admin, names, where=f"Kafka {self._settings.kafka_bootstrap_servers}")


class Every:
    """Says each so many seconds, and at first, that it is time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due_at = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time, and if so wait for the next."""
        now = time.monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + self._seconds
        return True


def group_name(settings: ProjectorSettings, views: Sequence[View], database_id: str) -> str:
    """Return the consumer group: the setting's, or one of topic prefix, view database and views.

    Databases of one name on two servers have groups of their own: each needs all records.
    """
    if settings.projector_group:
        return settings.projector_group
    database = conninfo_to_dict(settings.view_url).get("dbname", "")
    return ".".join(
        [settings.topic_prefix, "projector", str(database), database_id, *sorted(view.name for view in views)]
    )


def _apply(connection: Connection, consumer: ChangelogConsumer, kept: Sequence[KeptView], batch: Batch) -> None:
    began = time.monotonic()
    if not apply_batch(connection, kept, batch):
        log.warning("stale_reader", advice="another instance moved the stored offsets; going on from there")
        consumer.rewind()
        return
    for view in kept:
        records = sum(count for topic, count in batch.records.items() if topic in view.topics)
        if records:
            RECORDS_APPLIED.labels(view.name).inc(records)
            BATCHES.labels(view.name).inc()
            BATCH_SECONDS.labels(view.name).observe(time.monotonic() - began)


def _measure(consumer: ChangelogConsumer, kept: Sequence[KeptView]) -> None:
    lag = consumer.lag_records()
    for view in kept:
        LAG_RECORDS.labels(view.name).set(sum(records for (topic, _), records in lag.items() if topic in view.topics))
        if view.as_of:
            AS_OF_SECONDS.labels(view.name).set(view.as_of.time.timestamp())
        else:
            # Another instance may have the cursor's partition now: what this one last stored would look stuck.
            AS_OF_SECONDS.remove(view.name)


def _topic_names(kept: Sequence[KeptView]) -> frozenset[str]:
    return frozenset[str]().union(*(view.topics for view in kept))
