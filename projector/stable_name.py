"""The name under which readers find a view, whichever of its versions it shows."""

import time
from collections.abc import Sequence

from psycopg import Connection, sql

from projector.changelog import made_anew
from projector.definition import View
from projector.errors import Refused
from projector.registry import ViewVersion
from projector.rights import Relation, attach, attached_to, dependents, find_relation
from projector.tables import SCHEMA, complete_rows, view_table_name

SHOW = """
CREATE OR REPLACE VIEW {stable}{options} AS
{complete_rows}
"""

COLUMNS = """
SELECT attname::text, atttypid, atttypmod, attcollation
FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""


def stable_name(view: View) -> sql.Identifier:
    """Return the name that readers use."""
    return sql.Identifier(view.schema, view.name)


def show(connection: Connection, version: ViewVersion) -> float:
    """Let readers see a version, in the caller's transaction; return since when, by `time.monotonic()`, it is locked.

    Columns that come at the end leave the name as it is; for all others it is dropped and made again, with owner,
    grants and comments. Raises Refused as `check_dependents` does.
    """
    view = version.view
    before = find_relation(connection, stable_name(view))
    if before is None:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(view.schema)))
        return _create(connection, version, ())
    if _is_replaceable(connection, before, version):
        return _create(connection, version, before.options)
    check_dependents(connection, version)
    attached = attached_to(connection, before)
    connection.execute(sql.SQL("DROP VIEW {}").format(stable_name(view)))
    held_since = time.monotonic()
    _create(connection, version, before.options)
    attach(connection, stable_name(view), attached, view.column_names)
    made_anew(connection, before.oid, stable_name(view))
    return held_since


def demand_free_name(connection: Connection, view: View) -> None:
    """Raise Refused when a view of which no version is shown would take the place of something of somebody else's."""
    name = stable_name(view)
    if find_relation(connection, name) is not None:
        raise Refused(
            f"{name.as_string(None)} is there already, and is not view {view.name!r}, which would take its place: "
            "rename it, or give the view another name or schema. Nothing was changed"
        )


def check_dependents(connection: Connection, version: ViewVersion) -> None:
    """Raise Refused, with their names, when something depends on the stable name and it cannot be kept for a version.

    The version's tables have to be there.
    """
    name = stable_name(version.view)
    before = find_relation(connection, name)
    if before is None or _is_replaceable(connection, before, version):
        return
    found = dependents(connection, [before])
    if found:
        raise Refused(
            f"version {version.version} of view {version.view.name!r} drops, retypes or moves columns of "
            f"{name.as_string(None)}, on which depend: {', '.join(found)}. Nothing was changed: drop these, and make "
            "them again after the swap"
        )


def _create(connection: Connection, version: ViewVersion, options: Sequence[str]) -> float:
    # Without its options the view would lose them: CREATE OR REPLACE sets them anew.
    named = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in _pairs(options)]
    connection.execute(
        sql.SQL(SHOW).format(
            stable=stable_name(version.view),
            options=sql.SQL(" WITH ({})").format(sql.SQL(", ").join(named)) if named else sql.SQL(""),
            complete_rows=complete_rows(version.view, version.version),
        )
    )
    return time.monotonic()


def _pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (option.partition("=") for option in options)]


def _is_replaceable(connection: Connection, before: Relation, version: ViewVersion) -> bool:
    """Return whether CREATE OR REPLACE VIEW will do: all columns stay as they are, more may come at the end."""
    table = find_relation(connection, sql.Identifier(SCHEMA, view_table_name(version.view, version.version)))
    if table is None:
        raise ValueError(f"version {version.version} of view {version.view.name!r} has no tables")
    columns = {name: kind for name, *kind in connection.execute(COLUMNS, [table.oid])}
    after = [(name, columns[name]) for name in version.view.column_names]
    shown = [(name, kind) for name, *kind in connection.execute(COLUMNS, [before.oid])]
    return after[: len(shown)] == shown
