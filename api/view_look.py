"""A look at the view database: what the projector has stored of the views that are served."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg

from projector.definition import View
from runtime.postgres import connect, describe, translated

NAME = "viewkeeper-api-live"
_SESSION = {
    "statement_timeout": "1000",
    "lock_timeout": "100",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "TimeZone": "UTC",
    "default_transaction_read_only": "on",
}

_NOW = "SELECT clock_timestamp(), current_user::text"
_AS_OF = (
    "SELECT view, as_of, flags FROM public.viewkeeper_as_of WHERE view = ANY (%s) AND as_of IS DISTINCT FROM 'infinity'"
)
_OFFSETS = """
SELECT view, topic, partition, next_offset
FROM projector.partition_offset JOIN projector.view_version USING (view, version)
WHERE state = 'active' AND view = ANY (%s)
"""
# Bounded: thousands of them are told from one another by nobody.
_DEAD_LETTERS = """
SELECT view, (
    SELECT count(*) FROM (
        SELECT FROM projector.dead_letter AS letter
        WHERE (letter.view, letter.version) = (view_version.view, view_version.version) LIMIT 10000
    ) AS letters
)
FROM projector.view_version
WHERE state = 'active' AND view = ANY (%s)
"""

Partition = tuple[str, int]
"""A topic's name and the number of one of its partitions."""


@dataclass(frozen=True, slots=True)
class StoredView:
    """What is stored of the version of a view that readers see; None for what the role may not read."""

    as_of: datetime | None
    flags: tuple[str, ...]
    next_offsets: Mapping[Partition, int] | None
    dead_letters: int | None


@dataclass(frozen=True, slots=True)
class DatabaseLook:
    """What the view database said at `now`, by its own clock: views by their names, those that have a version to read.

    `refused` names the tables that the role, called `role`, may not read.
    """

    now: datetime
    role: str
    views: Mapping[str, StoredView]
    refused: tuple[str, ...]


@contextmanager
def view_looks(url: str, views: Sequence[View]) -> Iterator[Callable[[], DatabaseLook]]:
    """Open a session that is looked with; it reads only, and no statement takes longer than a second.

    Raises, as each look does, what `runtime.postgres` makes of an error; a right that is missing is none.
    """
    connection = connect(url, name=NAME, settings=_SESSION)
    names = [view.name for view in views]
    try:
        yield lambda: _look(connection, names, describe(url))
    finally:
        connection.close()


def _look(connection: psycopg.Connection, names: Sequence[str], where: str) -> DatabaseLook:
    refused: list[str] = []

    def rows(query: LiteralString, table: str) -> list[tuple[Any, ...]] | None:
        try:
            return connection.execute(query, [names]).fetchall()
        except pg.InsufficientPrivilege:
            refused.append(table)
            return None

    with translated(where):
        now, role = connection.execute(_NOW).fetchall()[0]
        # The as-of before the offsets: these may be ahead of it, and it never claims more than they show.
        as_ofs = rows(_AS_OF, "public.viewkeeper_as_of") or []
        offsets = rows(_OFFSETS, "projector.partition_offset")
        letters = rows(_DEAD_LETTERS, "projector.dead_letter")
    by_view: dict[str, dict[Partition, int]] = {}
    for view, topic, partition, next_offset in offsets or ():
        by_view.setdefault(view, {})[topic, partition] = next_offset
    counts: dict[str, int] = dict(letters or ())
    return DatabaseLook(
        now=now,
        role=role,
        views={
            view: StoredView(
                as_of=as_of,
                flags=tuple(flags),
                next_offsets=None if offsets is None else by_view.get(view, {}),
                dead_letters=None if letters is None else counts.get(view, 0),
            )
            for view, as_of, flags in as_ofs
        },
        refused=tuple(refused),
    )
