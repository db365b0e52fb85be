"""The wire's JSON, written in SQL: which expression makes a column's value, and a row's key, into JSON.

docs/types.md has the rules, type by type. Most types are as `row_to_json` writes them; the others are cast here, inside
arrays too. Some of it hangs on the session's settings: see `SESSION` in cdc/session.py.
"""

import json
from collections.abc import Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from cdc.tables import Column

_INTEGERS = ("smallint", "integer", "bigint")
# Years that ISO 8601 writes in four digits; outside (also ±infinity) Postgres's own text says it without a doubt.
_COMMON_ERA = SQL("BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'")
_MOST_DIMENSIONS = 6


def wire_values(columns: Sequence[Column]) -> Composed:
    """Return the select list over a table `t` of which `row_to_json` makes a row's value."""
    return SQL(", ").join(
        SQL("{} AS {}").format(
            _masked(value) if column.is_masked else _wire_value(column.type, value), column_name(column)
        )
        for column in columns
        for value in [SQL("t.{}").format(column_name(column))]
    )


def key_json(columns: Sequence[Column], values: Sequence[Composable]) -> Composed:
    """Return the text of a key's JSON object, of one SQL expression a key column, of the column's own type.

    Building it by hand costs a fifth of row_to_json.
    """
    fields = [_key_field(column, value) for column, value in zip(columns, values, strict=True)]
    return SQL("'{{' || {} || '}}'").format(SQL(" || ',' || ").join(fields))


def column_name(column: Column) -> Identifier:
    """Name a column, for a statement that is executed with parameters."""
    return Identifier(doubled(column.name))


def doubled(text: str) -> str:
    """Double percent signs: in a statement that is executed with parameters psycopg reads %% as one."""
    return text.replace("%", "%%")


def _key_field(column: Column, value: Composable) -> Composable:
    name = Literal(doubled(f"{json.dumps(column.name, ensure_ascii=False)}:"))
    return SQL("{} || {}").format(name, _key_value(column.type, value))


def _key_value(type_name: str, value: Composable) -> Composable:
    if type_name in _INTEGERS:
        return value
    if type_name == "numeric":
        # 1.0 and 1.00 are one key in Postgres, and must be one key in Kafka.
        value = SQL("trim_scale({})").format(value)
    return SQL("to_json({})").format(_wire_value(type_name, value))


def _wire_value(type_name: str, value: Composable) -> Composable:
    """Return what `row_to_json` is given for a value: itself, a text, or finished JSON."""
    if type_name.endswith("[]"):
        return _array(type_name.removesuffix("[]"), value)
    if type_name == "numeric":
        return SQL("{}::text").format(value)
    if type_name == "money":
        return SQL("{}::numeric::text").format(value)
    if type_name == "bytea":
        # encode() breaks its lines after 76 characters.
        return SQL("replace(encode({}, 'base64'), E'\\n', '')").format(value)
    if type_name == "timestamp with time zone":
        return _timestamp(value, "Z")
    if type_name == "timestamp without time zone":
        return _timestamp(value, "")
    return value


def _masked(value: Composable) -> Composable:
    """Return HMAC-SHA256 (RFC 2104) of a value's text, as cdc.mask of the migration; the session has the key's pads."""
    return SQL("""
        CASE WHEN {value} IS DISTINCT FROM NULL THEN encode(sha256(
            decode(current_setting('viewkeeper.mask_outer'), 'hex') || sha256(
            decode(current_setting('viewkeeper.mask_inner'), 'hex') || convert_to({value}::text, 'UTF8'))), 'hex') END
    """).format(value=value)


def _timestamp(value: Composable, zone: str) -> Composable:
    return SQL("CASE WHEN {value} {common_era} THEN to_char({value}, {layout}) ELSE {value}::text END").format(
        value=value, common_era=_COMMON_ERA, layout=Literal(f'YYYY-MM-DD"T"HH24:MI:SS.US"{zone}"')
    )


def _array(element_type: str, value: Composable) -> Composable:
    if element_type == "numeric":
        return SQL("{}::text[]").format(value)
    if element_type == "money":
        return SQL("{}::numeric[]::text[]").format(value)
    element = SQL("e.value")
    wired = _wire_value(element_type, element)
    return value if wired is element else _array_json(value, wired)


def _array_json(value: Composable, wired: Composable) -> Composable:
    """Write an array's JSON, `wired` being what is written of each element `e.value`."""
    return SQL("""
        CASE WHEN array_ndims({value}) > 1 THEN {nested}
             WHEN {value} IS NOT NULL THEN to_json(ARRAY(SELECT to_json({wired}) FROM unnest({value}) AS e(value))) END
    """).format(value=value, nested=_nested_json(value, wired), wired=wired)


def _nested_json(value: Composable, wired: Composable) -> Composable:
    """Write an array of several dimensions element by element, which takes four times as long.

    A bracket opens before each dimension's first element and closes behind its last one: `size` is how many elements
    an array of that dimension holds, NULL for a dimension that is not there.
    """
    return SQL("""
        (SELECT string_agg(repeat('[', (SELECT count(*) FROM unnest(ARRAY[{sizes}]) AS s(size)
                                        WHERE (e.place - 1) %% s.size = 0)::int)
                           || coalesce(to_json({wired})::text, 'null')
                           || repeat(']', (SELECT count(*) FROM unnest(ARRAY[{sizes}]) AS s(size)
                                           WHERE e.place %% s.size = 0)::int), ',' ORDER BY e.place)::json
         FROM unnest({value}) WITH ORDINALITY AS e(value, place))
    """).format(value=value, sizes=SQL(", ").join(_sizes(value)), wired=wired)


def _sizes(value: Composable) -> list[Composable]:
    lengths = [SQL("array_length({}, {})").format(value, Literal(place)) for place in range(1, _MOST_DIMENSIONS + 1)]
    return [
        SQL("cardinality({}) / ({}) * {}").format(value, SQL(" * ").join(lengths[:place]), lengths[place - 1])
        for place in range(1, _MOST_DIMENSIONS + 1)
    ]
