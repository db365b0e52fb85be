"""Waiting until a view reflects a time of its source: for audits, and for who wants to read its own writes."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from projector.errors import ProjectorError

POLL_SECONDS = 0.02
AS_OF = """
SELECT as_of, flags FROM public.viewkeeper_as_of WHERE view = %s
"""


_LEFT_OUT = {
    "held_back": "rows that are too large for their topic are left out: viewkeeper-cdc status names them",
    "dead_letters": "records that could not be applied are left out: viewkeeper-projector dead-letters list {view}",
}


@dataclass(frozen=True, slots=True)
class AsOf:
    """A view's as-of, and what flags say of it."""

    time: datetime
    flags: tuple[str, ...]


class NotReached(ProjectorError):  # noqa: N818 - the state, as a reader of the message has it
    """A view does not get as far as its source."""


def wait_until_reached(connection: Connection, view: str, until: datetime, *, wait_seconds: float) -> AsOf:
    """Return a view's as-of once all that was committed in its source by `until` is in it.

    One that is uncertain or an estimate does not count: more may have been committed by it. Raises NotReached after
    `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        as_of, flags = connection.execute(AS_OF, [view]).fetchone() or (None, [])
        if as_of and as_of >= until and not {"uncertain", "estimate"}.intersection(flags):
            return AsOf(as_of, tuple(flags))
        if time.monotonic() > deadline:
            known = f"{as_of.isoformat()}{''.join(f' ({flag})' for flag in flags)}" if as_of else "not known yet"
            raise NotReached(
                f"view {view!r} has not reached {until.isoformat()} of its source within {wait_seconds:g} s, its as-of "
                f"is {known}: are viewkeeper-cdc and viewkeeper-projector running, and does the capture have all its "
                "tables?"
            )
        time.sleep(POLL_SECONDS)


def left_out(view: str, flags: Iterable[str]) -> Iterator[str]:
    """Say in words what a view lacks, whatever its as-of: a write of one's own may be among it."""
    for flag in flags:
        if flag in _LEFT_OUT:
            yield _LEFT_OUT[flag].format(view=view)
