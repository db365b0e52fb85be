"""A view before it is kept: its SQL, and some of its rows computed from the source, without Kafka."""

from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import msgspec
from psycopg import ClientCursor, sql
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from projector.audit_sql import build_audit_statements, key_and_row, key_parameters
from projector.definition import View
from projector.errors import DefinitionError
from projector.keys import key_of, parse_key
from projector.source_check import padded_columns, source_complaints
from runtime.postgres import connect, describe, translated
from runtime.terminal import printable

MOST_ROWS = 10
# A float has not all digits of a numeric.
_decode_row = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
_KEYS = "SELECT {texts} FROM {table} AS t ORDER BY {key} LIMIT {most}"


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A view's rows as the source has them now, and the SQL that computes them."""

    view: str
    sql: str
    rows: tuple[dict[str, Any], ...]


def preview_view(view: View, *, source_url: str, key: str | None = None) -> Preview:
    """Compute the row of `key`, or the first ten by key.

    Raises DefinitionError with all that is not true of the source, and ConfigurationError or DatabaseUnavailable when
    the source cannot be read.
    """
    where = describe(source_url)
    with connect(source_url, name="viewkeeper-preview", settings={"default_transaction_read_only": "on"}) as source:
        with translated(where):
            complaints = source_complaints(source, view)
        if complaints:
            listed = "".join(f"\n  - {complaint}" for complaint in complaints)
            raise DefinitionError(f"view {view.name!r} does not fit {where}:{listed}")
        with translated(where), nullcontext() if key is None else key_of(view, key):
            keys = [parse_key(view, key)] if key is not None else source.execute(_first_keys(view)).fetchall()
            cursor = ClientCursor(source)
            statements = build_audit_statements(view, padded_columns(source, view))
            query = cursor.mogrify(statements.source_rows_of.decode(), key_parameters(view, keys))
            rows = [_decode_row(key_and_row(row)[1]) for row in cursor.execute(query.encode())]
    return Preview(view=view.name, sql=_without_blank_lines(query), rows=tuple(rows))


def _first_keys(view: View) -> sql.Composed:
    key = [sql.Identifier("t", name) for name in view.key_names]
    return sql.SQL(_KEYS).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in key),
        table=sql.Identifier(view.row_tables[0].schema, view.row_tables[0].name),
        key=sql.SQL(", ").join(key),
        most=sql.Literal(MOST_ROWS),
    )


def preview_json(found: Preview) -> bytes:
    """Return SQL and rows for programs, numbers with all their digits."""
    return _encode(found)


def preview_text(view: View, found: Preview) -> RenderableType:
    """Return SQL and rows for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in view.column_names:
        table.add_column(name, overflow="fold")
    for row in found.rows:
        table.add_row(*(_shown(row[name]) for name in view.column_names))
    return Group(Text(found.sql), Text(), table if found.rows else Text(f"{view.rows[0].of} has no such row."))


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:f}" if isinstance(value, Decimal) else printable(str(value))


def _without_blank_lines(query: str) -> str:
    return "\n".join(line for line in query.splitlines() if line.strip())
