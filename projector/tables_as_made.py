"""Whether a version's tables are still what was made from its definition: else a refused value says nothing."""

from psycopg import Cursor
from sqlalchemy.dialects import postgresql

from projector.definition import View
from projector.errors import ProjectorError
from projector.tables import version_tables

# Parameters: tables, columns and types, as they were made.
ALTERED_COLUMNS = """
SELECT table_name || '.' || column_name || ' ' || lower(type_name)
FROM unnest(%s::text[], %s::text[], %s::text[]) AS made (table_name, column_name, type_name)
LEFT JOIN pg_attribute
    ON attrelid = to_regclass(table_name) AND attname = column_name AND NOT attisdropped
    AND atttypid = to_regtype(type_name) AND atttypmod = -1
WHERE attname IS NULL
ORDER BY 1
"""


def demand_as_made(cursor: Cursor, view: View, version: int) -> None:
    """Raise ProjectorError when a column of a version's tables was altered or dropped by somebody."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
    made = [
        (f"{table.schema}.{dialect.identifier_preparer.quote(table.name)}", column.name, column.type.compile(dialect))
        for table in version_tables(view, version).tables.values()
        for column in table.columns
    ]
    tables, columns, types = zip(*made, strict=True)
    # A collation is no part of a type's name.
    names = [name.partition(" COLLATE ")[0] for name in types]
    altered = cursor.execute(ALTERED_COLUMNS, [list(tables), list(columns), names]).fetchall()
    if altered:
        raise ProjectorError(
            f"view {view.name!r}: Postgres refused a value, and these columns are not as they were made: "
            f"{', '.join(name for (name,) in altered)}. Restore them, or build the view anew"
        )
