"""The read store: requests that wait at the same moment are answered by one query."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any

import structlog

from api.errors import StoreUnavailable
from api.keys import Key
from api.metrics import LOOKUP_KEYS, STORE_CONNECTIONS
from api.session import NoAnswerInTime, Session, open_session
from api.statements import look_up
from projector.definition import View
from runtime.errors import ConfigurationError, ViewkeeperError
from runtime.postgres import describe

log = structlog.get_logger()

QUERIES_IN_FLIGHT = 1
"""While one is under way the next requests gather, so that one query at a time answers all who wait; each further one
splits them into smaller queries. More than one may be right where rows come from a slow disk: nobody measured that."""
KEYS_IN_QUERY = 500
"""A query of so many keys takes a few milliseconds; more would make those that come after it wait."""
PROBE_SECONDS = 0.5
"""So often one idle connection is tried, so that one that is lost is replaced before a request needs it."""
BACKOFF_CAP_SECONDS = 1.0
HEAL_SECONDS = 1.5
"""So long requests wait for a lost connection to be replaced, unless the first try fails before."""

_random = SystemRandom()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store knows of one key: the values of the resource's fields, in order, or None if it has no row.

    `as_of` is the time (RFC 3339, UTC) that this fully reflects, None while that is unknown; one that `is_certain` is
    no estimate.
    """

    values: Sequence[Any] | None
    as_of: str | None
    is_certain: bool

    def reflects(self, time: str) -> bool:
        """Return whether everything that was committed by a time, written as `as_of` is, is in this for sure."""
        return self.is_certain and self.as_of is not None and self.as_of >= time


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    key: Key
    reading: asyncio.Future[Reading]
    is_second_try: bool = False


class PostgresStore:
    """Reads rows of views from Postgres: requests `read` while `run` keeps the connections."""

    def __init__(self, url: str, views: Sequence[View], *, queue_requests: int) -> None:
        self._url = url
        self._statements = {view.name: look_up(view) for view in views}
        self._queue_requests = queue_requests
        # By view, in the order in which their first request came; only views with requests.
        self._waiting: dict[str, list[_Waiting]] = {}
        self._waiting_requests = 0
        # Connections without work; the alarm's result is whether to try the connection without work.
        self._idle: list[asyncio.Future[bool]] = []
        self._connecting = asyncio.Lock()
        self._connected = 0
        # No connection, and no reason to think that one is there in a moment: nobody is to wait for it.
        self._is_away = True
        self._has_answered = False
        self._reason = f"{describe(url)}: not connected yet"

    def ready(self) -> tuple[bool, str]:
        """Return whether the store answers, with a line that says so."""
        return not self._is_away, self._reason

    def demand_reachable(self) -> None:
        """Raise StoreUnavailable while nobody is to wait for the store."""
        if self._is_away:
            raise StoreUnavailable("the store cannot be reached")

    async def read(self, view_name: str, key: Key) -> Reading:
        """Read what the store knows of a key, given in its columns' canonical spellings; raises as `ask` does."""
        return await self.ask(view_name, key)

    def ask(self, view_name: str, key: Key) -> asyncio.Future[Reading]:
        """Ask what the store knows of a key; the reading is there when the query is answered that holds it.

        Raises StoreUnavailable: at once while the store is away or the queue is full, later when a query takes too
        long, or fails twice.
        """
        self.demand_reachable()
        if self._waiting_requests >= self._queue_requests:
            raise StoreUnavailable(f"{self._waiting_requests} requests wait for the store already")
        waiting = _Waiting(key, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(view_name, []).append(waiting)
        self._waiting_requests += 1
        self._wake_for_work()
        return waiting.reading

    async def run(self) -> None:
        """Keep the connections until cancelled; a lost one is replaced.

        Raises ConfigurationError when the store has never answered and waiting cannot help: the login is refused, the
        migration is missing. Once it has answered, that too is logged and tried again, since a process that serves
        needs no restart when the cause is gone.
        """
        tasks = [asyncio.create_task(self._probe())]
        tasks += [asyncio.create_task(self._keep_connected()) for _ in range(QUERIES_IN_FLIGHT)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if self._idle:
                # The one that has been idle longest.
                _ring(self._idle.pop(0), probe=True)

    async def _keep_connected(self) -> None:
        while True:
            session = await self._connect()
            self._connected += 1
            self._is_away = False
            self._reason = "the store answers"
            STORE_CONNECTIONS.set(self._connected)
            try:
                await self._answer(session)
            except ViewkeeperError as error:
                self._connected -= 1
                STORE_CONNECTIONS.set(self._connected)
                self._wake_for_work()
                log.warning("store_connection_lost", reason=str(error))
            finally:
                await session.close()

    async def _connect(self) -> Session:
        """Open a session, however many tries it takes; one task at a time, so that a try is one line in the log."""
        async with self._connecting:
            reason = f"{describe(self._url)}: not connected within {HEAL_SECONDS:g} s"
            patience = asyncio.get_running_loop().call_later(HEAL_SECONDS, self._give_up, reason)
            try:
                return await self._try_to_connect()
            finally:
                patience.cancel()

    async def _try_to_connect(self) -> Session:
        attempt = 0
        while True:
            try:
                session = await open_session(self._url, self._statements)
            except ViewkeeperError as error:
                if isinstance(error, ConfigurationError) and not self._has_answered:
                    raise
                reason = str(error)
            else:
                self._has_answered = True
                return session
            attempt += 1
            wait_seconds = min(BACKOFF_CAP_SECONDS, 0.1 * 2 ** min(attempt, 10)) * _random.uniform(0.5, 1)
            self._give_up(reason)
            log.warning("retrying", reason=reason, attempt=attempt, in_seconds=round(wait_seconds, 2))
            await asyncio.sleep(wait_seconds)

    def _give_up(self, reason: str) -> None:
        """Refuse all who wait, and who come until there is a connection; unless there is another one."""
        if self._connected:
            return
        self._is_away = True
        self._reason = reason
        for waiting in self._waiting.values():
            _refuse(waiting)
        self._waiting.clear()
        self._waiting_requests = 0

    async def _answer(self, session: Session) -> None:
        """Answer requests by one session until an error ends it."""
        while True:
            if not self._waiting:
                if await self._woken():
                    await session.look_up(next(iter(self._statements)), ())
                continue
            view_name, batch = self._next_batch()
            LOOKUP_KEYS.observe(len(batch))
            try:
                rows = await session.look_up(view_name, [waiting.key for waiting in batch])
            except NoAnswerInTime:
                _refuse(batch)
                raise
            except ViewkeeperError:
                self._try_again(view_name, batch)
                raise
            for position, as_of, is_certain, found, *values in rows:
                reading = batch[position - 1].reading
                if not reading.done():  # its request may have gone
                    reading.set_result(Reading(values if found else None, as_of, bool(is_certain)))

    def _next_batch(self) -> tuple[str, list[_Waiting]]:
        view_name = next(iter(self._waiting))
        waiting = self._waiting.pop(view_name)
        batch, rest = waiting[:KEYS_IN_QUERY], waiting[KEYS_IN_QUERY:]
        if rest:
            self._waiting[view_name] = rest
        self._waiting_requests -= len(batch)
        return view_name, batch

    def _try_again(self, view_name: str, batch: Sequence[_Waiting]) -> None:
        """Have another connection answer those whose connection was lost, before all others; refuse who had that."""
        _refuse([waiting for waiting in batch if waiting.is_second_try])
        again = [replace(waiting, is_second_try=True) for waiting in batch if not waiting.is_second_try]
        if again:
            self._waiting[view_name] = again + self._waiting.get(view_name, [])
            self._waiting_requests += len(again)

    async def _woken(self) -> bool:
        alarm: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._idle.append(alarm)
        return await alarm

    def _wake_for_work(self) -> None:
        if self._waiting and self._idle:
            _ring(self._idle.pop(), probe=False)


def _ring(alarm: asyncio.Future[bool], *, probe: bool) -> None:
    if not alarm.done():  # cancelled with its task
        alarm.set_result(probe)


def _refuse(waiting: Sequence[_Waiting]) -> None:
    for one in waiting:
        if not one.reading.done():
            one.reading.set_exception(StoreUnavailable("the store did not answer"))
