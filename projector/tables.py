"""The tables of one version of a view, made from its definition, and the stable name that readers use."""

import hashlib
from typing import Any

import msgspec
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, MetaData, Numeric, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import TypeEngine

from cdc.wire import TableName
from projector.definition import ColumnType, View

SCHEMA = "projector"
SOURCE_KEY = "source_key"
PRESENT = "viewkeeper_present"
IDENTIFIER_BYTES = 63
VIEW_FILLFACTOR = 70
"""Room for the next version of a row in its own page: counts change all the time, and no index holds them."""

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


def create_version(connection: Connection, view: View, version: int) -> None:
    """Make the tables of a version and register it, with its whole definition, in state `building`."""
    version_tables(view, version).create_all(connection, checkfirst=False)
    connection.execute(
        text(
            """
            INSERT INTO projector.view_version (view, version, definition, state)
            VALUES (:view, :version, :definition, 'building')
            """
        ),
        {"view": view.name, "version": version, "definition": Jsonb(msgspec.to_builtins(view))},
    )
    connection.execute(
        text("INSERT INTO projector.as_of (view, version) VALUES (:view, :version)"),
        {"view": view.name, "version": version},
    )


def show_version(connection: Connection, view: View, version: int) -> None:
    """Let readers see a version under the view's stable name, complete rows only, and call it active."""
    create_view = sql.SQL(
        """
        CREATE VIEW {stable} AS
        SELECT {columns}
        FROM {table}
        WHERE {present}
        """
    ).format(
        stable=sql.Identifier(view.schema, view.name),
        columns=sql.SQL(", ").join(map(sql.Identifier, view.column_names)),
        table=sql.Identifier(SCHEMA, view_table_name(view, version)),
        present=sql.Identifier(PRESENT),
    )
    create_schema = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(view.schema))
    connection.exec_driver_sql(create_schema.as_string())
    connection.exec_driver_sql(create_view.as_string())
    connection.execute(
        text("UPDATE projector.view_version SET state = 'active' WHERE view = :view AND version = :version"),
        {"view": view.name, "version": version},
    )


def drop_version(connection: Connection, view: View, version: int) -> None:
    """Drop the stable name and the tables of a version; its registry entry stays."""
    drop_view = sql.SQL("DROP VIEW IF EXISTS {}").format(sql.Identifier(view.schema, view.name))
    connection.exec_driver_sql(drop_view.as_string())
    version_tables(view, version).drop_all(connection)


def version_tables(view: View, version: int) -> MetaData:
    """Return a version's tables: the view's rows, and one of contributions for each counted table."""
    metadata = MetaData(schema=SCHEMA)
    key_type = _key_type(view)
    Table(
        view_table_name(view, version),
        metadata,
        *(
            Column(column.name, key_type, primary_key=True, autoincrement=False)
            if column.name == view.key
            else Column(column.name, _TYPES[column.type])
            for column in view.row.columns
        ),
        # NULL until the source row itself has been seen, false once it is gone: in the upsert a NULL says that a row
        # carries increments only, and a NOT NULL constraint would be checked before the conflict is.
        Column(PRESENT, Boolean()),
        *(Column(measure.name, BigInteger(), nullable=False, server_default="0") for measure in view.measures),
        postgresql_with={"fillfactor": VIEW_FILLFACTOR},
    )
    for table in view.counted_tables:
        Table(
            contribution_table_name(view, version, table),
            metadata,
            # The record's key as it is on the wire: the view does not know its columns, equality is of bytes.
            Column(SOURCE_KEY, Text(collation="C"), primary_key=True),
            *(Column(name, key_type) for name in view.group_columns(table)),
        )
    return metadata


def _key_type(view: View) -> TypeEngine[Any]:
    # Byte order, so that the audit can merge the view with its source whatever their default collations are.
    return Text(collation="C") if view.key_column.type is ColumnType.TEXT else _TYPES[view.key_column.type]


def _identifier(name: str, *, hashed: bool = False) -> str:
    """Return a name that Postgres does not cut off, unique as the given one is."""
    if not hashed and len(name.encode()) <= IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: IDENTIFIER_BYTES - len(digest) - 1]}_{digest}"
