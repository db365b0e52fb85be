"""Whether a view's declaration is true of the source: its tables, their columns, and the types of these."""

from collections.abc import Iterator, Mapping

from psycopg import Connection, sql

from cdc.wire import TableName
from projector.column_types import ColumnType
from projector.definition import View

# Domains count as what they are made from, as on the wire.
COLUMNS = """
WITH RECURSIVE made_from AS (
    SELECT a.attname::text AS name, a.atttypid AS oid
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT m.name, t.typbasetype FROM made_from m JOIN pg_catalog.pg_type t ON t.oid = m.oid WHERE t.typbasetype <> 0)
SELECT m.name, CASE t.typtype WHEN 'e' THEN 'enum' ELSE format_type(m.oid, NULL) END
FROM made_from m JOIN pg_catalog.pg_type t ON t.oid = m.oid
WHERE t.typbasetype = 0
"""
# The columns of type character(n), with n.
PADDED = """
WITH RECURSIVE made_from AS (
    SELECT a.attname::text AS name, a.atttypid AS oid, a.atttypmod AS modifier
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT m.name, t.typbasetype, t.typtypmod
    FROM made_from m JOIN pg_catalog.pg_type t ON t.oid = m.oid
    WHERE t.typbasetype <> 0)
SELECT name, modifier - 4 FROM made_from WHERE oid = 'pg_catalog.bpchar'::regtype AND modifier > 4
"""
# Casting to text takes the blanks away.
HAS_SHORT = "SELECT EXISTS (SELECT FROM {table} WHERE length({column}::text) < {length})"
# Of the primary key, then of the unique indexes that `attach --key` may name instead.
KEYS = """
SELECT i.indisprimary, array_agg(a.attname::text)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_attribute a
    ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::smallint[])[0 : i.indnkeyatts - 1])
WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indisprimary
ORDER BY i.indisprimary DESC
"""

_SOURCE_TYPES: Mapping[ColumnType, frozenset[str]] = {
    ColumnType.BIGINT: frozenset({"bigint", "integer", "smallint"}),
    ColumnType.INTEGER: frozenset({"integer", "smallint"}),
    ColumnType.NUMERIC: frozenset({"numeric"}),
    ColumnType.BOOLEAN: frozenset({"boolean"}),
    ColumnType.TEXT: frozenset({"text", "character varying", "character", "enum"}),
    ColumnType.UUID: frozenset({"uuid"}),
    ColumnType.TIMESTAMPTZ: frozenset({"timestamp with time zone"}),
}


def source_complaints(connection: Connection, view: View) -> list[str]:
    """Return in words what of a view's declaration is not true of the source; empty if all is."""
    wanted = {table: view.columns_of(table) for table in view.counted_tables}
    keys: dict[TableName, tuple[str, ...]] = {}
    for table, row in zip(view.row_tables, view.rows, strict=True):
        keys[table] = tuple(column.name for column in view.key_of_row(row))
        wanted[table] = {column.name: column.type for column in (*view.key_of_row(row), *row.columns)}
    found = [
        complaint for table in wanted for complaint in _of_table(connection, table, wanted[table], keys.get(table))
    ]
    return found or padding_complaints(connection, view, padded_columns(connection, view))


def padding_complaints(connection: Connection, view: View, padded: Mapping[TableName, Mapping[str, int]]) -> list[str]:
    """Return in words which columns hold the view's key with blanks that others do not hold it with.

    SQL would find them equal, and the projector, which has them from their topics, does not. Values that fill their
    column have no blanks: a table is searched for shorter ones.
    """
    complaints = []
    for at, key in enumerate(view.key_columns):
        places = dict.fromkeys(
            (
                *(
                    (table, view.key_of_row(row)[at].name)
                    for table, row in zip(view.row_tables, view.rows, strict=True)
                ),
                *((TableName.parse(measure.of), measure.group_columns[at]) for measure in view.measures),
            )
        )
        lengths = {(table, name): padded.get(table, {}).get(name) for table, name in places}
        if len(set(lengths.values())) == 1:
            continue
        for (table, name), length in lengths.items():
            if length is not None and _has_short(connection, table, name, length):
                complaints.append(
                    f"{table}.{name} is character({length}) and has shorter values, whose blanks at the end are part "
                    f"of them in its topic, and of no {key.name!r} of a table that has it in another type: make it text"
                )
    return complaints


def _has_short(connection: Connection, table: TableName, column: str, length: int) -> bool:
    query = sql.SQL(HAS_SHORT).format(
        table=sql.Identifier(table.schema, table.name), column=sql.Identifier(column), length=sql.Literal(length)
    )
    (found,) = connection.execute(query).fetchone() or (False,)
    return bool(found)


def padded_columns(connection: Connection, view: View) -> dict[TableName, dict[str, int]]:
    """Return the columns of the source that are padded with blanks on the wire, by table, each with its length.

    SQL leaves the blanks out wherever it takes such a column for text.
    """
    found: dict[TableName, dict[str, int]] = {
        table: dict(connection.execute(PADDED, [_quoted(table)]).fetchall()) for table in view.source_tables
    }
    return {table: columns for table, columns in found.items() if columns}


def _quoted(table: TableName) -> str:
    return f'"{table.schema}"."{table.name}"'


def _of_table(
    connection: Connection, table: TableName, types: Mapping[str, ColumnType], key: tuple[str, ...] | None
) -> Iterator[str]:
    """Yield what is not true of a table; `key` names the view's key in a row's."""
    name = _quoted(table)
    found: dict[str, str] = dict(connection.execute(COLUMNS, [name]).fetchall())
    if not found:
        yield f"there is no table {table} that this role may see"
        return
    for column, column_type in types.items():
        if column not in found:
            yield f"{table} has no column {column!r}; it has {', '.join(sorted(found))}"
        elif found[column] not in _SOURCE_TYPES[column_type]:
            yield f"{table}.{column} is {found[column]}, and is declared {column_type}"
    keys = connection.execute(KEYS, [name]).fetchall()
    # Records name their key's columns: the order does not matter.
    if key and all(set(columns) != set(key) for _, columns in keys):
        for columns in [columns for is_primary, columns in keys if is_primary]:
            yield f"the primary key of {table} is ({', '.join(columns)}), and the view's key is {', '.join(key)}"
