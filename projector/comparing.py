"""Two versions of a view compared at one point of their topics: which rows differ, in which fields."""

from collections.abc import Sequence

import msgspec
from psycopg import Connection, sql

from projector.definition import View
from projector.meeting import Pair, still_apart
from projector.rights import find_relation
from projector.tables import SCHEMA, complete_rows, view_table_name

EXAMPLES = 5

READ_ONLY_SNAPSHOT = """
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY
"""

# A column that has another type in the new version is compared as text.
COMPARE = """
WITH pairs AS (
    SELECT CASE WHEN {old_is_there} THEN {old_key} ELSE {new_key} END AS key,
        {old_is_there} AS in_old, {new_is_there} AS in_new{pairs}
    FROM ({old}) AS old FULL JOIN ({new}) AS new ON {same_key}
)
"""

COUNT = """
SELECT count(*), count(*) FILTER (WHERE NOT in_new), count(*) FILTER (WHERE NOT in_old),
    count(*) FILTER (WHERE in_old AND in_new AND ({differ})){by_field}
FROM pairs
"""

SHOW = """
SELECT key, CASE WHEN in_old THEN {old_row} END, CASE WHEN in_new THEN {new_row} END
FROM pairs
WHERE NOT in_old OR NOT in_new OR ({differ})
ORDER BY key
LIMIT {examples}
"""

TYPES = """
SELECT attname::text, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A row that differs: its shared fields as text in each version, None where the version has no such row."""

    key: str
    old: dict[str, str | None] | None
    new: dict[str, str | None] | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What comparing two versions at one point found.

    `only_old` and `only_new` count rows that the other does not have, `differing_fields` rows by field. Fields that
    only one of the versions has are named in `dropped` and `added`, those of another type in `retyped`. `not_compared`
    says why rows were not compared, where they were not.
    """

    compared_rows: int
    differing_rows: int
    only_old: int
    only_new: int
    differing_fields: dict[str, int]
    examples: tuple[Difference, ...]
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    retyped: tuple[str, ...]
    not_compared: str | None = None

    @property
    def equal(self) -> bool:
        """Whether each row that was compared is in both versions, with the same fields."""
        return not (self.differing_rows or self.only_old or self.only_new)


def compare(connection: Connection, pair: Pair, *, cursor_topic: str) -> Comparison | None:
    """Compare two versions in one snapshot, in which both have applied the same; None if in this one they have not."""
    with connection.transaction():
        connection.execute(READ_ONLY_SNAPSHOT)
        if still_apart(connection, pair, cursor_topic=cursor_topic):
            return None
        old, new = (
            _types(connection, pair.old.view, pair.old.version),
            _types(connection, pair.new.view, pair.new.version),
        )
        shared = [name for name in pair.new.view.column_names if name in old]
        retyped = tuple(name for name in shared if old[name] != new[name])
        found = Comparison(
            compared_rows=0,
            differing_rows=0,
            only_old=0,
            only_new=0,
            differing_fields={},
            examples=(),
            dropped=tuple(name for name in pair.old.view.column_names if name not in new),
            added=tuple(name for name in pair.new.view.column_names if name not in old),
            retyped=retyped,
            not_compared=_why_not(pair, retyped),
        )
        return found if found.not_compared else _with_rows(connection, pair, shared, found)


def _why_not(pair: Pair, retyped: Sequence[str]) -> str | None:
    if pair.stuck is not None:
        return f"the old version cannot be kept any more: {pair.stuck}"
    keys = pair.new.view.key_names
    if pair.old.view.key_names != keys or set(keys).intersection(retyped):
        return "the versions have different keys"
    return None


def _with_rows(connection: Connection, pair: Pair, shared: Sequence[str], found: Comparison) -> Comparison:
    fields = [name for name in shared if name not in pair.new.view.key_names]
    statements = _Statements(pair, fields, found.retyped)
    rows, only_old, only_new, differing, *by_field = connection.execute(statements.count()).fetchone() or (0,) * 4
    examples = connection.execute(statements.show()).fetchall() if differing or only_old or only_new else []
    return msgspec.structs.replace(
        found,
        compared_rows=rows,
        differing_rows=differing,
        only_old=only_old,
        only_new=only_new,
        differing_fields={name: count for name, count in zip(fields, by_field, strict=True) if count},
        examples=tuple(Difference(key=key, old=old, new=new) for key, old, new in examples),
    )


class _Statements:
    """The comparison's SQL over the fields that both versions have."""

    def __init__(self, pair: Pair, fields: Sequence[str], retyped: Sequence[str]) -> None:
        self._pair = pair
        self._fields = fields
        self._retyped = frozenset(retyped)

    def count(self) -> sql.Composed:
        by_field = [
            sql.SQL(", count(*) FILTER (WHERE in_old AND in_new AND {})").format(self._differs(place))
            for place in range(len(self._fields))
        ]
        return self._pairs() + sql.SQL(COUNT).format(differ=self._differ(), by_field=sql.Composed(by_field))

    def show(self) -> sql.Composed:
        return self._pairs() + sql.SQL(SHOW).format(
            differ=self._differ(),
            old_row=self._row("old"),
            new_row=self._row("new"),
            examples=sql.Literal(EXAMPLES),
        )

    def _pairs(self) -> sql.Composed:
        keys = self._pair.new.view.key_names
        pairs = [
            sql.SQL(", {}{cast} AS {}, {}{cast} AS {}").format(
                sql.Identifier("old", name),
                sql.Identifier(f"old_{place}"),
                sql.Identifier("new", name),
                sql.Identifier(f"new_{place}"),
                cast=sql.SQL("::text" if name in self._retyped else ""),
            )
            for place, name in enumerate(self._fields)
        ]
        return sql.SQL(COMPARE).format(
            old=complete_rows(self._pair.old.view, self._pair.old.version),
            new=complete_rows(self._pair.new.view, self._pair.new.version),
            old_key=_key_text("old", keys),
            new_key=_key_text("new", keys),
            old_is_there=sql.SQL("{} IS NOT NULL").format(sql.Identifier("old", keys[0])),
            new_is_there=sql.SQL("{} IS NOT NULL").format(sql.Identifier("new", keys[0])),
            same_key=sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier("old", key), sql.Identifier("new", key)) for key in keys
            ),
            pairs=sql.Composed(pairs),
        )

    def _differ(self) -> sql.Composable:
        if not self._fields:
            return sql.SQL("false")
        return sql.SQL(" OR ").join(self._differs(place) for place in range(len(self._fields)))

    def _differs(self, place: int) -> sql.Composed:
        return sql.SQL("{} IS DISTINCT FROM {}").format(sql.Identifier(f"old_{place}"), sql.Identifier(f"new_{place}"))

    def _row(self, side: str) -> sql.Composed:
        named = [
            sql.SQL("{}, {}::text").format(sql.Literal(name), sql.Identifier(f"{side}_{place}"))
            for place, name in enumerate(self._fields)
        ]
        # An array: a function takes a hundred arguments at most.
        return sql.SQL("json_build_object(VARIADIC ARRAY[{}]::text[])").format(sql.SQL(", ").join(named))


def _key_text(side: str, keys: Sequence[str]) -> sql.Composed:
    return sql.SQL("concat_ws('/', {})").format(sql.SQL(", ").join(sql.Identifier(side, key) for key in keys))


def _types(connection: Connection, view: View, version: int) -> dict[str, str]:
    relation = find_relation(connection, sql.Identifier(SCHEMA, view_table_name(view, version)))
    found: dict[str, str] = dict(connection.execute(TYPES, [relation.oid]).fetchall()) if relation else {}
    return {name: found[name] for name in view.column_names}
