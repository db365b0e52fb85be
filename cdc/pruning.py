"""Emptying change logs: writers move to a log's other part, and the one they left is truncated once it is published.

Only the leader empties. One that was paused and wakes as a leader of before may take a table for one that waits, which
its successor has begun by now: it sees the other's lease once it holds the log's lock, which the successor's rounds
take, too. A take-over that it does not see is one whose first round has that lock yet to come.
"""

from collections.abc import Callable

import psycopg
import structlog
from psycopg.sql import SQL, Composed, Literal

from cdc.statements import PARTS, log_name
from cdc.tables import CapturedTable
from runtime.postgres import LockNotAvailable, translated

log = structlog.get_logger()

SWITCH_BYTES = 1024 * 1024
"""Writers move to the other part when theirs has grown to this size, or earlier where the limit is low."""

_SIZES = """
SELECT pg_catalog.pg_relation_size({}), pg_catalog.pg_relation_size({}), active_part
FROM cdc.captured_table WHERE id = %(attachment)s
"""
_SWITCH = "UPDATE cdc.captured_table SET active_part = 1 - active_part WHERE id = %(attachment)s"
_PRUNED = """
UPDATE cdc.captured_table t SET pruned_snapshot = {snapshot} FROM cdc.capture c
WHERE t.id = %(attachment)s AND c.name = t.capture AND c.leader = {leader}
"""
# Waiting in the lock's queue would make writers and polls wait behind us.
_LOCK = "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT"
# The poll's own condition, which the index on xid answers: writers wait while this runs.
_UNPUBLISHED = """
SELECT EXISTS (SELECT FROM {log} WHERE xid >= pg_catalog.pg_snapshot_xmax({snapshot})
               OR xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip({snapshot}))))
"""
_TRUNCATE = "TRUNCATE {}"


def prune(
    connection: psycopg.Connection,
    table: CapturedTable,
    *,
    published_snapshot: str,
    switch_bytes: int,
    leader: str,
    where: str,
) -> None:
    """Keep a table's change log short; called now and then, does at most one step, waits for nobody.

    `published_snapshot` is the table's snapshot in the newest cursor that Kafka has committed, `leader` who empties.
    """
    snapshot = Literal(published_snapshot)

    def published(part: int) -> bool:
        check = SQL(_UNPUBLISHED).format(log=log_name(table, part), snapshot=snapshot)
        return connection.execute(check).fetchone() == (False,)

    _step(connection, table, switch_bytes, snapshot.as_string(), published, leader, where)


def empty(connection: psycopg.Connection, table: CapturedTable, *, leader: str, where: str) -> None:
    """Empty the change log of a table that will be read anew; does at most one step, waits for nobody.

    Kafka has committed that the table has no position. Who skipped logging holds a lock on the part until its
    transaction ends, so that once the part is empty all of them are in the snapshots to come.
    """
    _step(connection, table, 1, "pg_catalog.pg_current_snapshot()", lambda _part: True, leader, where)


def _step(
    connection: psycopg.Connection,
    table: CapturedTable,
    switch_bytes: int,
    snapshot: str,
    may_go: Callable[[int], bool],
    leader: str,
    where: str,
) -> None:
    sizes_sql = SQL(_SIZES).format(*(Literal(log_name(table, part).as_string()) for part in PARTS))
    values = {"attachment": table.attachment}
    with translated(where):
        row = connection.execute(sizes_sql, values).fetchone()
        if row is None:
            return
        *sizes, active_part = row
        if sizes[1 - active_part] > 0:
            pruned = SQL(_PRUNED).format(snapshot=SQL(snapshot), leader=Literal(leader))
            _truncate(connection, table, 1 - active_part, pruned, may_go)
        elif sizes[active_part] >= switch_bytes:
            connection.execute(_SWITCH, values)


def _truncate(
    connection: psycopg.Connection, table: CapturedTable, part: int, pruned: Composed, may_go: Callable[[int], bool]
) -> None:
    """Truncate a part that writers have left, unless one of them still fills it or a record is still needed.

    The checks come after the lock, in statements of their own under READ COMMITTED, so that they see what writers,
    and another leader, committed while the lock was being granted.
    """
    name = log_name(table, part)
    try:
        with translated(f"{table.name}: change log"), connection.transaction():
            connection.execute(SQL(_LOCK).format(name))
            if may_go(part) and connection.execute(pruned, {"attachment": table.attachment}).rowcount == 1:
                connection.execute(SQL(_TRUNCATE).format(name))
    except LockNotAvailable:
        log.debug("change_log_in_use", table=str(table.name), part=part)
