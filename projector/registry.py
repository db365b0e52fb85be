"""The registry of view versions: what was declared when a version was made, against what is declared now."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from psycopg import Connection

from projector.definition import View
from projector.errors import DefinitionError
from runtime.errors import ConfigurationError
from runtime.migrations import migration_command
from runtime.settings import variable

MIGRATED = """
SELECT to_regclass('projector.partition_offset') IS NOT NULL
"""

DATABASE_ID = """
SELECT id::text FROM projector.database_id
"""

ACTIVE_VERSION = """
SELECT version, definition
FROM projector.view_version
WHERE view = %s AND state = 'active'
"""


@dataclass(frozen=True, slots=True)
class ViewVersion:
    """A view and the version of it that readers see."""

    view: View
    version: int


def active_versions(connection: Connection, views: Iterable[View], *, where: str) -> list[ViewVersion]:
    """Return the active version of each view, in order of their names.

    Raises ConfigurationError when the database, called `where` in messages, is not migrated or lacks a view, and
    DefinitionError when a view's tables were made from another definition.
    """
    (migrated,) = connection.execute(MIGRATED).fetchone() or (False,)
    if not migrated:
        raise ConfigurationError(f"{where}: the projector's tables are missing; run\n{migration_command('view')}")
    return [_active_version(connection, view, where) for view in sorted(views, key=lambda view: view.name)]


def database_id(connection: Connection) -> str:
    """Return the random id that this view database was given when it was migrated."""
    (found,) = connection.execute(DATABASE_ID).fetchone() or ("",)
    return str(found)


def _active_version(connection: Connection, view: View, where: str) -> ViewVersion:
    found = connection.execute(ACTIVE_VERSION, [view.name]).fetchone()
    if found is None:
        raise ConfigurationError(
            f"{where}: view {view.name!r} has no tables: the migration makes them for the views that "
            f"{variable('views')} names when it first runs; take it back and run it again:\n{build_anew()}"
        )
    version, stored = found
    # How the view is served does not touch its tables: the resource may change at any time.
    differences = list(_differences(_without_resource(stored), _without_resource(_as_stored(view)), ""))
    if differences:
        raise DefinitionError(
            f"{where}: version {version} of view {view.name!r} was made from another definition: "
            f"{'; '.join(differences)}. Restore the definition, or build the view anew from its topics:\n{build_anew()}"
        )
    return ViewVersion(view, version)


def _without_resource(definition: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in definition.items() if name != "resource"}


def _as_stored(view: View) -> dict[str, object]:
    return msgspec.json.decode(msgspec.json.encode(view), type=dict[str, object])


def build_anew() -> str:
    """Return the commands that drop all views and make them again, to be filled from the beginning of their topics."""
    upgrade = migration_command("view")
    return f"{upgrade.replace('upgrade head', 'downgrade base')}\n{upgrade}"


def _differences(stored: object, declared: object, path: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(declared, dict):
        for name in dict.fromkeys((*stored, *declared)):
            yield from _differences(stored.get(name), declared.get(name), f"{path}.{name}" if path else name)
    elif isinstance(stored, list) and isinstance(declared, list):
        if len(stored) != len(declared):
            yield f"{path}: made with {_names(stored)}, declared {_names(declared)}"
        else:
            for place, (one, other) in enumerate(zip(stored, declared, strict=True)):
                yield from _differences(one, other, f"{path}[{place}]")
    elif stored != declared:
        yield f"{path}: made with {stored!r}, declared {declared!r}"


def _names(values: Sequence[object]) -> str:
    return ", ".join(str(value.get("name", value)) if isinstance(value, dict) else str(value) for value in values)
