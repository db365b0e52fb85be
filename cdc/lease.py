"""The lease, which makes one process the leader of a capture, and the mark, which proves what was flushed."""

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg
import structlog

from runtime.errors import RetryableError, ViewkeeperError
from runtime.postgres import CommitWaits, CommitWatch, translated
from runtime.stop import Stop

log = structlog.get_logger()

RENEW_SECONDS = 1.0
BUSY_SECONDS = 600.0
"""One statement over a very large change log takes minutes; a leader that is silent for longer is taken to hang."""
COMMIT_SECONDS = 10.0
"""A commit of the lease or the mark may wait so long: well below the time of the Kafka transaction around it."""
_RELEASE_SECONDS = 2.0

_REGISTER = "INSERT INTO cdc.capture (name) VALUES (%(capture)s) ON CONFLICT DO NOTHING"
_STATE = "SELECT leader, beat FROM cdc.capture WHERE name = %(capture)s"
_TAKE = """
UPDATE cdc.capture SET leader = %(leader)s, beat = beat + 1
WHERE name = %(capture)s AND leader IS NOT DISTINCT FROM %(previous)s AND beat = %(beat)s
"""
_RENEW = "UPDATE cdc.capture SET beat = beat + 1 WHERE name = %(capture)s AND leader = %(leader)s"
_RELEASE = "UPDATE cdc.capture SET leader = NULL WHERE name = %(capture)s AND leader = %(leader)s"
_FLUSH = """
UPDATE cdc.capture SET pending_token = %(pending)s, published_token = %(published)s, beat = beat + 1
WHERE name = %(capture)s AND leader = %(leader)s
"""


class LeadershipLost(RetryableError):  # noqa: N818 - the state, as the log reads it
    """Another process took the lease over: wait as its standby."""


class Lease(ABC):
    """Makes one process the leader of a capture, and says what of the source is on disk.

    Whoever leads is kept the leader by a thread, once in `keep_seconds`.
    """

    def __init__(self, *, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._progress_at = time.monotonic()
        self._lost: ViewkeeperError | None = None

    @abstractmethod
    def win(self, stop: Stop, waiting: Callable[[], None]) -> bool:
        """Wait until this process is the leader; call `waiting` at each look. Return False if asked to stop."""

    @contextmanager
    def kept(self, beat: Callable[[], None], interrupt: Callable[[], None]) -> Iterator[None]:
        """Stay the leader while the body leads, also in a long statement; call `beat` each time.

        Stops when the body has shown no progress for BUSY_SECONDS. Once the lease is lost, `interrupt` is to end what
        the body may be waiting for.
        """
        over = threading.Event()

        def keep() -> None:
            while not over.wait(self._keep_seconds) and time.monotonic() - self._progress_at < BUSY_SECONDS:
                try:
                    self._keep()
                except ViewkeeperError as error:
                    self._lost = error
                    # Again and again, since the body may have begun to wait just after.
                    while not over.wait(RENEW_SECONDS):
                        interrupt()
                    return
                beat()

        self._progress_at = time.monotonic()
        thread = threading.Thread(target=keep, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def progress(self, turned_at: float) -> None:
        """Note when (`time.monotonic()`) the leader's loop has turned last.

        Raises what kept the lease from being renewed, LeadershipLost mostly.
        """
        self._progress_at = turned_at
        if self._lost is not None:
            raise self._lost

    @abstractmethod
    def flush(self, *, published: str) -> str:
        """Return once all that was read up to now is on the source's disk, with a token of its history.

        `published` is the token of the newest cursor that Kafka is known to have committed.
        """

    @abstractmethod
    def release(self) -> None:
        """Give the lease back, so that a standby need not wait for its end."""

    @abstractmethod
    def _keep(self) -> None:
        """Say that the leader is there; raise LeadershipLost if it is another one by now."""


class RowLease(Lease):
    """A capture's row in the source, held by one leader that raises its `beat`.

    A process that sees no progress for `lease_seconds` on its own clock takes the lease over; no two clocks are
    compared. The connection must be in autocommit with `synchronous_commit=on`. `leader` is this process's name in
    the row.
    """

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str, lease_seconds: float) -> None:
        super().__init__(keep_seconds=RENEW_SECONDS)
        self._connection = connection
        self._capture = capture
        self._where = where
        self._lease_seconds = lease_seconds
        self.leader = f"{connection.info.backend_pid}-{secrets.token_hex(8)}"
        # One commit at a time: who comes after one that waits in vain need not wait as long again.
        self._turn = threading.Lock()
        self._watch = CommitWatch(connection, where=where)
        self._waits: CommitWaits | None = None

    def win(self, stop: Stop, waiting: Callable[[], None]) -> bool:
        """Wait until this process is the leader; call `waiting` at each look. Return False if asked to stop."""
        self._commit(_REGISTER, {"capture": self._capture})
        seen: tuple[str | None, int] | None = None
        seen_at = time.monotonic()
        while not stop.requested:
            state = self._state()
            if state != seen:
                if seen is None and state[0] is not None:
                    log.info("standby", capture=self._capture, leader=state[0], reason="another process is the leader")
                seen, seen_at = state, time.monotonic()
            leaderless = state[0] is None or time.monotonic() - seen_at >= self._lease_seconds
            if leaderless and self._take(*state):
                log.info("leading", capture=self._capture, leader=self.leader)
                return True
            waiting()
            stop.wait(min(self._lease_seconds / 5, RENEW_SECONDS))
        return False

    def flush(self, *, published: str) -> str:
        """Commit a new token to the mark, and with it flush all WAL up to the last snapshot; return the token.

        A transaction that only took an xid is not flushed at its commit, and its xid is used again after a crash:
        what was read before would be another transaction's. Therefore this writes a row, and is called after the
        last snapshot that was used and before each Kafka commit. `published` is the token of the newest cursor that
        Kafka is known to have committed.

        Raises CommitWaits where a synchronous standby does not answer. On this server's disk it would all be by then,
        but the standby, once promoted, would not know the cursor's token: nothing may be published.
        """
        token = secrets.token_hex(8)
        self._update(_FLUSH, {"pending": token, "published": published})
        return token

    def release(self) -> None:
        """Give the lease back, so that a standby need not wait for its end."""
        values = {"capture": self._capture, "leader": self.leader}
        with self._turn, translated(self._where), self._watch.within(_RELEASE_SECONDS):
            self._connection.execute(_RELEASE, values)

    def _keep(self) -> None:
        self._update(_RENEW, {})

    def _state(self) -> tuple[str | None, int]:
        with translated(self._where):
            row = self._connection.execute(_STATE, {"capture": self._capture}).fetchone()
        if row is None:
            raise LeadershipLost(f"{self._where}: capture {self._capture} has no row in cdc.capture any more")
        return row[0], row[1]

    def _take(self, previous: str | None, beat: int) -> bool:
        values = {"capture": self._capture, "leader": self.leader, "previous": previous, "beat": beat}
        try:
            return self._commit(_TAKE, values) == 1
        except CommitWaits:
            # It is the leader by now, as others see it.
            with suppress(RetryableError):
                self.release()
            raise

    def _update(self, statement: str, values: dict[str, str]) -> None:
        values = {"capture": self._capture, "leader": self.leader, **values}
        if self._commit(statement, values) != 1:
            raise LeadershipLost(f"capture {self._capture}: another process took over the lease")

    def _commit(self, statement: str, values: Mapping[str, object]) -> int:
        """Execute a statement and return the number of its rows; raise CommitWaits if that takes too long, or did."""
        with self._turn:
            if self._waits is not None:
                raise self._waits
            try:
                with translated(self._where), self._watch.within(COMMIT_SECONDS):
                    return self._connection.execute(statement, values).rowcount
            except CommitWaits as error:
                self._waits = error
                raise
