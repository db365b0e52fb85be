"""The projector: batch → project → write, each batch in one transaction with its offsets."""

import time
from collections.abc import Mapping, Sequence

import structlog
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from cdc.decodings import open_decoding
from cdc.wire import cursor_topic_name
from projector.consumer import CLIENT_NAME, Batch, ChangelogConsumer, open_consumer
from projector.definition import View
from projector.errors import NotApplicable
from projector.keeping import Keeping
from projector.kept import apply_batch
from projector.lenient import leniency
from projector.locks import end_hung
from projector.metrics import AS_OF_SECONDS, BATCH_SECONDS, BATCHES, LAG_RECORDS, RECORDS_APPLIED
from projector.offsets import VersionDropped
from projector.registry import check_declared, database_id
from projector.topics import Topic, describe_topics
from runtime.health import Health
from runtime.kafka import BrokerUnavailable, LostHistory, admin, check_reachable
from runtime.postgres import connect, describe, translated
from runtime.settings import ProjectorSettings
from runtime.stop import Stop

log = structlog.get_logger()

POLL_SECONDS = 0.25
"""How long a loop waits for records: also how long a stop waits for the loop."""

IDLE_WRITE_SECONDS = 1.0
"""Positions that moved without records (markers at a partition's end) are stored so often."""

MEASURE_SECONDS = 0.5
ESTIMATE_SECONDS = 1.0
VERSIONS_LOOK_SECONDS = 0.5
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
    # A large batch takes its time, as comparing versions and their indexes do; a standby waits for as long as others
    # have the partitions.
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "lock_timeout": "5s",
    # What readers see must outlive a crash: with a commit that was not on disk the as-of would go back, and rows too.
    "synchronous_commit": "on",
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
        self._declared_checked = False
        self._missing_due = Every(SAY_AGAIN_SECONDS)

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
            end_hung(connection)
            if not self._declared_checked:
                # Once: while this process runs, a rebuild may have another definition than it has in memory.
                check_declared(connection, self._views, where=self._where)
                self._declared_checked = True
            keeping = Keeping(
                connection,
                self._views,
                self._settings.topic_prefix,
                decoding,
                leniency(self._settings),
                where=self._where,
            )
            check_reachable(self._admin, self._settings)
            self._wait_for_topics(keeping)
            if self._stop.requested:
                return
            keeping.begin(self._describe)
            with open_consumer(
                self._settings,
                group=group_name(self._settings, self._views, database_id(connection)),
                cursor_topic=cursor_topic_name(self._settings.topic_prefix),
                start_at=keeping.start_offsets,
            ) as consumer:
                consumer.subscribe(keeping.topics)
                self._keep(connection, consumer, keeping)

    def _keep(self, connection: Connection, consumer: ChangelogConsumer, keeping: Keeping) -> None:
        idle, measure, topics = Every(IDLE_WRITE_SECONDS), Every(MEASURE_SECONDS), Every(TOPICS_CHECK_SECONDS)
        versions, absent, estimates = Every(VERSIONS_LOOK_SECONDS), Every(TOPICS_POLL_SECONDS), Every(ESTIMATE_SECONDS)
        caught_up = False
        while not self._stop.requested:
            batch = self._next_batch(consumer, keeping)
            self._health.beat()
            applied = True
            if batch.records or batch.cursors or idle.due():
                applied = _apply(connection, keeping, batch)
            caught_up |= consumer.caught_up and not keeping.missing
            # Not applied: perhaps a version was left, or dropped, and its offsets with it.
            if (versions.due() or not applied) and keeping.is_outdated():
                self._take_up(consumer, keeping)
            elif not applied:
                log.warning("stale_reader", advice="another instance moved the stored offsets; going on from there")
                consumer.rewind()
            if measure.due():
                _measure(consumer, keeping)
                self._say_state(consumer, keeping, caught_up=caught_up)
            if topics.due():
                self._check_topics(keeping)
            if absent.due() and self._have_come(keeping):
                self._begin(consumer, keeping)
            if estimates.due():
                self._estimate(keeping)
        self._health.not_ready("stopping")

    def _next_batch(self, consumer: ChangelogConsumer, keeping: Keeping) -> Batch:
        try:
            return consumer.next_batch(self._settings.projector_batch_records, timeout_seconds=POLL_SECONDS)
        except LostHistory:
            # The client's words say neither what was lost nor what to do.
            self._check_topics(keeping)
            raise

    def _take_up(self, consumer: ChangelogConsumer, keeping: Keeping) -> None:
        """Go on with the versions that the registry has now, in the same group."""
        keeping.take_up()
        self._wait_for_topics(keeping)
        if not self._stop.requested:
            self._begin(consumer, keeping)

    def _begin(self, consumer: ChangelogConsumer, keeping: Keeping) -> None:
        try:
            keeping.begin(self._describe)
        except VersionDropped:
            # The registry has changed since it was looked at.
            self._take_up(consumer, keeping)
        else:
            consumer.read(keeping.topics)

    def _say_state(self, consumer: ChangelogConsumer, keeping: Keeping, *, caught_up: bool) -> None:
        lag_records = sum(consumer.lag_records().values())
        if keeping.missing:
            self._say_missing(keeping)
        elif consumer.spare:
            self._health.ready("standby: no partition")
        elif caught_up:
            # Ready for good: an instance that is taken out of service for its lag would only lag more.
            self._health.ready(f"caught up once, lag {lag_records} records")
        else:
            self._health.not_ready(f"catching up, lag {lag_records} records")

    def _wait_for_topics(self, keeping: Keeping) -> None:
        """Return once a view has all its topics; others may still wait for theirs."""
        keeping.find_topics(self._describe)
        while keeping.missing:
            # Not for one that was read and is gone: whoever makes it again makes another one.
            keeping.check(self._describe)
            self._say_missing(keeping)
            if keeping.kept:
                break
            self._health.beat()
            if self._stop.wait(TOPICS_POLL_SECONDS):
                break
            keeping.find_topics(self._describe)

    def _say_missing(self, keeping: Keeping) -> None:
        if self._missing_due.due():
            log.warning(
                "waiting_for_topics",
                missing=keeping.missing,
                views=keeping.waiting,
                advice="the capture makes them: is viewkeeper-cdc attached to these tables and running, "
                "with the same VIEWKEEPER_TOPIC_PREFIX?",
            )
        self._health.not_ready(f"topics are missing: {', '.join(keeping.missing)}")

    def _have_come(self, keeping: Keeping) -> bool:
        try:
            return keeping.find_topics(self._describe)
        except BrokerUnavailable as error:
            log.warning("topics_not_found", reason=str(error))
            return False

    def _estimate(self, keeping: Keeping) -> None:
        try:
            keeping.estimate(self._describe)
        except BrokerUnavailable as error:
            log.warning("as_of_not_estimated", reason=str(error))

    def _check_topics(self, keeping: Keeping) -> None:
        try:
            keeping.check(self._describe)
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


def _apply(connection: Connection, keeping: Keeping, batch: Batch) -> bool:
    began = time.monotonic()
    try:
        if not apply_batch(connection, keeping.kept, batch):
            return False
    except NotApplicable as error:
        if not keeping.leave(error):
            raise
        return False
    for view in keeping.shown:
        records = _of_topics(batch.records, view.topics)
        if records:
            RECORDS_APPLIED.labels(view.name).inc(records)
            BATCHES.labels(view.name).inc()
            BATCH_SECONDS.labels(view.name).observe(time.monotonic() - began)
    return True


def _measure(consumer: ChangelogConsumer, keeping: Keeping) -> None:
    lag = consumer.lag_records()
    for view in keeping.shown:
        LAG_RECORDS.labels(view.name).set(sum(records for (topic, _), records in lag.items() if topic in view.topics))
        if view.as_of:
            AS_OF_SECONDS.labels(view.name).set(view.as_of.time.timestamp())
        else:
            # Another instance may have the cursor's partition now: what this one last stored would look stuck.
            AS_OF_SECONDS.remove(view.name)


def _of_topics(records: Mapping[str, int], topics: frozenset[str]) -> int:
    return sum(count for topic, count in records.items() if topic in topics)
