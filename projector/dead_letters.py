"""Dead letters: records that could not be applied, kept in the view database until a newer one of their key comes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection, Cursor
from psycopg.rows import class_row

from projector.changes import Record, Refused

PAGE_LETTERS = 10
"""So many are held at once when all are gone through: each may be as large as a record may be."""

# Nearly always false. Read after the partitions are locked: nobody else adds a letter of theirs then.
ANY_LETTER = """
SELECT EXISTS (SELECT FROM projector.dead_letter WHERE view = %s AND version = %s)
"""

COUNT_LETTERS = """
SELECT count(*) FROM projector.dead_letter WHERE view = %s AND version = %s
"""

# Parameters: topics, partitions, keys and offsets of newer records.
SUPERSEDE = """
DELETE FROM projector.dead_letter AS letter
USING unnest(%s::text[], %s::integer[], %b::bytea[], %s::bigint[]) AS newer (topic, partition, key, "offset")
WHERE letter.view = %s AND letter.version = %s
AND letter.topic = newer.topic AND letter.partition = newer.partition AND letter.key = newer.key
AND letter."offset" < newer."offset"
"""

# A record that is read again after offsets were set back has its letter already.
ADD_LETTER = """
INSERT INTO projector.dead_letter (view, version, topic, partition, "offset", key, value, timestamp_ms, reason)
VALUES (%s, %s, %s, %s, %s, %b, %b, %s, %s)
ON CONFLICT (view, version, topic, partition, "offset") DO UPDATE SET reason = excluded.reason
"""

# Every parameter may be NULL, for any. No value is ever put into these texts.
CHOSEN = """
WHERE (%(view)s::text IS NULL OR view = %(view)s)
AND (%(topic)s::text IS NULL OR topic = %(topic)s)
AND (%(id)s::bigint IS NULL OR id = %(id)s)
"""

COUNT_CHOSEN = f"""
SELECT count(*) FROM projector.dead_letter
{CHOSEN}
"""  # noqa: S608 - see above

NEWEST_CHOSEN = f"""
SELECT coalesce(max(id), 0) FROM projector.dead_letter
{CHOSEN}
"""  # noqa: S608 - see above

READ_CHOSEN = f"""
SELECT id, view, version, topic, partition, "offset", key, value, timestamp_ms, reason, dead_since
FROM projector.dead_letter
{CHOSEN}
AND id > %(after)s AND (%(until)s::bigint IS NULL OR id <= %(until)s)
ORDER BY id
LIMIT %(limit)s
"""  # noqa: S608 - see above

DISCARD_CHOSEN = f"""
DELETE FROM projector.dead_letter
{CHOSEN}
"""  # noqa: S608 - see above


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be applied to a version of a view, as it was read, and the newest reason."""

    id: int
    view: str
    version: int
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None
    reason: str
    dead_since: datetime


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters a command is for; None for any."""

    view: str | None = None
    topic: str | None = None
    id: int | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of the statements above."""
        return {"view": self.view, "topic": self.topic, "id": self.id}


class DeadLetters:
    """The dead letters of one version of a view, as its batches add and supersede them in their transactions."""

    def __init__(self, view: str, version: int) -> None:
        self._version = (view, version)

    def any(self, cursor: Cursor) -> bool:
        """Return whether there is one."""
        (found,) = cursor.execute(ANY_LETTER, self._version).fetchone() or (False,)
        return bool(found)

    def count(self, cursor: Cursor) -> int:
        """Return how many there are."""
        (found,) = cursor.execute(COUNT_LETTERS, self._version).fetchone() or (0,)
        return int(found)

    def supersede(self, cursor: Cursor, newest: Mapping[str, Mapping[bytes | None, Record]]) -> None:
        """Delete the letters of keys that have a newer record, which says what is true of their rows now."""
        newer = [record for records in newest.values() for key, record in records.items() if key is not None]
        columns = [
            [record.topic() for record in newer],
            [record.partition() for record in newer],
            [record.key() for record in newer],
            [record.offset() for record in newer],
        ]
        cursor.execute(SUPERSEDE, [*columns, *self._version])

    def add(self, cursor: Cursor, refused: Iterable[Refused]) -> None:
        """Add letters."""
        cursor.executemany(ADD_LETTER, [[*self._version, *_values(one)] for one in refused])


def _values(refused: Refused) -> tuple[object, ...]:
    record = refused.record
    kind, milliseconds = record.timestamp()
    return (
        record.topic(),
        record.partition(),
        record.offset(),
        record.key(),
        record.value(),
        milliseconds if kind else None,
        reason_text(refused.reason),
    )


def reason_text(reason: str) -> str:
    """Return a reason as Postgres can hold it: a message may repeat any part of a record."""
    return reason.replace("\0", "\\0")


def count_letters(connection: Connection, choice: Choice) -> int:
    """Return how many dead letters are chosen."""
    (found,) = connection.execute(COUNT_CHOSEN, choice.parameters).fetchone() or (0,)
    return int(found)


def read_letters(
    connection: Connection, choice: Choice, *, limit: int | None = None, after: int = 0, until: int | None = None
) -> list[DeadLetter]:
    """Return the chosen dead letters, those that came first, first; `limit` at most, numbered from behind `after`."""
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        parameters = {**choice.parameters, "limit": limit, "after": after, "until": until}
        return cursor.execute(READ_CHOSEN, parameters).fetchall()


def each_letter(connection: Connection, choice: Choice) -> Iterator[DeadLetter]:
    """Go through the dead letters that are chosen now, a page at a time; those that go meanwhile may be left out."""
    (newest,) = connection.execute(NEWEST_CHOSEN, choice.parameters).fetchone() or (0,)
    after = 0
    while page := read_letters(connection, choice, limit=PAGE_LETTERS, after=after, until=newest):
        yield from page
        after = page[-1].id


def discard_letters(connection: Connection, choice: Choice) -> int:
    """Delete the chosen dead letters, and return how many there were."""
    return connection.execute(DISCARD_CHOSEN, choice.parameters).rowcount
