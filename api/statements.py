"""The SQL of a view's look-up, built once from its definition. Nothing here is executed."""

from dataclasses import dataclass

from psycopg import sql

from projector.definition import Column, ColumnType, Field, Format, View

# One row a key of the parameters, for each of its columns an array literal of texts: the key's position (from 1), the
# as-of of this very snapshot and whether it is certain, whether there is a row, then the resource's fields. In one
# statement, since an as-of that is read after the row would claim more than the row shows; and also for keys without a
# row.
_LOOK_UP = """
SELECT k.position, a.as_of, a.is_certain, {has_row}, {fields}
FROM unnest({arrays}) WITH ORDINALITY AS k ({keys}, position)
LEFT JOIN ({as_of}) a ON true
LEFT JOIN {view} v ON {is_key}
"""

_AS_OF = """
SELECT to_char(as_of AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS as_of,
       NOT flags && ARRAY['uncertain', 'estimate'] AS is_certain
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


@dataclass(frozen=True, slots=True)
class LookUp:
    """A statement, and how many parameters it has: one for each column of the view's key."""

    statement: sql.Composed
    parameters: int


def look_up(view: View) -> LookUp:
    """Return the statement that reads any number of a view's rows and its as-of, in one snapshot.

    Its parameters are array literals, the keys' values column by column. Its columns: position in the arrays, as-of
    (RFC 3339, UTC, or NULL while unknown), whether that is certain, whether the key has a row, and one value a field:
    as the JSON encoder takes it.
    """
    columns = {column.name: column for column in view.row_columns}
    columns |= {measure.name: Column(measure.name, measure.type) for measure in view.measures}
    key = [sql.Identifier("v", name) for name in view.key_names]
    numbers = range(1, len(key) + 1)
    statement = sql.SQL(_LOOK_UP).format(
        as_of=sql.SQL(_AS_OF).format(name=sql.Literal(view.name)),
        has_row=sql.SQL("{} IS NOT NULL").format(key[0]),
        arrays=sql.SQL(", ").join(
            sql.SQL(f"${number}::{column.type}[]") for number, column in zip(numbers, view.key_columns, strict=True)
        ),
        keys=sql.SQL(", ").join(sql.SQL(f"key_{number}") for number in numbers),
        is_key=sql.SQL(" AND ").join(
            sql.SQL(f"{{}} = k.key_{number}").format(name) for number, name in zip(numbers, key, strict=True)
        ),
        fields=sql.SQL(", ").join(_shown(field, columns[field.column]) for field in view.resource.fields),
        view=sql.Identifier(view.schema, view.name),
    )
    return LookUp(statement, parameters=len(key))


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
