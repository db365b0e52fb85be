"""A lease without a row in the source: the leader is the member of a consumer group that owns a topic's partition.

The broker's group coordinator sees to it that there is one. A leader that was taken for dead is told by its next poll,
and the producer's `transactional.id` fences it whatever it does before that.
"""

import time
from collections.abc import Callable

import psycopg
import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, TopicPartition

from cdc.lease import LeadershipLost, Lease
from cdc.wire import cursor_topic_name
from runtime.kafka import consumer, kafka_error
from runtime.kafka import translated as kafka_translated
from runtime.postgres import translated
from runtime.settings import CdcSettings
from runtime.stop import Stop

log = structlog.get_logger()

POLL_SECONDS = 0.25
LEAST_SESSION_SECONDS = 6.0
"""A broker's default least; a shorter session it refuses (group.min.session.timeout.ms)."""
_STANDBY_SECONDS = 5.0
_FIRST_LOOK_SECONDS = 0.001
_MOST_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 0.5

_LSN = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_current_wal_insert_lsn()::text END
"""
_IS_FLUSHED = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN true
            ELSE pg_catalog.pg_current_wal_flush_lsn() >= %(lsn)s::pg_lsn END
"""

# Its commit has Postgres's own writer flush what is before it. Asked for where an open transaction has written and
# nobody commits: that WAL would not be flushed for up to 15 seconds.
_TAKE_XID = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_current_xact_id()::text END
"""


def lease_group(prefix: str, capture: str) -> str:
    """Name the consumer group whose member with a partition leads a capture."""
    return f"{prefix}.{capture}.lease"


class KafkaLease(Lease):
    """A capture's lease in Kafka. `token` is what its flushes return: what tells the source from others.

    The connection is one of the lease's own.
    """

    def __init__(self, settings: CdcSettings, connection: psycopg.Connection, *, where: str, token: str) -> None:
        # A poll waits by itself.
        super().__init__(keep_seconds=0)
        self._capture = settings.cdc_name
        self._connection = connection
        self._where = where
        self._token = token
        self._topic = cursor_topic_name(settings.topic_prefix)
        session_ms = int(max(settings.cdc_lease_seconds, LEAST_SESSION_SECONDS) * 1000)
        options = {
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": 1_000,
            # A standby that comes or goes takes nothing from the leader.
            "partition.assignment.strategy": "cooperative-sticky",
            "auto.offset.reset": "latest",
        }
        group = lease_group(settings.topic_prefix, settings.cdc_name)
        self._member: Consumer | None = consumer(settings, group=group, name="viewkeeper-cdc-lease", options=options)
        self._owned = False

    def win(self, stop: Stop, waiting: Callable[[], None]) -> bool:
        """Wait until the partition is this member's; call `waiting` at each look. Return False if asked to stop."""
        began, told = time.monotonic(), False
        with kafka_translated(f"topic {self._topic}"):
            self._group().subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
        while not stop.requested:
            self._poll()
            if self._owned:
                log.info("leading", capture=self._capture)
                return True
            if not told and time.monotonic() - began > _STANDBY_SECONDS:
                log.info("standby", capture=self._capture, reason="another process is the leader")
                told = True
            waiting()
        return False

    def flush(self, *, published: str) -> str:  # noqa: ARG002 - interface
        """Return once all that was read up to now is on the source's disk.

        Nothing may be written that would bring it there, so that it is waited for: a commit that waits for its WAL is
        flushed before anybody sees it, and what `synchronous_commit=off` leaves behind Postgres's own writer flushes
        within a second. A replica has nothing but flushed WAL.
        """
        began, is_asked = time.monotonic(), False
        with translated(self._where):
            row = self._connection.execute(_LSN, prepare=True).fetchone()
            seconds = _FIRST_LOOK_SECONDS
            while row and row[0] is not None and not self._is_flushed(row[0]):
                self.progress(self._progress_at)
                if not is_asked and time.monotonic() - began > _PATIENCE_SECONDS:
                    self._connection.execute(_TAKE_XID)
                    is_asked = True
                time.sleep(seconds)
                seconds = min(seconds * 2, _MOST_LOOK_SECONDS)
        return self._token

    def release(self) -> None:
        """Leave the group, so that a standby need not wait for the session's end."""
        member, self._member = self._member, None
        if member is not None:
            member.close()

    def _keep(self) -> None:
        self._poll()
        if not self._owned:
            raise LeadershipLost(f"capture {self._capture}: another process took over the lease")

    def _is_flushed(self, lsn: str) -> bool:
        row = self._connection.execute(_IS_FLUSHED, {"lsn": lsn}, prepare=True).fetchone()
        return row == (True,)

    def _group(self) -> Consumer:
        if self._member is None:
            raise LeadershipLost(f"capture {self._capture}: the lease was given back")
        return self._member

    def _poll(self) -> None:
        with kafka_translated(f"topic {self._topic}"):
            message = self._group().poll(POLL_SECONDS)
        failure = message.error() if message else None
        if failure is not None and failure.code() not in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):
            raise kafka_error(failure, f"topic {self._topic}, the lease of capture {self._capture}")

    def _assigned(self, member: Consumer, partitions: list[TopicPartition]) -> None:
        # The partition is owned, and not read.
        for partition in partitions:
            partition.offset = OFFSET_END
        member.incremental_assign(partitions)
        if partitions:
            member.pause(partitions)
            self._owned = True

    def _revoked(self, _member: Consumer, partitions: list[TopicPartition]) -> None:
        self._owned = self._owned and not partitions
