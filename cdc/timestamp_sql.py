"""The SQL of the timestamp source: which rows come after a position, in the order of the columns that tell of changes.

Values leave Postgres as the text of their own type and come back by it, under the session's settings: no time zone is
computed with.
"""

from psycopg.sql import SQL, Composable, Composed

from cdc.json_sql import column_name, doubled
from cdc.statements import key_name, log_columns, rows_name
from cdc.tables import CapturedTable, Column
from cdc.timestamp_tables import PolledTable

HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_is_in_recovery(),
       -- A replica that has replayed all that it received is as far as its primary, as far as it can tell.
       CASE WHEN pg_catalog.pg_is_in_recovery()
             AND pg_catalog.pg_last_wal_receive_lsn() IS DISTINCT FROM pg_catalog.pg_last_wal_replay_lsn()
            THEN pg_catalog.pg_last_xact_replay_timestamp() ELSE pg_catalog.transaction_timestamp() END
"""
"""Fixes the reading transaction's snapshot; selects when it began, whether on a replica, and up to when it knows."""

DATABASE = """
SELECT d.oid || '/' || d.datname, pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
"""Selects what tells a database from others of its cluster, and whether the role may know that one's identifier."""

CLUSTER = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
"""A statement of its own: naming the function in one is refused already, called or not."""


def order_columns(polled: PolledTable) -> tuple[str, ...]:
    """Name what orders a table's rows, the last ones of its key: no two rows are equal in all of them."""
    return tuple(name for name, _, _ in _order(polled))


def key_places(polled: PolledTable) -> tuple[int, ...]:
    """Return where the key's columns are among those that order the rows."""
    names = order_columns(polled)
    return tuple(names.index(column.name) for column in polled.table.key)


def beyond(polled: PolledTable, *, resumed: bool) -> Composed:
    """Select what orders the first `most_rows` rows, as texts: of all of them, or after `after_0`, … if resumed."""
    order = _order(polled)
    bounds = SQL(", ").join(
        SQL("%(after_{})s::text::{}").format(SQL(str(place)), SQL(doubled(cast)))
        for place, (_, _, cast) in enumerate(order)
    )
    values = SQL(", ").join(value for _, value, _ in order)
    after = SQL(" AND ({}) > ({})").format(values, bounds) if resumed else SQL("")
    return _select(polled, after, SQL("ORDER BY {} LIMIT %(most_rows)s").format(values))


def since(polled: PolledTable) -> Composed:
    """Select what orders the first `most_rows` rows whose timestamp is at most `window` seconds before `newest`."""
    _, value, cast = _order(polled)[0]
    after = SQL(" AND {} >= %(newest)s::text::{} - %(window)s * interval '1 second'").format(value, SQL(cast))
    values = SQL(", ").join(value for _, value, _ in _order(polled))
    return _select(polled, after, SQL("ORDER BY {} LIMIT %(most_rows)s").format(values))


def newest(polled: PolledTable) -> Composed:
    """Select what orders the last `most_rows` of all rows, as texts, the last one first."""
    values = SQL(", ").join(SQL("{} DESC").format(value) for _, value, _ in _order(polled))
    return _select(polled, SQL(""), SQL("ORDER BY {} LIMIT %(most_rows)s").format(values))


def key_pages(table: CapturedTable) -> Composed:
    """Select the keys in the array parameters `k1`, … in pages of `page_keys`: a row a page, and last their number."""
    names = SQL(", ").join(log_columns(table))
    arrays = SQL(", ").join(SQL("%(k{})s::text[]").format(SQL(str(place))) for place in range(1, len(table.key) + 1))
    return SQL("""
        SELECT {aggregates}, count(*)
        FROM (SELECT {names}, (row_number() OVER () - 1) / %(page_keys)s AS page
              FROM unnest({arrays}) AS listed({names})) AS paged
        GROUP BY page ORDER BY page
    """).format(
        aggregates=SQL(", ").join(SQL("array_agg({})::text").format(name) for name in log_columns(table)),
        names=names,
        arrays=arrays,
    )


def _select(polled: PolledTable, condition: Composable, rest: Composable) -> Composed:
    return SQL("SELECT {texts} FROM {table} AS t WHERE {readable}{condition} {rest}").format(
        texts=SQL(", ").join(SQL("({})::text").format(value) for _, value, _ in _order(polled)),
        table=rows_name(polled.table),
        readable=_readable(polled),
        condition=condition,
        rest=rest,
    )


def _readable(polled: PolledTable) -> Composable:
    """Leave out rows that have no place in the order, and those of a time to come, behind which none would be found."""
    if not polled.timestamp:
        return SQL("t.{} IS NOT NULL").format(column_name(polled.incrementing or polled.table.key[0]))
    # What has no zone cannot be compared with a clock: where it is from, only its writers know.
    latest = SQL("<= pg_catalog.transaction_timestamp()" if polled.has_zone else "< 'infinity'")
    readable = SQL("{} {}").format(_timestamp(polled), latest)
    if polled.incrementing is None:
        return readable
    return SQL("{} AND t.{} IS NOT NULL").format(readable, column_name(polled.incrementing))


def _order(polled: PolledTable) -> list[tuple[str, Composable, str]]:
    """Return name, SQL and type of what orders the rows."""
    order: list[tuple[str, Composable, str]] = []
    if polled.timestamp:
        name = ",".join(column.name for column in polled.timestamp)
        # By another name than a column of the key: that orders rows as well.
        order.append((f"timestamp {name}", _timestamp(polled), polled.timestamp[0].type))
    columns = [polled.incrementing] if polled.incrementing else []
    for column in [*columns, *polled.table.key]:
        if column.name not in [name for name, _, _ in order]:
            order.append((column.name, key_name(column), column.type))
    return order


def _timestamp(polled: PolledTable) -> Composable:
    columns: list[Column] = list(polled.timestamp)
    names = [SQL("t.{}").format(column_name(column)) for column in columns]
    return names[0] if len(names) == 1 else SQL("coalesce({})").format(SQL(", ").join(names))
