"""The SQL of the triggers source, built once for each set of captured tables.

Keys and rows leave Postgres as finished JSON, so that no row is touched in Python. The wire's rules are casts here:
numeric as text, times as ISO 8601 in UTC with microseconds, bytea as base64, all else as Postgres's own JSON.
"""

from collections.abc import Callable, Iterable, Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from cdc.json_sql import column_name, doubled, key_json, wire_values
from cdc.tables import CapturedTable, Column

PARTS = (0, 1)
_ANY = SQL("")
_ROW, _NO_ROW = SQL("row_to_json(r.*)::text"), SQL("NULL::text")


def log_name(table: CapturedTable, part: int) -> Identifier:
    """Name one part of a table's change log."""
    return Identifier("cdc", f"log_{table.attachment}_{part}")


def rows_name(table: CapturedTable) -> Identifier:
    """Name what a table's rows are read from: the table, or the view of the columns that may leave the database."""
    if table.rows_oid == table.oid:
        return _table_name(table)
    return Identifier("cdc", f"rows_{table.attachment}")


def _table_name(table: CapturedTable) -> Identifier:
    return Identifier(table.name.schema, table.name.name)


def lock(names: Iterable[Identifier]) -> Composed:
    """Begin a reading transaction with these relations locked.

    The locks come before the first query, since that fixes the snapshot: a table that is being rewritten would read
    as empty under an older one.
    """
    return SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE").format(
        SQL(", ").join(names)
    )


HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_current_snapshot()::text,
       c.pending_token, c.published_token
FROM cdc.capture c WHERE c.name = %(capture)s
"""
"""Fixes the reading transaction's snapshot, and selects when it began, before that; the snapshot's text; the two tokens
of the mark."""


AS_OF = """
SELECT relation, as_of, is_uncertain FROM cdc.projected_as_of()
"""
"""Selects, of each view that a projector of this database keeps, as of when its rows are, and whether some may be
missing by then."""


def probe(tables: Sequence[CapturedTable]) -> Composed:
    """Select what was logged since each table's previous snapshot, parameter `snapshot_<i>` of table i.

    One row a table: its number i; whether its name belongs to another table by now; how many records, counted up to
    one more than its parameter `most_<i>`; the kinds of marks among all of them; their distinct keys as an array
    literal a key column, and last their number. A table with more records than that is read by `key_pages` instead.
    """
    selects = []
    for number, table in enumerate(tables):
        names = log_columns(table)
        snapshot = SQL("%(snapshot_{})s").format(SQL(str(number)))
        select = SQL("""
            (WITH records AS MATERIALIZED ({records} LIMIT {limit})
             SELECT {number}, {identity} IS DISTINCT FROM {oid}, (SELECT count(*) FROM records),
                    (SELECT array_agg(DISTINCT mark) FROM ({marks}) AS marks),
                    (SELECT ARRAY[{arrays}, count(*)::text]
                     FROM (SELECT DISTINCT {names} FROM records WHERE mark IS NULL) AS changed))
        """)
        selects.append(
            select.format(
                records=_records(table, snapshot),
                marks=_records(table, snapshot, SQL("AND mark IS NOT NULL")),
                identity=SQL("to_regclass({})::oid").format(Literal(_table_name(table).as_string())),
                oid=Literal(table.oid),
                limit=SQL("%(most_{})s::bigint + 1").format(SQL(str(number))),
                number=Literal(number),
                arrays=_array_literals(names),
                names=SQL(", ").join(names),
            )
        )
    return SQL(" UNION ALL ").join(selects)


def key_pages(table: CapturedTable, *, page_keys: int) -> Composed:
    """Select the distinct keys logged since `snapshot`, in pages: one row a page, an array literal a key column.

    The last column is their number.
    """
    names = log_columns(table)
    return SQL("""
        SELECT {arrays}, count(*)
        FROM (SELECT {names}, (row_number() OVER (ORDER BY {names}) - 1) / {page_keys} AS page
              FROM (SELECT DISTINCT {names} FROM ({records}) AS records WHERE mark IS NULL) AS changed) AS paged
        GROUP BY page ORDER BY page
    """).format(
        arrays=_array_literals(names),
        names=SQL(", ").join(names),
        page_keys=Literal(page_keys),
        records=_records(table, SQL("%(snapshot)s")),
    )


def living(table: CapturedTable, *, rows: bool = True) -> Composed:
    """Select key and row, as JSON text, of those of the logged keys in parameters `k1`, … that have a row.

    Without `rows` these are NULL, and nothing of them is read but the key.
    One array is looked up in a single scan of the key's index; several columns take a look-up for each key, which costs
    a third more.
    """
    return SQL("""
        SELECT {key}, {row} FROM {rows} CROSS JOIN LATERAL (SELECT {values}) AS r WHERE {listed}
    """).format(
        key=key_json(table.key, _of_row(table)),
        row=_ROW if rows else _NO_ROW,
        rows=SQL("{table} AS t" if len(table.key) == 1 else "{listed} AS changed, {table} AS t").format(
            listed=_listed(table, log_type, _from_log), table=rows_name(table)
        ),
        values=wire_values(table.columns),
        listed=_in_listed(table.key[0]) if len(table.key) == 1 else _joined(table),
    )


def topic_images(table: CapturedTable) -> Composed:
    """Select key and row, as JSON text, of the keys from the topic in parameters `k1`, …; NULL if there is no row."""
    return SQL("""
        SELECT {key}, CASE WHEN t.{first} IS NOT NULL THEN row_to_json(r.*)::text END
        FROM {changed} AS changed LEFT JOIN {table} AS t ON {joined} CROSS JOIN LATERAL (SELECT {values}) AS r
    """).format(
        key=key_json(table.key, _changed(table)),
        first=column_name(table.key[0]),
        changed=_listed(table, _as_text, _from_json),
        table=rows_name(table),
        joined=_joined(table),
        values=wire_values(table.columns),
    )


def gone(table: CapturedTable) -> Composed:
    """Select the key, as JSON text, of those of the logged keys in parameters `k1`, … that have no row."""
    return _gone(table, _listed(table, log_type, _from_log))


def ghosts(table: CapturedTable) -> Composed:
    """Select the key, as JSON text, of those keys from the topic in parameters `k1`, … that have no row."""
    return _gone(table, _listed(table, _as_text, _from_json))


def _gone(table: CapturedTable, listed: Composed) -> Composed:
    return SQL("""
        SELECT {key}, NULL::text FROM {listed} AS changed
        WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {joined})
    """).format(
        key=key_json(table.key, _changed(table)),
        listed=listed,
        table=rows_name(table),
        joined=_joined(table),
    )


def log_keys(table: CapturedTable) -> Composed:
    """Log the keys from the topic in parameters `k1`, … as changed."""
    return SQL("SELECT cdc.log_keys({attachment}, VARIADIC ARRAY[{arrays}]) FROM {changed} AS changed").format(
        attachment=Literal(table.attachment),
        arrays=_array_literals([SQL("{}::text").format(key) for key in _changed(table)]),
        changed=_listed(table, _as_text, _from_json),
    )


def key_texts(table: CapturedTable) -> Composed:
    """Select the keys from the topic in parameters `k1`, … as a change log has them: an array a key column."""
    return SQL("SELECT {arrays} FROM {changed} AS changed").format(
        arrays=SQL(", ").join(SQL("array_agg({}::text)").format(key) for key in _changed(table)),
        changed=_listed(table, _as_text, _from_json),
    )


MESSAGE_PREFIX = "SELECT 'viewkeeper ' || c.message_secret FROM cdc.capture c WHERE c.name = %(capture)s"
"""The prefix of a capture's messages in the WAL, which name keys as if they had changed."""


def emit_keys(table: CapturedTable, *, logged: bool = False) -> Composed:
    """Write the keys in parameters `k1`, …, from the topic or logged, into the WAL as changed, for a `capture`."""
    texts = [SQL("{}::text").format(key) for key in _changed(table)]
    return SQL("""
        SELECT pg_catalog.pg_logical_emit_message(true, ({prefix}), pg_catalog.json_build_array(
            {attachment}::integer, pg_catalog.json_agg(pg_catalog.json_build_array({texts})))::text)
        FROM {changed} AS changed WHERE ({keys}) IS NOT NULL HAVING count(*) > 0
    """).format(
        prefix=SQL(MESSAGE_PREFIX),
        attachment=Literal(table.attachment),
        texts=SQL(", ").join(texts),
        changed=_listed(table, log_type, _as_it_is) if logged else _listed(table, _as_text, _from_json),
        keys=SQL(", ").join(_changed(table)),
    )


def chunk(table: CapturedTable, *, resumed: bool, rows: bool = True) -> Composed:
    """Select key and row, as JSON text, of the first `most_rows` rows after the key `after_1`, … (if resumed).

    They come in key order; the bounds are texts as the key's JSON has them. `rows` is as for `living`.
    """
    keys = SQL(", ").join(_of_row(table))
    bounds = SQL(", ").join(
        _from_json(column, SQL("%(after_{})s::text").format(SQL(str(place))))
        for place, column in enumerate(table.key, 1)
    )
    return SQL("""
        SELECT {key}, {row} FROM {table} AS t CROSS JOIN LATERAL (SELECT {values}) AS r
        {after} ORDER BY {keys} LIMIT %(most_rows)s
    """).format(
        key=key_json(table.key, _of_row(table)),
        row=_ROW if rows else _NO_ROW,
        table=rows_name(table),
        values=wire_values(table.columns),
        # One comparison of row values, which an index can answer.
        after=SQL("WHERE ({}) > ({})").format(SQL(", ").join(map(key_name, table.key)), bounds) if resumed else SQL(""),
        keys=keys,
    )


def limit_reached(table: CapturedTable) -> Composed:
    """Select whether logging has stopped in some part of the change log because it is full."""
    return SQL(" UNION ALL ").join(
        SQL("SELECT FROM {} WHERE mark = 'limit'").format(log_name(table, part)) for part in PARTS
    )


def log_columns(table: CapturedTable) -> list[Identifier]:
    """Name the key columns of a table's change log: k1, k2 and so on."""
    return [Identifier(f"k{place}") for place in range(1, len(table.key) + 1)]


def log_type(column: Column) -> str:
    """Return the type of a key column in the change log: integers are wide there, all else is text."""
    return "bigint" if column.type in ("smallint", "integer", "bigint") else "text"


def key_name(column: Column) -> Composable:
    """Name a key column, as what a domain is made from: an enum's operators are not there for domains over it."""
    name = SQL("t.{}").format(column_name(column))
    return name if column.type == column.cast else SQL("{}::{}").format(name, SQL(doubled(column.type)))


def _records(table: CapturedTable, snapshot: Composable, condition: Composable = _ANY) -> Composed:
    """Select the log records, still visible or not then, of transactions that `snapshot` did not see."""
    part = SQL("""
        SELECT mark, {names} FROM {log}
        WHERE (xid >= pg_snapshot_xmax({snapshot}) OR xid = ANY (ARRAY(SELECT pg_snapshot_xip({snapshot})))) {condition}
    """)
    names = SQL(", ").join(log_columns(table))
    return SQL(" UNION ALL ").join(
        part.format(names=names, log=log_name(table, number), snapshot=snapshot, condition=condition)
        for number in PARTS
    )


def _array_literals(names: Sequence[Composable]) -> Composed:
    return SQL(", ").join(SQL("array_agg({})::text").format(name) for name in names)


def _listed(
    table: CapturedTable, type_name: Callable[[Column], str], read: Callable[[Column, Composable], Composable]
) -> Composed:
    """Select the keys in the array parameters `k1`, …, each column read as its type."""
    names = log_columns(table)
    arrays = [SQL("%(k{})s::{}[]").format(SQL(str(place)), SQL(type_name(c))) for place, c in enumerate(table.key, 1)]
    columns = [SQL("{} AS {}").format(read(column, name), name) for column, name in zip(table.key, names, strict=True)]
    return SQL("(SELECT {columns} FROM unnest({arrays}) AS listed({names}))").format(
        columns=SQL(", ").join(columns), arrays=SQL(", ").join(arrays), names=SQL(", ").join(names)
    )


def _as_text(_column: Column) -> str:
    return "text"


def _as_it_is(_column: Column, text: Composable) -> Composable:
    return text


def _from_log(column: Column, text: Composable) -> Composable:
    return text if log_type(column) == "bigint" else SQL("{}::{}").format(text, SQL(doubled(column.type)))


def _from_json(column: Column, text: Composable) -> Composable:
    if column.type == "bytea":
        return SQL("decode({}, 'base64')").format(text)
    return SQL("{}::{}").format(text, SQL(doubled(column.type)))


def _in_listed(column: Column) -> Composed:
    logged = log_type(column)
    return SQL("{} = ANY (%(k1)s::{}[]::{}[])").format(
        key_name(column), SQL(logged), SQL("bigint" if logged == "bigint" else doubled(column.type))
    )


def _of_row(table: CapturedTable) -> list[Composable]:
    return [SQL("t.{}").format(column_name(column)) for column in table.key]


def _changed(table: CapturedTable) -> list[Composable]:
    return [SQL("changed.{}").format(name) for name in log_columns(table)]


def _joined(table: CapturedTable) -> Composed:
    return SQL(" AND ").join(
        SQL("{} = {}").format(key_name(column), changed)
        for column, changed in zip(table.key, _changed(table), strict=True)
    )
