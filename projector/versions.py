"""Versions of a view come and go: tables and registry entry together."""

from psycopg import Connection, sql

from projector.definition import View
from projector.errors import Refused
from projector.locks import SHORT_LOCKS, with_short_locks
from projector.offsets import lock_versions
from projector.registry import Registered, State, ViewVersion, register, remove, set_state, versions_of
from projector.rights import attach, attached_to, dependents, find_relation
from projector.stable_name import check_dependents, demand_free_name, show, stable_name
from projector.tables import SCHEMA, create_indexes, create_tables, drop_tables, table_names, version_tables

REGISTERED_VIEWS = """
SELECT DISTINCT view FROM projector.view_version ORDER BY view
"""


def make_version(connection: Connection, view: View, existing: list[Registered]) -> ViewVersion:
    """Make the tables of a view's next version, in state `building`, in one transaction; without its indexes.

    The tables get the owners and grants of those that they stand for in the active version. Raises Refused, before
    anything is changed, when something depends on the stable name that would be in the way of a swap, or has that name.
    """
    made = ViewVersion(view, max((one.kept.version for one in existing), default=0) + 1)
    active = next((one.kept for one in existing if one.state is State.ACTIVE), None)
    if active is None:
        demand_free_name(connection, view)
    elif active.view.schema != view.schema:
        raise Refused(
            f"readers find view {view.name!r} in schema {active.view.schema!r}, and it is declared in {view.schema!r} "
            "now: a rebuild leads them to other rows, and moves no name. Restore the schema, or declare a view of "
            "another name in the new one, and drop this one when nobody reads it any more. Nothing was changed"
        )
    with connection.transaction():
        create_tables(connection, view, made.version)
        register(connection, made)
        check_dependents(connection, made)
        if active is not None:
            _carry_rights(connection, active, made)
    return made


def first_version(connection: Connection, view: View) -> None:
    """Make the first version of a view and show it, in the caller's transaction: it is filled while it is shown."""
    version = make_version(connection, view, [])
    create_indexes(connection, view, version.version)
    show(connection, version)
    set_state(connection, version, State.ACTIVE)


def drop_version(connection: Connection, version: ViewVersion, *, wait_seconds: float, is_shown: bool = False) -> None:
    """Drop a version in one transaction, and with one that `is_shown` the name by which readers see it.

    Raises Refused when something of somebody else's depends on them, or queries use them for too long.
    """
    names = [sql.Identifier(SCHEMA, table) for table in table_names(version.view, version.version)]
    if is_shown:
        names.append(stable_name(version.view))

    def attempt() -> None:
        # First, as all who write to these tables do.
        lock_versions(connection, version.view.name, [version.version])
        found = [relation for name in names if (relation := find_relation(connection, name))]
        blocking = dependents(connection, found)
        if blocking:
            raise Refused(
                f"on version {version.version} of view {version.view.name!r} depend: {', '.join(blocking)}. Nothing "
                f"was changed: drop these{'' if is_shown else ', or have them read the view by its stable name'}"
            )
        connection.execute(SHORT_LOCKS)
        if is_shown:
            connection.execute(sql.SQL("DROP VIEW {}").format(stable_name(version.view)))
        drop_tables(connection, version.view, version.version)
        remove(connection, version)

    what = f"version {version.version} of view {version.view.name!r}"
    with_short_locks(connection, attempt, what=what, wait_seconds=wait_seconds)


def take_down(connection: Connection) -> None:
    """Drop all that is registered, stable names included, in the caller's transaction."""
    for (name,) in connection.execute(REGISTERED_VIEWS).fetchall():
        for one in versions_of(connection, name):
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(stable_name(one.kept.view)))
            drop_tables(connection, one.kept.view, one.kept.version)


def _carry_rights(connection: Connection, before: ViewVersion, made: ViewVersion) -> None:
    # Rows for rows, a counted table's contributions for its contributions.
    tables = dict(zip((None, *before.view.counted_tables), table_names(before.view, before.version), strict=True))
    columns = {
        table.name: tuple(table.columns.keys()) for table in version_tables(made.view, made.version).tables.values()
    }
    for table, name in zip((None, *made.view.counted_tables), table_names(made.view, made.version), strict=True):
        relation = find_relation(connection, sql.Identifier(SCHEMA, tables[table])) if table in tables else None
        if relation is not None:
            attach(connection, sql.Identifier(SCHEMA, name), attached_to(connection, relation), columns[name])
