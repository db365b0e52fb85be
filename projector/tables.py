"""The tables of one version of a view, made from its definition."""

import hashlib
from typing import Any

from psycopg import Connection, sql
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, dialect
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

from cdc.wire import TableName
from projector.column_types import ColumnType
from projector.contributions import slots
from projector.definition import View

SCHEMA = "projector"
SOURCE_KEY = "source_key"
PRESENT = "viewkeeper_present"
IDENTIFIER_BYTES = 63
VIEW_FILLFACTOR = 70
"""Room for the next version of a row in its own page: counts change all the time, and no index holds them."""

COMPLETE_ROWS = """
SELECT {columns}
FROM {table}
WHERE {present}
"""

# A rebuild that was killed after it may have made some.
CREATE_INDEX = """
CREATE INDEX IF NOT EXISTS {index} ON {table} ({columns})
"""

_TYPES: dict[ColumnType, TypeEngine[Any]] = {
    ColumnType.BIGINT: BigInteger(),
    ColumnType.INTEGER: Integer(),
    ColumnType.NUMERIC: Numeric(),
    ColumnType.BOOLEAN: Boolean(),
    ColumnType.TEXT: Text(),
    ColumnType.UUID: Uuid(),
    ColumnType.TIMESTAMPTZ: TIMESTAMP(timezone=True),
}


def view_table_name(view: View, version: int) -> str:
    """Return the name, in schema projector, of the table that holds a version's rows."""
    return _identifier(f"{view.name}_v{version}")


def contribution_table_name(view: View, version: int, table: TableName) -> str:
    """Return the name, in schema projector, of the table of what each row of a counted table contributes."""
    # Only in schema public is the name unique by itself: a_b.c and a.b_c read the same.
    return _identifier(f"{view.name}_v{version}_{table.schema}_{table.name}", hashed=table.schema != "public")


def present_name(place: int) -> str:
    """Return the column that says whether the source row is there, for the view's row at a place."""
    return PRESENT if place == 0 else f"{PRESENT}_{place + 1}"


def index_name(view: View, version: int, columns: tuple[str, ...]) -> str:
    """Return the name, in schema projector, of a declared index over some columns of a version's rows."""
    # Always hashed: a_b and (a, b) read the same.
    return _identifier(f"{view.name}_v{version}_{'_'.join(columns)}_idx", hashed=True)


def create_tables(connection: Connection, view: View, version: int) -> None:
    """Make the tables of a version, without the indexes that its definition asks for."""
    for table in version_tables(view, version).sorted_tables:
        statement = CreateTable(table).compile(dialect=dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy's
        connection.execute(str(statement).encode())


def create_indexes(connection: Connection, view: View, version: int) -> None:
    """Make the declared indexes of a version's rows, those that are missing."""
    for columns in view.indexes:
        statement = sql.SQL(CREATE_INDEX).format(
            index=sql.Identifier(index_name(view, version, columns)),
            table=sql.Identifier(SCHEMA, view_table_name(view, version)),
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        )
        connection.execute(statement)


def drop_tables(connection: Connection, view: View, version: int) -> None:
    """Drop the tables of a version."""
    for table in table_names(view, version):
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(SCHEMA, table)))


def table_names(view: View, version: int) -> tuple[str, ...]:
    """Return the names, in schema projector, of all tables of a version: the rows' first."""
    contributions = (contribution_table_name(view, version, table) for table in view.counted_tables)
    return (view_table_name(view, version), *contributions)


def complete_rows(view: View, version: int) -> sql.Composed:
    """Return the query of what readers see of a version: rows that have their first row, columns in their order."""
    return sql.SQL(COMPLETE_ROWS).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, view.column_names)),
        table=sql.Identifier(SCHEMA, view_table_name(view, version)),
        present=sql.Identifier(PRESENT),
    )


def version_tables(view: View, version: int) -> MetaData:
    """Return a version's tables: the view's rows, and one of contributions for each counted table."""
    metadata = MetaData(schema=SCHEMA)
    Table(
        view_table_name(view, version),
        metadata,
        *(
            Column(column.name, _key_type(column.type), nullable=False, autoincrement=False)
            if column.name in view.key_names
            else Column(column.name, _TYPES[column.type])
            for column in view.row_columns
        ),
        # NULL until the source row itself has been seen, false once it is gone: in the upsert a NULL says that nothing
        # is new of that row, and a NOT NULL constraint would be checked before the conflict is.
        *(Column(present_name(place), Boolean()) for place in range(len(view.rows))),
        *(Column(one.name, _TYPES[one.type], nullable=False, server_default="0") for one in view.measures),
        # In the key's order, in which the audit reads.
        PrimaryKeyConstraint(*view.key_names),
        postgresql_with={"fillfactor": VIEW_FILLFACTOR},
    )
    for table in view.counted_tables:
        Table(
            contribution_table_name(view, version, table),
            metadata,
            # The record's key as it is on the wire: the view does not know its columns, equality is of bytes.
            Column(SOURCE_KEY, Text(collation="C"), primary_key=True),
            *(
                Column(slot.name, _TYPES[slot.type] if slot.group is None else _key_type(slot.type))
                for slot in slots(view, table)
            ),
        )
    return metadata


def _key_type(column_type: ColumnType) -> TypeEngine[Any]:
    # Byte order, so that the audit can merge the view with its source whatever their default collations are.
    return Text(collation="C") if column_type is ColumnType.TEXT else _TYPES[column_type]


def _identifier(name: str, *, hashed: bool = False) -> str:
    """Return a name that Postgres does not cut off, unique as the given one is."""
    if not hashed and len(name.encode()) <= IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: IDENTIFIER_BYTES - len(digest) - 1]}_{digest}"
