"""Locks of a view: who keeps it, who changes its versions, tables locked for a moment, who holds some for too long."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TypeVar

import structlog
from psycopg import Connection
from psycopg import errors as pg

from projector.errors import Refused

log = structlog.get_logger()

# Advisory locks of a session go with it, however it ends.
TAKE_SHARED = """
SELECT pg_try_advisory_lock_shared(%(kind)s, hashtext(%(view)s))
"""

TAKE_ALONE = """
SELECT pg_try_advisory_lock(%(kind)s, hashtext(%(view)s))
"""

RELEASE = """
SELECT pg_advisory_unlock(%(kind)s, hashtext(%(view)s))
"""

HOLDERS = """
SELECT pid
FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 2
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND classid = %(kind)s::bigint::oid AND objid = (hashtext(%(view)s)::bigint & 4294967295)::oid
ORDER BY pid
"""

# In the middle of COPY a session is not idle, whatever it waits for: no timeout of all supported versions ends it.
HUNG = """
SELECT pid
FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user
AND application_name = current_setting('application_name')
AND state = 'active' AND wait_event = 'ClientRead'
AND query_start < clock_timestamp() - make_interval(secs => %s)
"""

HUNG_SECONDS = 10.0
"""A batch's COPY takes a fraction of it; whoever does not go on with one was paused or cut off."""

LOCK_SECONDS = 0.05
"""Whoever comes after us waits as long as we do: so long at most, then we step back and try again."""

PAUSE_SECONDS = (0.1, 0.4)
SAY_AGAIN_SECONDS = 5.0

# `lock_timeout` ends with the transaction.
SHORT_LOCKS = f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'"

T = TypeVar("T")


class Kind(IntEnum):
    """What a session holds an advisory lock of a view for; the numbers are ours by chance alone."""

    KEEPS = 1_986_359_857
    CHANGES_VERSIONS = 1_986_359_858


def say_kept(connection: Connection, view: str) -> None:
    """Let others see, for as long as this session lasts, that it keeps a view."""
    connection.execute(TAKE_SHARED, {"kind": int(Kind.KEEPS), "view": view})


def keepers(connection: Connection, view: str) -> list[int]:
    """Return the server processes of the sessions that keep a view."""
    return _holders(connection, Kind.KEEPS, view)


def version_changers(connection: Connection, view: str) -> list[int]:
    """Return the server processes of the sessions that change a view's versions: one at most."""
    return _holders(connection, Kind.CHANGES_VERSIONS, view)


@contextmanager
def changing_versions(connection: Connection, view: str) -> Iterator[None]:
    """Be the only one who changes a view's versions; raises Refused while another session does."""
    lock = {"kind": int(Kind.CHANGES_VERSIONS), "view": view}
    (taken,) = connection.execute(TAKE_ALONE, lock).fetchone() or (False,)
    if not taken:
        pids = ", ".join(map(str, version_changers(connection, view)))
        raise Refused(
            f"another command changes the versions of view {view!r} (server process {pids}): wait for its end. If its "
            "machine is gone, so is the lock once Postgres notices, or SELECT pg_terminate_backend(pid)"
        )
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute(RELEASE, lock)


def end_hung(connection: Connection) -> None:
    """End sessions like this one that have hung in the middle of a batch: they hold offset rows, and would for ever."""
    for (pid,) in connection.execute(HUNG, [HUNG_SECONDS]).fetchall():
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        log.warning("hung_session_ended", pid=pid, reason="it held the offsets of a batch that it did not go on with")


def with_short_locks(connection: Connection, attempt: Callable[[], T], *, what: str, wait_seconds: float) -> T:
    """Try a transaction that asks for locks under SHORT_LOCKS until it gets them, and return its result.

    Raises Refused after `wait_seconds`. `what` names in messages what is waited for.
    """
    deadline = time.monotonic() + wait_seconds
    say_at = time.monotonic() + SAY_AGAIN_SECONDS
    while True:
        try:
            with connection.transaction():
                return attempt()
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            now = time.monotonic()
            if now > deadline:
                raise Refused(
                    f"{what} is in use by queries that did not end within {wait_seconds:g} s; nothing was changed. "
                    "See pg_stat_activity for the oldest, and run the command again"
                ) from error
            if now > say_at:
                log.warning("waiting_for_lock", what=what, advice="a long query reads it; it is tried again")
                say_at = now + SAY_AGAIN_SECONDS
            time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - not for secrets


def _holders(connection: Connection, kind: Kind, view: str) -> list[int]:
    return [pid for (pid,) in connection.execute(HOLDERS, {"kind": int(kind), "view": view})]
