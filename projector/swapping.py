"""The swap: readers are led from one version of a view to another in one short transaction."""

import time

import structlog
from psycopg import Connection

from projector.changelog import log_differences
from projector.locks import SHORT_LOCKS, with_short_locks
from projector.meeting import Pair, still_apart
from projector.offsets import lock_versions
from projector.registry import State, set_state
from projector.stable_name import show

log = structlog.get_logger()


class Apart(Exception):  # noqa: N818 - the state, not a failure
    """The versions do not stand at one point; somebody has to bring them there first."""


def swap(connection: Connection, pair: Pair, *, cursor_topic: str, wait_seconds: float) -> float:
    """Have readers see the new version instead of the old one, which stays as `previous`, and is kept.

    Nobody applies anything to either meanwhile, and they stand at one point, so that no reader sees an older row or an
    older as-of than before. Returns for how many seconds the name was locked. Raises Apart when the versions have moved
    apart, Refused as `show` does or when queries hold the name for `wait_seconds`.
    """

    def attempt() -> float:
        # As all who write to them: offsets first. After these locks nothing is waited for longer than SHORT_LOCKS says.
        lock_versions(connection, pair.name, pair.numbers)
        reason = still_apart(connection, pair, cursor_topic=cursor_topic)
        if reason:
            raise Apart(reason)
        connection.execute(SHORT_LOCKS)
        logged = log_differences(connection, pair)
        if logged:
            log.info("differences_logged", view=pair.name, keys=logged)
        held_since = show(connection, pair.new)
        # One version of a view is active at a time, and one is the former: neither takes the other's place directly.
        set_state(connection, pair.new, State.READY)
        set_state(connection, pair.old, State.RETIRED if pair.stuck else State.PREVIOUS)
        set_state(connection, pair.new, State.ACTIVE)
        return held_since

    held_since = with_short_locks(connection, attempt, what=f"view {pair.name!r}", wait_seconds=wait_seconds)
    lock_seconds = time.monotonic() - held_since
    log.info(
        "swapped",
        view=pair.name,
        version=pair.new.version,
        previous=pair.old.version,
        lock_milliseconds=round(lock_seconds * 1000, 1),
    )
    return lock_seconds
