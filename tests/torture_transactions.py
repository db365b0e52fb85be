"""Transactions of torture's writers, which know what they have done.

Each key has a version, counted in a table of the source: whoever changes a key counts first, and so waits for whoever
changes it, too. A key's versions are therefore in the order of their commits, and its row carries its version.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Composed, Identifier

Key = tuple[int | str, ...]

SCHEMA = """
CREATE TABLE version (relation text, key text, version bigint NOT NULL, PRIMARY KEY (relation, key));
CREATE TABLE image (version bigint NOT NULL, filling text, updated_at timestamptz DEFAULT now());
CREATE TABLE plain (id bigint PRIMARY KEY, LIKE image INCLUDING DEFAULTS);
CREATE TABLE worded (word text PRIMARY KEY, LIKE image INCLUDING DEFAULTS);
CREATE TABLE emptied (id bigint PRIMARY KEY, LIKE image INCLUDING DEFAULTS);
CREATE TABLE late (id bigint PRIMARY KEY, LIKE image INCLUDING DEFAULTS);
CREATE TABLE parted (region integer, id bigint, LIKE image INCLUDING DEFAULTS, PRIMARY KEY (region, id))
    PARTITION BY LIST (region);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
"""
KEYS = {"plain": ("id",), "worded": ("word",), "emptied": ("id",), "late": ("id",), "parted": ("region", "id")}
KEY_TYPES = {"id": "bigint", "word": "text", "region": "integer"}
AT_FIRST = ("plain", "worded", "emptied", "parted")
"""What is attached before the writers begin."""
REGIONS = 6

_COUNT = """
INSERT INTO version SELECT %s, key, 1 FROM unnest(%s::text[]) AS key ORDER BY key
ON CONFLICT (relation, key) DO UPDATE SET version = version.version + 1 RETURNING key, version
"""
_COUNT_ALL = """
UPDATE version SET version = version + 1 WHERE relation = %s AND key LIKE %s RETURNING key, version
"""


class Stamp(Enum):
    """What a change does to a row's `updated_at`, as SQL; KEPT and ALIKE leave that of a row alone that is there.

    ALIKE is for rows that were stamped a moment ago.
    """

    NOW = "now()"
    ALIKE = "clock_timestamp()"
    LONG_AGO = "now() - interval '1 hour'"
    NONE = "NULL"
    KEPT = "now() - interval '2 hours'"

    @property
    def tells(self) -> bool:
        """Whether somebody who looks for rows with a new `updated_at` finds the change."""
        return self in (Stamp.NOW, Stamp.ALIKE)


@dataclass(frozen=True, slots=True)
class Change:
    """A key's state after a transaction: its version, and whether it has a row.

    `told` says whether somebody who looks for rows with a new `updated_at` finds it.
    """

    relation: str
    key: Key
    version: int
    alive: bool
    told: bool


@dataclass(frozen=True, slots=True)
class Note:
    """What one transaction did, and a time of the source's clock at which its COMMIT had returned."""

    committed_by: datetime
    changes: tuple[Change, ...]


@dataclass
class Transaction:
    """An open transaction, with what it has done so far."""

    session: psycopg.Connection
    changes: dict[tuple[str, Key], Change] = field(default_factory=dict)

    def upsert(
        self,
        relation: str,
        keys: Sequence[Key],
        filling: str,
        *,
        into: str | None = None,
        stamp: Stamp = Stamp.NOW,
    ) -> None:
        """Insert or update rows, by default through the captured table, else straight in a partition."""
        versions = self._count(relation, keys)
        columns = KEYS[relation]
        statement = SQL(
            "INSERT INTO {} AS t ({}, version, filling, updated_at) SELECT *, {}, {} FROM unnest({}, %s::bigint[]) "
            "ON CONFLICT ({}) DO UPDATE SET version = excluded.version, filling = excluded.filling, updated_at = {}"
        ).format(
            Identifier(into or relation),
            _names(columns),
            filling,
            SQL(stamp.value),
            SQL(", ").join(SQL("%s::{}[]").format(SQL(KEY_TYPES[column])) for column in columns),
            _names(columns),
            SQL("t.updated_at" if stamp in (Stamp.KEPT, Stamp.ALIKE) else "excluded.updated_at"),
        )
        self.session.execute(statement, [*_columns(keys), [versions[key] for key in keys]])
        self._note(relation, versions, alive=True, told=stamp.tells)

    def append(self, relation: str, rows: int, filling: str) -> None:
        """Insert rows with the next ids; whoever appends waits for whoever has, so that ids come in their order."""
        self.session.execute("SELECT pg_advisory_xact_lock(%s::regclass::oid::bigint)", (relation,))
        newest = self.session.execute(SQL("SELECT max(id) FROM {}").format(Identifier(relation))).fetchone()
        assert newest is not None
        self.upsert(relation, [(newest[0] + number,) for number in range(1, rows + 1)], filling)

    def copy(self, relation: str, keys: Sequence[Key], filling: str) -> None:
        """COPY rows that are new."""
        versions = self._count(relation, keys)
        statement = SQL("COPY {} ({}, version, filling) FROM STDIN").format(
            Identifier(relation), _names(KEYS[relation])
        )
        with closing(self.session.cursor()) as cursor, cursor.copy(statement) as copy:
            for key in keys:
                copy.write_row((*key, versions[key], filling))
        self._note(relation, versions, alive=True, told=True)

    def delete(self, relation: str, keys: Sequence[Key]) -> None:
        """Delete rows, where they are."""
        versions = self._count(relation, keys)
        self.session.execute(
            _keyed("DELETE FROM {} WHERE ({}) IN (SELECT * FROM unnest({}))", relation), _columns(keys)
        )
        self._note(relation, versions, alive=False, told=False)

    def change_key(self, relation: str, old: Key, new: Key) -> None:
        """Give a row another key, in place of what has that key now."""
        versions = self._count(relation, [old, new])
        self.session.execute(
            _keyed("DELETE FROM {} WHERE ({}) IN (SELECT * FROM unnest({}))", relation), _columns([new])
        )
        columns = KEYS[relation]
        statement = SQL("UPDATE {} SET ({}, version, updated_at) = ROW ({}, %s, now()) WHERE ({}) = ({})").format(
            Identifier(relation), _names(columns), _places(columns), _names(columns), _places(columns)
        )
        moved = self.session.execute(statement, [*new, versions[new], *old]).rowcount
        self._note(relation, {old: versions[old]}, alive=False, told=False)
        self._note(relation, {new: versions[new]}, alive=moved == 1, told=moved == 1)

    def empty(self, relation: str) -> None:
        """TRUNCATE a table."""
        self.session.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(relation)))
        self.count_all(relation, "%")
        self.session.execute(SQL("TRUNCATE {}").format(Identifier(relation)))

    def count_all(self, relation: str, pattern: str) -> None:
        """Note that all keys whose JSON is like this go, and the table's files with them."""
        rows = self.session.execute(_COUNT_ALL, (relation, pattern)).fetchall()
        self._note(relation, {_key(text): version for text, version in rows}, alive=False, told=True)

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        """Do what is put inside behind a savepoint, and roll back to it."""
        before = dict(self.changes)
        self.session.execute("SAVEPOINT before")
        yield
        self.session.execute("ROLLBACK TO before")
        self.changes = before

    def _count(self, relation: str, keys: Iterable[Key]) -> dict[Key, int]:
        texts = sorted({json.dumps(key) for key in keys})
        return {_key(text): version for text, version in self.session.execute(_COUNT, (relation, texts))}

    def _note(self, relation: str, versions: dict[Key, int], *, alive: bool, told: bool) -> None:
        for key, version in versions.items():
            self.changes[relation, key] = Change(relation, key, version, alive, told)


def noted(transaction: Transaction) -> Note:
    """Note a transaction whose COMMIT has returned."""
    row = transaction.session.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return Note(row[0], tuple(transaction.changes.values()))


def _key(text: str) -> Key:
    return tuple(json.loads(text))


def _columns(keys: Sequence[Key]) -> list[list[int | str]]:
    return [list(column) for column in zip(*keys, strict=True)]


def _names(columns: Iterable[str]) -> Composed:
    return SQL(", ").join(map(Identifier, columns))


def _places(columns: Sequence[str]) -> Composed:
    return SQL(", ").join([SQL("%s")] * len(columns))


def _keyed(statement: LiteralString, relation: str) -> Composed:
    arrays = SQL(", ").join(SQL("%s::{}[]").format(SQL(KEY_TYPES[column])) for column in KEYS[relation])
    return SQL(statement).format(Identifier(relation), _names(KEYS[relation]), arrays)
