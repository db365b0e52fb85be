"""A rebuild driven by hand: definitions to go to, and what the registry and readers see."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from projector.definition import Column, ColumnType, Count, Sum, View
from projector.meeting import Pair
from projector.rebuild import Versions, open_versions
from projector.registry import ViewVersion
from runtime.stop import Stop
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import projector_settings
from views.user_information import user_information

VIEW = user_information.name
MEET_SECONDS = 30.0

# A measure comes at the end: the stable name can be replaced as it is.
added = replace(
    user_information,
    measures=(
        *user_information.measures,
        Count(
            "texts", of="public.tweets", by="user_id", where="text <> ''", columns=(Column("text", ColumnType.TEXT),)
        ),
    ),
)
# The count of likes becomes numeric: the stable name has to be made again.
retyped = replace(
    added,
    measures=(*added.measures[:3], Sum("like_count", of="public.likes", by="user_id", value="1"), added.measures[4]),
    indexes=(("username",), ("tweet_count", "username")),
)
# And a column goes.
changed = replace(
    retyped,
    row=replace(
        user_information.rows[0], columns=tuple(c for c in user_information.row_columns if c.name != "location")
    ),
    resource=replace(
        user_information.resource,
        fields=tuple(field for field in user_information.resource.fields if field.column != "location"),
    ),
)


# What a client asks for that stays away from what goes: the types are the old ones.
unplaced = replace(user_information, resource=changed.resource)
# Likes are not counted, so that their topic is not read.
unliked = replace(
    user_information,
    measures=user_information.measures[:3],
    resource=replace(user_information.resource, fields=user_information.resource.fields[:-1]),
)


@contextmanager
def versions_of(settings: Mapping[str, str], *, wait_seconds: float = 30.0, name: str = VIEW) -> Iterator[Versions]:
    """Open a view's versions, as a command does; the end of the block is as good as its being killed."""
    with open_versions(projector_settings(settings), name, Stop(), wait_seconds=wait_seconds) as versions:
        yield versions


def filled(versions: Versions, view: View) -> ViewVersion:
    """Build a version up to where it is ready."""
    coming = versions.begin(view)
    for _ in versions.fill(coming.kept):
        pass
    versions.make_ready(coming.kept)
    return coming.kept


def met(versions: Versions, new: ViewVersion) -> Pair:
    """Bring a version to the point where the active one is."""
    pair = versions.pair(new)
    assert pair is not None
    deadline = time.monotonic() + MEET_SECONDS
    for waiting in versions.meet(pair):
        if time.monotonic() > deadline:
            pytest.fail(f"after {MEET_SECONDS:g} s still {waiting.reason}")
    return pair


def swapped(versions: Versions, new: ViewVersion) -> float:
    """Bring a version to the active one's point, and swap; again where a `run` moved only one of them in between."""
    while (lock_seconds := versions.swap(met(versions, new))) is None:
        pass
    return lock_seconds


def some_users(changelog: Changelog, *, tweets: int = 60) -> None:
    """Publish four users with so many tweets among them, as many likes of user 1, and a watermark."""
    with changelog.transaction():
        for number in range(4):
            changelog.put("users", user(number, location="here"))
        for number in range(tweets):
            changelog.tweet(number, number % 4)
            changelog.like(number, 1)
        changelog.watermark()


def states(view_url: str) -> dict[int, str]:
    """Return the state of each version of user_information."""
    return dict(rows(view_url, "SELECT version, state FROM projector.view_version WHERE view = %s", VIEW))


def rows(view_url: str, query: str, *parameters: object) -> list[Any]:
    """Return the rows of a query."""
    with psycopg.connect(view_url) as session:
        return session.execute(query.encode(), parameters).fetchall()


def execute(view_url: str, *statements: str) -> None:
    """Run statements, one transaction each."""
    with psycopg.connect(view_url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


@contextmanager
def analyst(view_url: str) -> Iterator[str]:
    """Give a role of this test's own, which goes with all that it was granted."""
    name = f"analyst_{uuid4().hex[:12]}"
    with psycopg.connect(view_url, autocommit=True) as session:
        session.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            session.execute(sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(name)))
            session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
