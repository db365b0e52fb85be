"""What a command sees of a capture that polls: its tables by the catalog, its leader and requests by Kafka."""

import time
from collections.abc import Sequence

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from cdc.cursor import Cursor, TableCursor
from cdc.errors import CaptureError
from cdc.kafka_lease import lease_group
from cdc.kafka_requests import RequestTopic
from cdc.requests import SnapshotRequest
from cdc.status_source import AttachedTable, RequestStatus, StatusSource
from cdc.table_options import TableOptions, unnamed
from cdc.timestamp_tables import polled_table, still_attached
from cdc.watching import ALIVE_SECONDS, LOOK_SECONDS, Leader
from cdc.wire import TableName
from runtime.kafka import REQUEST_SECONDS
from runtime.kafka import translated as kafka_translated
from runtime.postgres import translated
from runtime.settings import StatusSettings

# Not by pg_partition_tree, which waits for whoever alters a partition.
_TOTAL_ROWS = """
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
SELECT CASE WHEN min(l.reltuples) >= 0 THEN sum(l.reltuples)::bigint END
FROM tree t JOIN pg_catalog.pg_class l ON l.oid = t.oid AND l.relkind = 'r'
"""


class PolledStatusSource(StatusSource):
    """Asks the source for tables that are polled; there are no change logs, and requests are in Kafka."""

    def __init__(
        self,
        connection: psycopg.Connection,
        capture: str,
        *,
        where: str,
        options: Sequence[TableOptions],
        requests: RequestTopic,
    ) -> None:
        super().__init__(connection, capture, where=where)
        self._options = options
        self._requests = requests
        self._gone: dict[str, CaptureError] = {}

    def tables(self) -> Sequence[AttachedTable]:
        """Return the tables that VIEWKEEPER_CDC_TABLES names, in its order, without those that are `gone`."""
        found = []
        self._gone = {}
        for options in self._options:
            try:
                found.append(self._table(options))
            except CaptureError as error:
                self._gone[str(options.name)] = error
        return found

    def gone(self) -> tuple[str, ...]:
        """Return in words which tables are not there any more: each has its own, the others are to be seen."""
        return tuple(map(str, self._gone.values()))

    def records_waiting(self, table: AttachedTable, entry: TableCursor | None) -> int | None:  # noqa: ARG002
        """Return None: what waits is not known before it is read."""
        return None

    def slot(self) -> None:
        """Return None: nothing is made in the database."""

    def left(self) -> tuple[str, ...]:
        """Return in words what is left of the sources that the tables came from."""
        with translated(self._where):
            return still_attached(self._connection, self._capture["capture"])

    def requests(self, newest: Cursor | None) -> Sequence[RequestStatus]:
        """Return the requests that are newer than what the newest cursor has begun, oldest first."""
        self._requests.read()
        begun = {name: entry.request for name, entry in (newest.tables if newest else {}).items()}
        standing = [
            RequestStatus(id=number, table=name, requested_at=self._requests.asked_at[name])
            for name, number in self._requests.newest.items()
            if number > begun.get(name, 0)
        ]
        return sorted(standing, key=lambda request: request.id)

    def request_snapshots(self, tables: Sequence[TableName]) -> tuple[SnapshotRequest, ...]:
        """Ask for a snapshot of each table, all or none; raise ConfigurationError if one is not captured.

        Raises CaptureError if one is gone.
        """
        attachments = {table.name: table.attachment for table in self.tables()}
        wanted = tuple(dict.fromkeys(tables))
        for table in wanted:
            if str(table) in self._gone:
                raise self._gone[str(table)]
            if str(table) not in attachments:
                raise unnamed(table)
        numbers = self._requests.ask_for_snapshots(wanted)
        return tuple(
            SnapshotRequest(number, table, attachments[str(table)])
            for number, table in zip(numbers, wanted, strict=True)
        )

    def _table(self, options: TableOptions) -> AttachedTable:
        with translated(self._where):
            polled = polled_table(self._connection, options, where=self._where)
            total = self._connection.execute(_TOTAL_ROWS, {"oid": polled.table.oid}).fetchone()
        return AttachedTable(
            attachment=polled.table.attachment,
            name=str(polled.table.name),
            kind=polled.table.kind,
            source=polled.table.source,
            level=None,
            columns=list(options.columns) if options.columns else None,
            masks=list(options.masks or ()),
            log_limit_bytes=None,
            log_bytes=None,
            log_filling_bytes=None,
            total_rows=total[0] if total else None,
            mode=polled.mode,
        )


class GroupWatch:
    """Looks at the group whose member with a partition is the leader; `tokens` is what the source is known by."""

    def __init__(self, settings: StatusSettings, client: AdminClient, *, token: str) -> None:
        self._client = client
        self._group = lease_group(settings.topic_prefix, settings.cdc_name)
        self._began_at = time.monotonic()
        self.tokens = frozenset((token,))

    def look(self) -> Leader:
        """Return the member that owns the partition; the broker takes it from one that is silent."""
        with kafka_translated(f"group {self._group}"):
            future = self._client.describe_consumer_groups([self._group], request_timeout=REQUEST_SECONDS)[self._group]
            try:
                members = future.result().members
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise
                members = []
        owners = [member for member in members if member.assignment and member.assignment.topic_partitions]
        return Leader(name=owners[0].member_id if owners else None, alive=bool(owners))

    def settled(self) -> Leader:
        """Look until it is known whether there is a leader."""
        while not self.is_settled(leader := self.look()):
            time.sleep(LOOK_SECONDS)
        return leader

    def is_settled(self, leader: Leader) -> bool:
        """Return whether a leader is there, or has not come for a while: a group hands over within that."""
        return leader.alive or time.monotonic() - self._began_at >= ALIVE_SECONDS
