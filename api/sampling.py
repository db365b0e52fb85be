"""Samples of the pipeline, one a second while somebody watches, kept for five minutes."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
import structlog

from api.cursor_look import Word, cursor_looks
from api.figures import Heard, Sample, Trouble, ViewFigures, ViewPoint, applied_records, point, view_figures
from api.latencies import LatencyCounts
from api.looks import LOOK_SECONDS, WANTED_SECONDS, Look, Looks, seconds_to_look
from api.trouble import database_troubles, kafka_troubles, view_troubles
from api.view_look import DatabaseLook, view_looks
from projector.definition import View
from runtime.settings import KafkaSettings
from runtime.words import duration_words

log = structlog.get_logger()

SeenT = TypeVar("SeenT")

KEPT_SAMPLES = 300
_LOOKING_SECONDS = 0.2
"""So long after looks have begun they mostly have ended."""
_OLD_LOOK_SECONDS = 4.0
"""What was seen longer ago is not known any more: the server has gone silent."""


class ServedView(msgspec.Struct, frozen=True, kw_only=True):
    """A view that is served, how it is asked for, and how it is now; `now` is null before the first sample."""

    name: str
    path: str
    parameters: tuple[str, ...]
    now: ViewFigures | None
    troubles: tuple[Trouble, ...]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What `/live/figures` says: `samples` are those that are newer than the one that was named, the oldest first."""

    at_ms: int
    sample_seconds: float
    kept_samples: int
    views: tuple[ServedView, ...]
    samples: tuple[Sample, ...]


class _Applied:
    """How fast a view's records are applied, from one look at the database to the next."""

    def __init__(self) -> None:
        self._seen: tuple[float, int] | None = None
        self._moved_at = 0.0
        self.per_second: float | None = None

    def take_in(self, at: float, applied: int | None) -> None:
        """Take in how many records were applied at a look; a version that was swapped in may have fewer."""
        if applied is None:
            self._seen = self.per_second = None
            return
        if self._seen is not None and at <= self._seen[0]:
            return  # it was not looked again
        if self._seen is None or applied != self._seen[1]:
            self._moved_at = at
        if self._seen is not None:
            self.per_second = max(applied - self._seen[1], 0) / (at - self._seen[0])
        self._seen = at, applied

    def standing_seconds(self, lag_records: int | None, at: float) -> float:
        """Return how long nothing has been applied although records wait."""
        if not lag_records:
            self._moved_at = at
        return max(at - self._moved_at, 0.0)


class Sampler:
    """Samples the views that are served; `latencies` is where requests are counted. Without `kafka` less is known.

    Nothing is done before the first question, and nothing from a minute after the last one on.
    """

    def __init__(self, view_url: str, kafka: KafkaSettings | None, views: Sequence[View]) -> None:
        self.latencies = LatencyCounts()
        self._views = views
        self._prefix = kafka.topic_prefix if kafka else ""
        self._database = Looks("live view database", lambda: view_looks(view_url, views))
        self._cursors = Looks("live cursor topic", lambda: cursor_looks(kafka)) if kafka else None
        self._applied = {view.name: _Applied() for view in views}
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._now: dict[str, ServedView] = {}
        self._wanted_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def figures(self, *, after_ms: int) -> Figures:
        """Return what is known now, with the samples after a moment, and sample for another minute."""
        self._want()
        return Figures(
            at_ms=_now_ms(),
            sample_seconds=LOOK_SECONDS,
            kept_samples=KEPT_SAMPLES,
            views=tuple(self._now.values()),
            samples=tuple(sample for sample in self._samples if sample.at_ms > after_ms),
        )

    async def close(self) -> None:
        """Sample no more."""
        if self._task is not None:
            self._task.cancel()
        for looks in self._looks:
            await asyncio.to_thread(looks.close)

    @property
    def _looks(self) -> Sequence[Looks[DatabaseLook] | Looks[Sequence[Word]]]:
        return (self._database, self._cursors) if self._cursors else (self._database,)

    def _want(self) -> None:
        self._wanted_until = time.monotonic() + WANTED_SECONDS
        for looks in self._looks:
            looks.want()
        if self._task is None or self._task.done():
            # What was known when the last watcher went is not what is so now.
            self._now = {view.name: _served(view, None, ()) for view in self._views}
            self.latencies.take()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while time.monotonic() < self._wanted_until:
            await asyncio.sleep(seconds_to_look() + _LOOKING_SECONDS)
            try:
                self._sample()
            except Exception:
                log.exception("sampling_failed")

    def _sample(self) -> None:
        at = time.monotonic()
        look, database_error = _known(self._database, at)
        database = look.seen if look else None
        heard, kafka_error = self._heard(look, at)
        general = [
            *database_troubles(database_error, database),
            *kafka_troubles(kafka_error, is_set=self._cursors is not None),
        ]
        points: dict[str, ViewPoint] = {}
        for view in self._views:
            applied = self._applied[view.name]
            applied.take_in(look.at if look else at, applied_records(view, database))
            figures = view_figures(view, database, heard, prefix=self._prefix)
            standing_seconds = applied.standing_seconds(figures.lag_records, at)
            figures = msgspec.structs.replace(figures, standing_seconds=standing_seconds)
            told = view_troubles(view, figures, is_stored=database is not None, is_heard=heard is not None)
            self._now[view.name] = _served(view, figures, (*general, *told))
            points[view.name] = point(figures, changes_per_second=applied.per_second)
        self._samples.append(Sample(at_ms=_now_ms(), reads=self.latencies.take(), views=points))

    def _heard(self, database: Look[DatabaseLook] | None, at: float) -> tuple[Heard | None, str | None]:
        """Return what the captures have said, or why that is not known."""
        if self._cursors is None:
            return None, None
        look, error = _known(self._cursors, at)
        if look is None or look.seen is None:
            return None, error
        now = datetime.now(UTC) - timedelta(seconds=at - look.at)
        if database is not None and database.seen is not None:
            # Ages of one row of figures are told by one clock.
            now = database.seen.now + timedelta(seconds=look.at - database.at)
        return Heard(look.seen, now, look.at), None


def _known(looks: Looks[SeenT], at: float) -> tuple[Look[SeenT] | None, str | None]:
    """Return the newest look, None where it met an error or is too old, then with words that say so."""
    newest = looks.newest
    silent_seconds = at - (newest.at if newest else looks.began_at)
    if silent_seconds > _OLD_LOOK_SECONDS:
        return None, f"nothing was heard of it for {duration_words(silent_seconds)}"
    if newest is None or newest.error is not None:
        return None, newest.error if newest else None
    return newest, None


def _served(view: View, now: ViewFigures | None, troubles: Sequence[Trouble]) -> ServedView:
    return ServedView(
        name=view.name,
        path=view.resource.path,
        parameters=tuple(view.resource.parameters.values()),
        now=now,
        troubles=tuple(troubles),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
