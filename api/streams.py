"""The streams of rows: which keys have some, which of these are to be read again, and when.

A stream subscribes before its row is read, and what it is sent was always read after the change that it heard of: so
there is no order to keep between topic and store, no change is missed, and no stream goes back.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice

import structlog

from api.errors import StoreUnavailable, TooManyStreams
from api.events import Body, shown
from api.keys import Key
from api.metrics import STREAMS
from api.store import PostgresStore, Reading
from api.stream import Stream, StreamedRow

log = structlog.get_logger()

KEYS_AT_ONCE = 100
"""Read in one go: a change waits for a query of so many keys at most, and requests find room in the queue."""
READ_AGAIN_SECONDS = 0.2
"""So often the store is asked again while it does not answer."""
LINGER_SECONDS = 5.0
"""So long after the last stream the topics are still followed: clients come back."""
TICK_SECONDS = 1.0

Follow = Callable[["Streams", threading.Event], None]
"""Follows, in a thread of its own, the topics of the `view_names` until the event, and tells of it by `changed` and
`lost`, which are the loop's."""


class Streams:
    """All streams of this process, at most `limit`; nothing runs while there are none."""

    def __init__(
        self,
        store: PostgresStore,
        bodies: Mapping[str, Body],
        follow: Follow,
        *,
        limit: int,
        heartbeat_seconds: float,
        stall_seconds: float,
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._follow = follow
        self._limit = limit
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._rows: dict[tuple[str, Key], StreamedRow] = {}
        self._open = 0
        # To be read again, each in the order in which they came: what has changed, then what it is time for.
        self._changed: dict[StreamedRow, None] = {}
        self._due: dict[StreamedRow, None] = {}
        self._to_read = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._is_ending = False
        self.view_names: frozenset[str] = frozenset()

    async def open(self, view_name: str, key: Key, last_event_id: bytes | None) -> Stream:
        """Return a stream that has its first reading; it is to be closed.

        Raises TooManyStreams at the limit, StoreUnavailable when the store does not give the reading.
        """
        if self._is_ending:
            raise StoreUnavailable("the server is stopping")
        if self._open >= self._limit:
            raise TooManyStreams(f"{self._open} streams are open already")
        stream = Stream(self._row(view_name, key), last_event_id, stall_seconds=self._stall_seconds)
        stream.row.streams.add(stream)
        self._count(+1)
        self._want(stream.row)
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        try:
            await stream.first
        except BaseException:
            self.close(stream)
            raise
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        row = stream.row
        row.streams.discard(stream)
        self._count(-1)
        if not row.streams:
            del self._rows[row.view_name, row.key]
            self._changed.pop(row, None)
            self._due.pop(row, None)
            self.view_names = frozenset(view_name for view_name, _ in self._rows)

    def end(self) -> None:
        """End all streams at once, and take no more."""
        if self._is_ending:
            return
        self._is_ending = True
        for stream in self._all():
            if not stream.first.done():
                stream.first.set_exception(StoreUnavailable("the server is stopping"))
            stream.end()
        if self._work is not None:
            self._work.cancel()

    def watches(self, view_name: str, key: Key) -> bool:
        """Return whether a key has streams; any thread may ask."""
        return (view_name, key) in self._rows

    def changed(self, keys: Iterable[tuple[str, Key]]) -> None:
        """Read rows again: they have changed."""
        for name in keys:
            row = self._rows.get(name)
            if row is not None:
                self._want(row)

    def lost(self, view_names: Iterable[str]) -> None:
        """Read all rows of views again: nobody knows which of them have changed."""
        names = frozenset(view_names)
        self._due.update((row, None) for row in self._rows.values() if row.view_name in names)
        self._to_read.set()

    def _row(self, view_name: str, key: Key) -> StreamedRow:
        row = self._rows.get((view_name, key))
        if row is None:
            row = StreamedRow(view_name, key, self._want, said_at=asyncio.get_running_loop().time())
            self._rows[view_name, key] = row
            self.view_names |= {view_name}
        return row

    def _want(self, row: StreamedRow) -> None:
        self._changed[row] = None
        self._to_read.set()

    def _count(self, change: int) -> None:
        self._open += change
        STREAMS.set(self._open)

    def _all(self) -> list[Stream]:
        return [stream for row in self._rows.values() for stream in row.streams]

    async def _run(self) -> None:
        """Follow the topics, read and say what time it is, until there were no streams for a while."""
        stop = threading.Event()
        reading, beating = asyncio.create_task(self._read()), asyncio.create_task(self._beat())
        following = asyncio.create_task(asyncio.to_thread(self._follow, self, stop))
        tasks = (reading, beating, following)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for error in filter(None, (task.exception() for task in done)):
                log.error("streams_failed", exc_info=error)
                for stream in self._all():
                    if not stream.first.done():
                        stream.first.set_exception(StoreUnavailable("streams have failed"))
                    stream.drop("failed")
        finally:
            # The thread sees the event; only the end of the process waits for it.
            stop.set()
            reading.cancel()
            beating.cancel()
        # Some may have come since the others had gone.
        self._work = asyncio.create_task(self._run()) if self._rows else None

    async def _beat(self) -> None:
        """Have each row read again in time for its heartbeat; return once there were no streams for a while."""
        loop = asyncio.get_running_loop()
        last_open_at = loop.time()
        while loop.time() - last_open_at < LINGER_SECONDS:
            now = loop.time()
            for row in self._rows.values():
                if now - row.said_at >= self._heartbeat_seconds:
                    self._remind(row, now)
            if self._due:
                self._to_read.set()
            await asyncio.sleep(min(TICK_SECONDS, self._heartbeat_seconds / 5))
            if self._rows:
                last_open_at = loop.time()

    def _remind(self, row: StreamedRow, now: float) -> None:
        if row not in self._due and row not in self._changed:
            self._due[row] = None
            return
        # The store has not answered since the tick before.
        row.said_at = now
        for stream in row.streams:
            stream.repeat()

    async def _read(self) -> None:
        """Read what is to be read, on and on; one batch after the other, so that none overtakes a newer one."""
        while True:
            await self._to_read.wait()
            rows = list(dict.fromkeys(islice(chain(self._changed, self._due), KEYS_AT_ONCE)))
            if not rows:
                self._to_read.clear()
                continue
            for row in rows:
                # A change from here on makes it be read once more.
                self._changed.pop(row, None)
                self._due.pop(row, None)
            unread = await self._show(rows)
            if unread:
                self._changed.update((row, None) for row in unread if row.streams)
                await asyncio.sleep(READ_AGAIN_SECONDS)

    async def _show(self, rows: Sequence[StreamedRow]) -> list[StreamedRow]:
        """Read rows and offer them to their streams; return those that the store gave no answer for."""
        asked: dict[asyncio.Future[Reading], StreamedRow] = {}
        failed: dict[StreamedRow, StoreUnavailable] = {}
        for row in rows:
            try:
                asked[self._store.ask(row.view_name, row.key)] = row
            except StoreUnavailable as error:
                failed[row] = error
        if asked:
            await asyncio.wait(asked)
        now = asyncio.get_running_loop().time()
        for answer, row in asked.items():
            try:
                self._offer(row, answer.result(), now)
            except StoreUnavailable as error:
                failed[row] = error
        for row, reason in failed.items():
            for stream in row.streams:
                if not stream.first.done():
                    stream.first.set_exception(reason)
        return list(failed)

    def _offer(self, row: StreamedRow, reading: Reading, now: float) -> None:
        reads = shown(reading, self._bodies[row.view_name])
        is_time = now - row.said_at >= self._heartbeat_seconds
        if is_time:
            row.said_at = now
        for stream in row.streams:
            stream.offer(reads, beat=is_time)
