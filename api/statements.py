"""The SQL of a view's look-up, built once from its definition. Nothing here is executed."""

from psycopg import sql

from projector.definition import Column, ColumnType, Field, Format, View

# One row a key of the parameter, an array literal of key texts: the key's position (from 1), the as-of of this very
# snapshot, whether there is a row, then the resource's fields. In one statement, since an as-of that is read after the
# row would claim more than the row shows; and also for keys without a row.
_LOOK_UP = """
SELECT k.position, ({as_of}), v.{key} IS NOT NULL, {fields}
FROM unnest($1::{key_type}[]) WITH ORDINALITY AS k (key, position)
LEFT JOIN {view} v ON v.{key} = k.key
"""

_AS_OF = """
SELECT to_char(as_of AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM public.viewkeeper_as_of WHERE view = {name} AND isfinite(as_of)
"""

# Outside the years that ISO 8601 writes in four digits, also for ±infinity, Postgres's own text, as on the wire.
_ISO = """
CASE WHEN {column} BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'
THEN to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') ELSE {column}::text END
"""

# to_char turns an infinite time into NULL and leaves out the era. Without the prefix TM its names are English.
_CALENDAR = """
CASE WHEN NOT isfinite({column}) THEN {column}::text
WHEN {column} < '0001-01-01' THEN to_char({column} AT TIME ZONE 'UTC', 'Dy Mon DD HH24:MI:SS "+0000" YYYY BC')
ELSE to_char({column} AT TIME ZONE 'UTC', 'Dy Mon DD HH24:MI:SS "+0000" YYYY') END
"""


def look_up(view: View) -> sql.Composed:
    """Return the statement that reads any number of a view's rows and its as-of, in one snapshot.

    Its parameter is an array literal of keys. Its columns: position in the array, as-of (RFC 3339, UTC, or NULL while
    unknown), whether the key has a row, and one value a field: as the JSON encoder takes it.
    """
    columns = {column.name: column for column in view.row.columns}
    return sql.SQL(_LOOK_UP).format(
        as_of=sql.SQL(_AS_OF).format(name=sql.Literal(view.name)),
        key=sql.Identifier(view.key),
        key_type=sql.SQL(view.key_column.type),
        fields=sql.SQL(", ").join(
            _shown(field, columns.get(field.column, Column(field.column, ColumnType.BIGINT)))
            for field in view.resource.fields
        ),
        view=sql.Identifier(view.schema, view.name),
    )


def _shown(field: Field, column: Column) -> sql.Composable:
    name = sql.Identifier("v", column.name)
    if field.format is Format.CALENDAR:
        return sql.SQL(_CALENDAR).format(column=name)
    if column.type is ColumnType.TIMESTAMPTZ:
        return sql.SQL(_ISO).format(column=name)
    # A JSON number would lose a numeric's digits in most readers, and could not say NaN; so it is a string, as on the
    # wire.
    if field.format is Format.STRING or column.type in {ColumnType.NUMERIC, ColumnType.UUID}:
        return sql.SQL("{}::text").format(name)
    return name
