"""Writers of tables that are polled by their columns: their record says which keys polling must lose, and which not.

Whatever is lost is lost for certain: rows whose `updated_at` is long ago, is NULL or is left alone, numbers below those
that were read, deletes of rows that the topic has. Whatever is seen is seen for certain, too: it is committed soon
after its `updated_at`, or read with all other rows.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from random import Random
from typing import Any

import psycopg

from runtime.postgres import connect
from tests.topic_reader import Changelog
from tests.torture_loose import WRITERS
from tests.torture_source import CapturedSource
from tests.torture_transactions import KEYS, Change, Key, Note, Stamp, Transaction, noted
from tests.torture_writers import KEY_COUNT, Way, Writer, fill

POLLED = {
    "plain": 'mode = "timestamp+incrementing"\ntimestamp = ["updated_at"]\nincrementing = "id"',
    "worded": 'mode = "timestamp"\ntimestamp = ["updated_at"]',
    "emptied": 'mode = "timestamp"\ntimestamp = ["updated_at"]',
    "parted": 'mode = "bulk"',
    "late": 'mode = "incrementing"\nincrementing = "id"',
}
"""How each table is polled, as the file of tables says it."""

_QUIET_COUNT = 40 * WRITERS
_QUIET: Mapping[str, list[Key]] = {
    "plain": [(100_000 + number,) for number in range(_QUIET_COUNT)],
    "worded": [(f"quiet {number}",) for number in range(_QUIET_COUNT)],
    "late": [(-number,) for number in range(1, _QUIET_COUNT + 1)],
}
_QUIET_AT_FIRST = {relation: frozenset(_QUIET[relation][: _QUIET_COUNT // 2]) for relation in ("plain", "worded")}
"""Those that have a row before anything is polled."""
_LEAST_QUIET = 10
_STAMPS = (Stamp.NOW, Stamp.LONG_AGO, Stamp.NONE, Stamp.KEPT)
"""How quiet keys are stamped."""
_MOMENT = 10
"""Of so many of its transactions a writer has stamped the rows a moment ago."""

Row = dict[str, Any]
Place = tuple[str, Key]


class PolledWriter(Writer):
    """A writer with some quiet keys of its own, of which polling is not told.

    Once it is told of one, that one is left alone: its row is read again for as long as it is looked back for.
    """

    def __init__(self, url: str, number: int, random: Random, over: threading.Event) -> None:
        super().__init__(url, number, random, over)
        self._quiet = {relation: keys[number::WRITERS] for relation, keys in _QUIET.items()}

    def _ways(self) -> list[Way]:
        # No deletes in `emptied`: reading it anew may mend them, and may not.
        deleting = ("plain", "worded", "parted", "late")
        return [
            (self._upsert, 40, tuple(POLLED)),
            (self._delete, 15, deleting),
            (self._change_key, 10, deleting),
            (self._straight, 10, ("parted",)),
            (self._copy, 1, ("plain", "worded", "emptied", "parted")),
            (self._empty, 1, ("emptied",)),
            (self._append, 8, ("late",)),
            (self._stamp_alike, 15, ("plain", "worded", "emptied")),
            (self._change_quietly, 15, tuple(_QUIET)),
            (self._delete_quietly, 15, tuple(_QUIET_AT_FIRST)),
        ]

    def _stamp_alike(self, transaction: Transaction, relation: str) -> None:
        """Change rows that this writer stamped a moment ago, and may have been published since."""
        stamped = {
            change.key
            for note in self.notes[-_MOMENT:]
            for change in note.changes
            if change.relation == relation and change.alive and change.told
        }
        if stamped:
            keys = sorted(self._random.sample(sorted(stamped), min(len(stamped), 3)))
            transaction.upsert(relation, keys, self._filling(), stamp=Stamp.ALIKE)

    def _append(self, transaction: Transaction, relation: str) -> None:
        transaction.append(relation, self._random.randint(1, 5), self._filling())

    def _change_quietly(self, transaction: Transaction, relation: str) -> None:
        keys = self._quiet[relation]
        key, stamp = self._random.choice(keys), self._random.choice(_STAMPS)
        if stamp is Stamp.NOW:
            if len(keys) == _LEAST_QUIET:
                return
            keys.remove(key)
        transaction.upsert(relation, [key], self._filling(), stamp=stamp)

    def _delete_quietly(self, transaction: Transaction, relation: str) -> None:
        keys = [key for key in self._quiet[relation] if key in _QUIET_AT_FIRST[relation]]
        if keys:
            transaction.delete(relation, [self._random.choice(keys)])


def fill_polled(url: str) -> list[Note]:
    """Make the tables, with a row of every key that may be deleted and of half of the quiet ones."""
    notes = fill(url)
    with closing(psycopg.connect(url, autocommit=True)) as session:
        session.execute("BEGIN")
        transaction = Transaction(session)
        transaction.upsert("plain", [(number,) for number in range(KEY_COUNT)], "at first")
        transaction.upsert("worded", [(f'wörd "{number}" \\ %s',) for number in range(KEY_COUNT)], "at first")
        for relation, keys in _QUIET_AT_FIRST.items():
            transaction.upsert(relation, list(keys), "at first", stamp=Stamp.LONG_AGO)
        session.execute("COMMIT")
        return [*notes, noted(transaction)]


def lost(notes: Iterable[Note]) -> dict[Place, Change]:
    """Return the keys that polling has lost, each with its newest change: one that polling is not told of.

    `notes` are those of what was committed while the tables were polled.
    """
    newest: dict[Place, Change] = {}
    for change in (change for note in notes for change in note.changes):
        known = newest.get((change.relation, change.key))
        if known is None or known.version < change.version:
            newest[change.relation, change.key] = change
    return {place: change for place, change in newest.items() if not _is_seen(change)}


def may_be_found(place: Place) -> bool:
    """Return whether a poll may have found a row that is deleted, and sees the delete if it reads it too late."""
    relation, key = place
    return relation != "late" and key not in _QUIET_AT_FIRST.get(relation, ())


def topics(source: CapturedSource) -> dict[str, Changelog]:
    """Read the topics of all tables at once, since each has to be waited for; return them by relation."""
    with ThreadPoolExecutor(len(POLLED)) as executor:
        return dict(zip(POLLED, executor.map(lambda relation: source.topic(f"public.{relation}"), POLLED), strict=True))


def differing(source: CapturedSource) -> set[Place]:
    """Return the keys whose row is another one in the topic than in the table; nobody may be writing."""
    places = set()
    with closing(connect(source.url, name="test", settings={"TimeZone": "UTC"})) as session:
        for relation, changelog in topics(source).items():
            rows = session.execute(f"SELECT row_to_json(t) FROM {relation} t")
            table = {tuple(row[column] for column in KEYS[relation]): _comparable(row) for (row,) in rows}
            topic = {tuple(json.loads(key).values()): _comparable(row) for key, row in changelog.rows().items()}
            places |= {(relation, key) for key in table.keys() | topic.keys() if table.get(key) != topic.get(key)}
    return places


def _is_seen(change: Change) -> bool:
    if change.relation == "parted":
        return True  # with the next pass
    if change.relation == "late":
        # Those that were there, or that are less than what was there.
        return change.key >= (KEY_COUNT,)
    return change.told


def _comparable(row: Row) -> Row:
    at = row["updated_at"]
    return {**row, "updated_at": at and datetime.fromisoformat(at)}
