"""What `/live/figures` says of the pipeline, made of looks at the view database and the cursor topic. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from api.cursor_look import Word
from api.latencies import Latencies
from api.view_look import DatabaseLook, Partition, StoredView
from cdc.cursor import TableCursor
from projector.definition import View


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person should know: `what` is so, and where to look.

    One that `limits` makes the figures know less; nothing is known to be wrong.
    """

    what: str
    look_at: str
    limits: bool = False


class TableFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A table as its capture's cursor has it; all but its name is null while no capture names it.

    `phase` is waiting, reading, sweeping or complete; `rows_read` counts the rows of a snapshot that is being read.
    `age_seconds` is that of the watermark. `silent_seconds` ago its capture said something last.
    `lag_records` are published and not applied; null also where the stored offsets are not known.
    """

    table: str
    topic: str
    capture: str | None = None
    phase: str | None = None
    rows_read: int | None = None
    age_seconds: float | None = None
    uncertain: bool = False
    held_back: int = 0
    silent_seconds: float | None = None
    lag_records: int | None = None


class ViewFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A view now: its as-of (RFC 3339, UTC) with flags, and how far its tables have come.

    `capture_age_seconds` is the age of its tables' oldest watermark, `topic` the view's own, where it is captured.
    `standing_seconds` is how long nothing has been applied although records wait: known to who looks again and again.
    """

    as_of: datetime | None
    flags: tuple[str, ...]
    freshness_seconds: float | None
    lag_records: int | None
    dead_letters: int | None
    capture_age_seconds: float | None
    tables: tuple[TableFigures, ...]
    topic: TableFigures | None
    standing_seconds: float = 0.0


class ViewPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn of a view at one moment; null for what was not known."""

    changes_per_second: float | None
    freshness_seconds: float | None
    lag_records: int | None
    capture_age_seconds: float | None
    topic_age_seconds: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn at `at_ms`, milliseconds since 1970 by the API's clock; views by their names."""

    at_ms: int
    reads: Latencies
    views: Mapping[str, ViewPoint]


@dataclass(frozen=True, slots=True)
class Heard:
    """The captures' words at a look: at `now`, by the view database's clock, which is `at` by `time.monotonic()`."""

    words: Sequence[Word]
    now: datetime
    at: float


def view_figures(view: View, database: DatabaseLook | None, heard: Heard | None, *, prefix: str) -> ViewFigures:
    """Return the figures of a view by the newest looks, None for one that failed; ages are those of the look."""
    stored = database.views.get(view.name) if database else None
    tables = tuple(_table(str(table), prefix, heard, stored) for table in view.source_tables)
    own = _table(f"{view.schema}.{view.name}", prefix, heard, None)
    return ViewFigures(
        as_of=stored.as_of if stored else None,
        flags=stored.flags if stored else (),
        freshness_seconds=_age(database.now, stored.as_of) if database and stored else None,
        lag_records=_sum([table.lag_records for table in tables]),
        dead_letters=stored.dead_letters if stored else None,
        capture_age_seconds=_greatest([table.age_seconds for table in tables]),
        tables=tables,
        topic=own if own.capture else None,
    )


def point(figures: ViewFigures, *, changes_per_second: float | None) -> ViewPoint:
    """Return what is drawn of these figures."""
    return ViewPoint(
        changes_per_second=changes_per_second,
        freshness_seconds=figures.freshness_seconds,
        lag_records=figures.lag_records,
        capture_age_seconds=figures.capture_age_seconds,
        topic_age_seconds=figures.topic.age_seconds if figures.topic else None,
    )


def applied_records(view: View, look: DatabaseLook | None) -> int | None:
    """Return the sum of the next offsets of a view's source topics, None where it is not known.

    A topic is known by its table: what is before that in its name is the prefix, which has no dot.
    """
    stored = look.views.get(view.name) if look else None
    if stored is None or stored.next_offsets is None:
        return None
    tables = {str(table) for table in view.source_tables}
    return sum(offset for (topic, _), offset in stored.next_offsets.items() if topic.partition(".")[2] in tables)


def _table(table: str, prefix: str, heard: Heard | None, stored: StoredView | None) -> TableFigures:
    topic = f"{prefix}.{table}"
    words = heard.words if heard else ()
    told = [(word, entry) for word in words for entry in word.cursor.tables.values() if entry.topic == topic]
    if not told or heard is None:
        return TableFigures(table=table, topic=topic)
    word, entry = max(told, key=lambda one: one[0].offset)
    return TableFigures(
        table=table,
        topic=topic,
        capture=word.cursor.capture,
        phase=_phase(entry),
        rows_read=entry.reading.rows if entry.reading else None,
        age_seconds=_age(heard.now, entry.watermark.time if entry.watermark else None),
        uncertain=entry.watermark is not None and entry.watermark.uncertain,
        held_back=len(entry.held_back),
        silent_seconds=max(heard.at - word.heard_at, 0.0),
        lag_records=_lag(entry, stored.next_offsets if stored else None),
    )


def _phase(entry: TableCursor) -> str:
    if entry.position is None:
        return "waiting"
    if entry.reading is not None:
        return "reading"
    return "complete" if entry.complete else "sweeping"


def _lag(entry: TableCursor, stored: Mapping[Partition, int] | None) -> int | None:
    """Return how many offsets of a topic are published and not applied.

    A stored offset may be ahead of the cursor's: it is past the mark that ends a transaction.
    """
    if stored is None:
        return None
    places = enumerate(entry.next_offsets)
    return sum(max(end - stored.get((entry.topic, number), 0), 0) for number, end in places)


def _age(now: datetime, time: datetime | None) -> float | None:
    return None if time is None else max((now - time).total_seconds(), 0.0)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _greatest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
