"""The SQL of the timestamp source: which rows come after a position, in the order of the columns that tell of changes.

Values leave Postgres as the text of their own type and come back by it, under the session's settings: no time zone is
computed with.
"""

from enum import StrEnum

from psycopg.sql import SQL, Composable, Composed

from cdc import statements
from cdc.json_sql import column_name, doubled
from cdc.statements import key_name, log_columns, rows_name
from cdc.tables import CapturedTable, Column, Kind
from cdc.timestamp_tables import PolledTable

HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_is_in_recovery(),
       -- A replica that receives WAL and has replayed all of it is as far as its primary, as far as it can tell. Any
       -- role may see that there is a receiver.
       CASE WHEN NOT pg_catalog.pg_is_in_recovery()
              OR (pg_catalog.pg_last_wal_receive_lsn() = pg_catalog.pg_last_wal_replay_lsn()
                  AND EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver))
            THEN pg_catalog.transaction_timestamp() ELSE pg_catalog.pg_last_xact_replay_timestamp() END,
       pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text
"""
"""Fixes the reading transaction's snapshot; selects when it began, whether on a replica, and up to when it knows.

Last comes the xid before which all transactions had ended.
"""

DATABASE = """
SELECT d.oid || '/' || d.datname, pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
"""Selects what tells a database from others of its cluster, and whether the role may know that one's identifier."""

CLUSTER = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
"""A statement of its own: naming the function in one is refused already, called or not."""


def order_types(polled: PolledTable) -> tuple[str, ...]:
    """Name what orders a table's rows, each with its type, the last ones of its key: no two rows are equal in all."""
    return tuple(f"{name} {cast}" for name, _, cast in _order(polled))


def key_places(polled: PolledTable) -> tuple[int, ...]:
    """Return where the key's columns are among those that order the rows."""
    names = [name for name, _, _ in _order(polled)]
    return tuple(names.index(column.name) for column in polled.table.key)


class Lower(StrEnum):
    """Where rows begin: with the first one, after the row that has `after_0`, …, or with a window of time."""

    NONE = "none"
    AFTER = "after"
    WINDOW = "window"


def beyond(polled: PolledTable, lower: Lower) -> Composed:
    """Select what orders the first `most_rows` rows, as texts, their version, and whether it is of xid `since` on."""
    readable = SQL("{}{}").format(_readable(polled), _bound(polled, lower))
    return SQL("""
        SELECT {texts}, {version}::text::bigint, {is_open}
        FROM {table} AS t WHERE {readable} ORDER BY {values} LIMIT %(most_rows)s
    """).format(
        texts=_texts(polled),
        version=_version(polled),
        is_open=_is_of(polled, "since"),
        table=rows_name(polled.table),
        readable=readable,
        values=_values(polled),
    )


def walked(polled: PolledTable, lower: Lower) -> Composed:
    """Select what orders the next rows of a walk, as texts, and how it stands with each, as in look_back.Walked.

    The rows end with the one that has `until_0`, …; those of a window begin `window` seconds before `newest`. Of
    `scanned_rows` of them the first `most_rows` are selected whose transaction is of xid `since` on; and the last one
    of so many, since there may be more behind it.
    """
    order = _order(polled)
    return SQL("""
        SELECT {texts}, version::text::bigint, is_asked, is_open, place = %(scanned_rows)s
        FROM (SELECT {columns}, {version} AS version, {is_asked} AS is_asked, {is_open} AS is_open,
                     row_number() OVER (ORDER BY {values}) AS place
              FROM {table} AS t WHERE {placed} AND ({values}) <= ({until}){lower}
              ORDER BY {values} LIMIT %(scanned_rows)s) AS scanned
        WHERE is_asked OR place = %(scanned_rows)s ORDER BY place LIMIT %(most_rows)s
    """).format(
        texts=SQL(", ").join(SQL("o{}::text").format(SQL(str(place))) for place in range(len(order))),
        columns=SQL(", ").join(SQL("{} AS o{}").format(value, SQL(str(at))) for at, (_, value, _) in enumerate(order)),
        version=_version(polled),
        is_asked=_is_of(polled, "since"),
        is_open=_is_of(polled, "begun"),
        values=_values(polled),
        table=rows_name(polled.table),
        # Not by the clock, which may have been set back since the polls came to `until`.
        placed=_placed(polled),
        until=_parameters(polled, "until"),
        lower=_bound(polled, lower),
    )


def newest(polled: PolledTable) -> Composed:
    """Select what orders the last one of all rows, as texts."""
    values = SQL(", ").join(SQL("{} DESC").format(value) for _, value, _ in _order(polled))
    return SQL("SELECT {texts} FROM {table} AS t WHERE {readable} ORDER BY {values} LIMIT 1").format(
        texts=_texts(polled), table=rows_name(polled.table), readable=_readable(polled), values=values
    )


def swept(table: CapturedTable) -> Composed:
    """Select what a sweep publishes of the keys from the topic in parameters `k1`, …: NULL for a row that is gone.

    A row of a transaction that had not ended before the xid `since` is selected, too, or any row without one: while all
    rows were read it may not have been there, after an older one that the topic has. A view's rows tell no xid.
    """
    if table.kind is Kind.VIEW:
        return statements.ghosts(table)
    return SQL("""
        {images} WHERE t.{first} IS NULL OR %(since)s::text IS NULL
                 OR pg_catalog.age(t.xmin) <= pg_catalog.age(%(since)s::text::xid8::xid)
    """).format(images=statements.topic_images(table), first=column_name(table.key[0]))


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


def _version(polled: PolledTable) -> Composable:
    """Tell which transaction wrote a row, 0 of a view's: those do not tell."""
    return SQL("0" if polled.table.kind is Kind.VIEW else "t.xmin")


def _is_of(polled: PolledTable, since: str) -> Composable:
    """Tell rows of transactions that had not ended before the xid in a parameter, all rows if it is NULL.

    A subtransaction's xid is never less than its parent's. Rows of views tell no xid.
    """
    if polled.table.kind is Kind.VIEW:
        return SQL("true")
    # In a query of its own it is computed once.
    return SQL("(pg_catalog.age(t.xmin) <= (SELECT pg_catalog.age(%({})s::text::xid8::xid))) IS NOT FALSE").format(
        SQL(since)
    )


def _bound(polled: PolledTable, lower: Lower) -> Composable:
    if lower is Lower.AFTER:
        return SQL(" AND ({}) > ({})").format(_values(polled), _parameters(polled, "after"))
    if lower is Lower.WINDOW:
        _, value, cast = _order(polled)[0]
        return SQL(" AND {} >= %(newest)s::text::{} - %(window)s * interval '1 second'").format(value, SQL(cast))
    return SQL("")


def _texts(polled: PolledTable) -> Composable:
    return SQL(", ").join(SQL("({})::text").format(value) for _, value, _ in _order(polled))


def _values(polled: PolledTable) -> Composable:
    return SQL(", ").join(value for _, value, _ in _order(polled))


def _parameters(polled: PolledTable, name: str) -> Composable:
    return SQL(", ").join(
        SQL("%({}_{})s::text::{}").format(SQL(name), SQL(str(place)), SQL(doubled(cast)))
        for place, (_, _, cast) in enumerate(_order(polled))
    )


def _readable(polled: PolledTable) -> Composable:
    """Leave out rows that have no place in the order, and those of a time to come, behind which none would be found."""
    if not polled.timestamp:
        return _placed(polled)
    # What has no zone cannot be compared with a clock: where it is from, only its writers know.
    latest = SQL("<= pg_catalog.transaction_timestamp()" if polled.has_zone else "< 'infinity'")
    return SQL("{} AND {} {}").format(_placed(polled), _timestamp(polled), latest)


def _placed(polled: PolledTable) -> Composable:
    """Leave out rows that have no place in the order."""
    named = [SQL("t.{}").format(column_name(polled.incrementing))] if polled.incrementing else []
    timestamp = [_timestamp(polled)] if polled.timestamp else []
    return SQL(" AND ").join(SQL("{} IS NOT NULL").format(value) for value in (*timestamp, *named))


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
