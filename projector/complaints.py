"""What contradicts itself in a view's declaration, in words. That it is true of the source, source_check.py says."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cdc.errors import WireError
from cdc.wire import TableName
from projector.column_types import KEY_TYPES, ColumnType
from projector.errors import DefinitionError
from projector.expression_types import Kind, columns_in, kind_of
from projector.expressions import parse
from projector.parts import Format, Measure, Sum, as_names

if TYPE_CHECKING:
    from projector.definition import View

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PATH = re.compile(r"/[A-Za-z0-9_.-]+(/([A-Za-z0-9_.-]+|\{[A-Za-z_][A-Za-z0-9_]*\}))+")
# Room for `.amount` behind it.
_LONGEST_NAME = 56
_RESERVED = re.compile(r"viewkeeper_present(_\d+)?|source_key")
_SYSTEM = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
_MOST_KEY_COLUMNS = 32
"""So many columns a Postgres index has at most."""


def complaints(view: "View") -> Iterator[str]:
    """Yield what is wrong; each may rely on there being none before it."""
    yield from _name_complaints(view)
    yield from _key_complaints(view)
    yield from _table_complaints(view)
    yield from _row_complaints(view)
    yield from _measure_complaints(view)
    yield from _resource_complaints(view)
    yield from _index_complaints(view)


def _name_complaints(view: "View") -> Iterator[str]:
    read = [
        name
        for measure in view.measures
        for name in (*measure.group_columns, *(column.name for column in measure.columns))
    ]
    row_keys = [name for row in view.rows if row.key is not None for name in as_names(row.key)]
    for name in (view.schema, view.name, *view.column_names, *read, *row_keys):
        if not _IDENTIFIER.fullmatch(name):
            yield f"{name!r} is no name: use lower-case letters, digits and _, at most 63"
        if _RESERVED.fullmatch(name):
            yield f"column {name!r} is Viewkeeper's own: give it another name"
        if name in _SYSTEM:
            yield f"column {name!r} is Postgres's own: give it another name"
    for name in _repeated(view.column_names):
        hint = ": only the first row lists the key's columns" if name in view.key_names and len(view.rows) > 1 else ""
        yield f"two columns are called {name!r}{hint}"


def _key_complaints(view: "View") -> Iterator[str]:
    if not view.rows:
        yield "it has no row: name the table that gives it its rows"
    types = {column.name: column.type for column in view.rows[0].columns}
    if not 0 < len(view.key_names) <= _MOST_KEY_COLUMNS:
        yield f"its key has {len(view.key_names)} columns; it may have 1 to {_MOST_KEY_COLUMNS}"
    for name in _repeated(view.key_names):
        yield f"its key has column {name!r} twice"
    for name in view.key_names:
        if name not in types:
            yield f"key {name!r} is no column of its row; those are {', '.join(types)}"
        elif types[name] not in KEY_TYPES:
            yield f"key {name!r} is {types[name]}; a key is one of {', '.join(sorted(KEY_TYPES))}"


def _row_complaints(view: "View") -> Iterator[str]:
    first, *others = view.rows
    if first.key is not None:
        yield f"{first.of} is the first row, whose key is the view's: leave `key` out there, or name the view's so"
    for row in others:
        if row.key is not None:
            yield from _columns_complaints(view, f"row {row.of} has key", as_names(row.key))
        if not row.columns:
            yield f"row {row.of} adds no column: leave it out"
    for table in _repeated(map(str, view.row_tables)):
        yield f"two rows are of {table}: make them one"


def _table_complaints(view: "View") -> Iterator[str]:
    for table in (*(row.of for row in view.rows), *(measure.of for measure in view.measures)):
        try:
            TableName.parse(table)
        except WireError as error:
            yield str(error)
    for row_table in view.row_tables:
        if row_table in view.counted_tables:
            yield f"{row_table} gives the rows and is counted: a table is one or the other"


def _measure_complaints(view: "View") -> Iterator[str]:
    types: dict[tuple[TableName, str], ColumnType] = {}
    for measure in view.measures:
        yield from _columns_complaints(view, f"{measure.name!r} is by", measure.group_columns)
        table = TableName.parse(measure.of)
        read = [*view.groups_of(measure).items(), *((column.name, column.type) for column in measure.columns)]
        for name, column_type in read:
            known = types.setdefault((table, name), column_type)
            if known is not column_type:
                yield f"column {name!r} of {measure.of} is {known} in one measure and {column_type} in another"
        if (measure.where is not None or isinstance(measure, Sum)) and len(measure.name) > _LONGEST_NAME:
            yield f"{measure.name!r}: a measure with `where` or `value` has a name of at most {_LONGEST_NAME} letters"
        yield from _expression_complaints(view, measure)


def _columns_complaints(view: "View", what: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yield what keeps columns from being those of the view's key, in its order, under other names."""
    if len(names) != len(view.key_names):
        key = ", ".join(f"{column.name} {column.type}" for column in view.key_columns)
        yield f"{what} ({', '.join(names)}), and the view's key is ({key}): name a column for each, in that order"
    for name in _repeated(names):
        yield f"{what} column {name!r} twice"


def _expression_complaints(view: "View", measure: Measure) -> Iterator[str]:
    columns = view.groups_of(measure) | {column.name: column.type for column in measure.columns}
    texts = [("where", measure.where, Kind.BOOLEAN)]
    if isinstance(measure, Sum):
        texts.append(("value", measure.value, Kind.NUMBER))
    used = set[str]()
    for name, text, wanted in texts:
        try:
            expression = parse(text) if text is not None else None
            found = kind_of(expression, columns) if expression is not None else wanted
        except DefinitionError as error:
            yield f"{name} of {measure.name!r}: {error}"
            return
        if found is not wanted:
            yield f"{name} of {measure.name!r} is {found}, and is to be {wanted}"
        used.update(columns_in(expression) if expression is not None else ())
    for column in measure.columns:
        if column.name not in used:
            yield f"{measure.name!r} declares column {column.name!r}, which none of its expressions reads"


def _resource_complaints(view: "View") -> Iterator[str]:
    parameters = list(view.resource.parameters.values())
    if not _PATH.fullmatch(view.resource.path) or len(parameters) != len(view.key_names):
        wanted = "/".join(f"{{{name}}}" for name in view.key_names)
        yield (
            f"path {view.resource.path!r}: write it as /name/{wanted}, with a parameter for each column of the key, in "
            "order, and a name first"
        )
    for name in _repeated(parameters):
        yield f"path {view.resource.path!r} has parameter {name!r} twice"
    if _repeated(field.name for field in view.resource.fields):
        yield "two fields of its resource have one name"
    types = {column.name: column.type for column in view.row_columns}
    for field in view.resource.fields:
        if field.column not in view.column_names:
            yield f"field {field.name!r} shows {field.column!r}, which is no column of the view"
        if field.format is Format.CALENDAR and types.get(field.column) is not ColumnType.TIMESTAMPTZ:
            yield f"field {field.name!r}: only a timestamptz has the format {field.format}"


def _repeated(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return sorted({name for name in listed if listed.count(name) > 1})


def _index_complaints(view: "View") -> Iterator[str]:
    for columns in view.indexes:
        if not columns:
            yield "an index is over no column"
        for name in columns:
            if name not in view.column_names:
                yield f"an index is over {name!r}, which is no column of the view"
    for columns in sorted({columns for columns in view.indexes if view.indexes.count(columns) > 1}):
        yield f"two indexes are over {', '.join(columns)}"
