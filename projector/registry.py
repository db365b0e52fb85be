"""The registry of view versions: each with its whole definition and its state, against what is declared now."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import msgspec
from psycopg import Connection
from psycopg.types.json import Jsonb

from projector.definition import View
from projector.errors import DefinitionError
from runtime.errors import ConfigurationError
from runtime.migrations import migration_command

# By what the newest migration has made.
MIGRATED = """
SELECT to_regclass('projector.stable_view') IS NOT NULL
"""

DATABASE_ID = """
SELECT id::text FROM projector.database_id
"""

VERSIONS = """
SELECT version, definition, state
FROM projector.view_version
WHERE view = %s
ORDER BY version
"""

# Cheap enough to be asked for all the time: a version that was made anew under an old number shows as another one.
REGISTERED = """
SELECT view, version, state, md5(definition::text)
FROM projector.view_version
WHERE view = ANY (%s) AND state = ANY (%s)
ORDER BY view, version
"""

ADD_VERSION = """
INSERT INTO projector.view_version (view, version, definition, state)
VALUES (%s, %s, %s, 'building')
"""

ADD_AS_OF = """
INSERT INTO projector.as_of (view, version) VALUES (%s, %s)
"""

SET_STATE = """
UPDATE projector.view_version SET state = %s WHERE view = %s AND version = %s
"""

LEAVE = """
UPDATE projector.view_version SET state = %s WHERE view = %s AND version = %s AND state = %s
"""

# Offsets and as-of go with it.
REMOVE_VERSION = """
DELETE FROM projector.view_version WHERE view = %s AND version = %s
"""


class State(StrEnum):
    """What a version of a view is for."""

    BUILDING = "building"  # `rebuild` fills it
    READY = "ready"  # filled and kept by `run`, until it is swapped in
    ACTIVE = "active"  # what readers see
    PREVIOUS = "previous"  # what they saw before, kept by `run` for `rollback`
    RETIRED = "retired"  # could not be kept any longer, and readers do not see it; waits for its drop


KEPT = (State.READY, State.ACTIVE, State.PREVIOUS)
"""The states of versions that `run` keeps."""

LEFT = {State.READY: State.BUILDING, State.PREVIOUS: State.RETIRED}
"""What becomes of those that it can keep no longer, and that readers do not see."""

Seen = Sequence[tuple[str, int, str, str]]
"""What a cheap look at the registry shows: equal looks mean equal versions."""


@dataclass(frozen=True, slots=True)
class ViewVersion:
    """A view and one version of it."""

    view: View
    version: int


@dataclass(frozen=True, slots=True)
class Registered:
    """A version, by its stored definition, and its state."""

    kept: ViewVersion
    state: State


def versions_of(connection: Connection, name: str) -> list[Registered]:
    """Return all versions of a view, the oldest first."""
    return [
        Registered(ViewVersion(msgspec.convert(definition, View), version), State(state))
        for version, definition, state in connection.execute(VERSIONS, [name])
    ]


def kept_versions(connection: Connection, views: Iterable[View], *, where: str) -> list[Registered]:
    """Return the versions of these views that are to be kept, in the order in which all instances write to them.

    Raises ConfigurationError when the database, called `where` in messages, is not migrated or a view has no such
    version.
    """
    demand_migrated(connection, where=where)
    found: list[Registered] = []
    for view in sorted(views, key=lambda view: view.name):
        kept = [one for one in versions_of(connection, view.name) if one.state in KEPT]
        if not kept:
            raise _without_version(view.name, where)
        found += kept
    return found


def active_versions(connection: Connection, views: Iterable[View], *, where: str) -> list[ViewVersion]:
    """Return the version of each view that readers see, as it was defined when it was made, in order of their names.

    Raises ConfigurationError when the database, called `where` in messages, is not migrated or lacks a view.
    """
    demand_migrated(connection, where=where)
    found = []
    for view in sorted(views, key=lambda view: view.name):
        active = [one.kept for one in versions_of(connection, view.name) if one.state is State.ACTIVE]
        if not active:
            raise _without_version(view.name, where)
        found += active
    return found


def all_versions(connection: Connection, views: Iterable[View], *, where: str) -> list[Registered]:
    """Return the versions of each view, whatever their states; raises ConfigurationError as `active_versions` does."""
    demand_migrated(connection, where=where)
    found: list[Registered] = []
    for view in sorted(views, key=lambda view: view.name):
        versions = versions_of(connection, view.name)
        if not versions:
            raise _without_version(view.name, where)
        found += versions
    return found


def check_declared(connection: Connection, views: Iterable[View], *, where: str) -> None:
    """Raise DefinitionError when a view is declared as none of its versions was made, with the command that makes one.

    A version that is being built, or was rolled back from, will do: `run` keeps what the registry has.
    """
    demand_migrated(connection, where=where)
    for view in views:
        versions = versions_of(connection, view.name)
        if not versions:
            raise _without_version(view.name, where)
        if not any(is_declared(one.kept.view, view) for one in versions):
            shown = next((one for one in versions if one.state is State.ACTIVE), versions[-1])
            raise DefinitionError(
                f"{where}: version {shown.kept.version} of view {view.name!r} was made from another definition: "
                f"{differences(shown.kept.view, view)}. Restore the definition, or build a version of the new one "
                f"beside it:\n{rebuild_command(view.name)}"
            )


def demand_migrated(connection: Connection, *, where: str) -> None:
    """Raise ConfigurationError when the projector's tables are missing."""
    (migrated,) = connection.execute(MIGRATED).fetchone() or (False,)
    if not migrated:
        raise ConfigurationError(f"{where}: the projector's tables are missing; run\n{migration_command('view')}")


def look(connection: Connection, names: Sequence[str]) -> Seen:
    """Look at which versions of the named views are to be kept."""
    return connection.execute(REGISTERED, [list(names), list(KEPT)]).fetchall()


def register(connection: Connection, version: ViewVersion) -> None:
    """Register a version, with its whole definition, in state `building`."""
    key = [version.view.name, version.version]
    connection.execute(ADD_VERSION, [*key, Jsonb(msgspec.to_builtins(version.view))])
    connection.execute(ADD_AS_OF, key)


def set_state(connection: Connection, version: ViewVersion, state: State) -> None:
    """Change the state of a version."""
    connection.execute(SET_STATE, [state, version.view.name, version.version])


def leave(connection: Connection, registered: Registered) -> None:
    """Have `run` keep a version no longer, which is in a state of LEFT, unless that has changed meanwhile."""
    one = registered.kept
    connection.execute(LEAVE, [LEFT[registered.state], one.view.name, one.version, registered.state])


def remove(connection: Connection, version: ViewVersion) -> None:
    """Remove a version from the registry, with its offsets and its as-of."""
    connection.execute(REMOVE_VERSION, [version.view.name, version.version])


def database_id(connection: Connection) -> str:
    """Return the random id that this view database was given when it was migrated."""
    (found,) = connection.execute(DATABASE_ID).fetchone() or ("",)
    return str(found)


def rebuild_command(view: str) -> str:
    """Return the command that builds a new version of a view beside the one that readers see."""
    return f"viewkeeper-projector rebuild {view}"


def is_declared(stored: View, declared: View) -> bool:
    """Return whether a version's tables are those that a declaration asks for.

    How the view is served does not touch its tables: the resource may change at any time.
    """
    return _as_stored(stored) == _as_stored(declared)


def differences(stored: View, declared: View) -> str:
    """Say in what a declaration differs from the one that a version was made from."""
    return "; ".join(_differences(_as_stored(stored), _as_stored(declared), ""))


def _without_version(name: str, where: str) -> ConfigurationError:
    return ConfigurationError(f"{where}: view {name!r} has no filled tables; run\n{rebuild_command(name)}")


def _as_stored(view: View) -> Mapping[str, object]:
    stored = msgspec.json.decode(msgspec.json.encode(view), type=dict[str, object])
    return {name: value for name, value in stored.items() if name != "resource"}


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
    return ", ".join(
        str(cast(dict[str, object], value).get("name", value)) if isinstance(value, dict) else str(value)
        for value in values
    )
