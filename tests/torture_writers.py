"""Writers that do to a source whatever may be done to it, and note what they have committed, and by when.

Each key has a version, counted in a table of the source: whoever changes a key counts first, and so waits for whoever
changes it, too. A key's versions are therefore in the order of their commits, and its row carries its version.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.sql import SQL, Composed, Identifier

Key = tuple[int | str, ...]

SCHEMA = """
CREATE TABLE version (relation text, key text, version bigint NOT NULL, PRIMARY KEY (relation, key));
CREATE TABLE plain (id bigint PRIMARY KEY, version bigint NOT NULL, filling text);
CREATE TABLE worded (word text PRIMARY KEY, version bigint NOT NULL, filling text);
CREATE TABLE emptied (id bigint PRIMARY KEY, version bigint NOT NULL, filling text);
CREATE TABLE late (id bigint PRIMARY KEY, version bigint NOT NULL, filling text);
CREATE TABLE parted (region integer, id bigint, version bigint NOT NULL, filling text, PRIMARY KEY (region, id))
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
_SESSION = {
    # Writers give way to each other, also where a prepared transaction holds a key.
    "lock_timeout": "300ms",
    "synchronous_commit": "off",
}
_GIVES_WAY = (
    pg.LockNotAvailable,
    pg.DeadlockDetected,
    pg.CheckViolation,
    pg.UndefinedTable,
    pg.InvalidObjectDefinition,
)
_KEY_COUNT = 400
_LONG_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """A key's state after a transaction: its version, and whether it has a row."""

    relation: str
    key: Key
    version: int
    alive: bool


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

    def upsert(self, relation: str, keys: Sequence[Key], filling: str, *, into: str | None = None) -> None:
        """Insert or update rows, by default through the captured table, else straight in a partition."""
        versions = self._count(relation, keys)
        columns = KEYS[relation]
        statement = SQL(
            "INSERT INTO {} ({}, version, filling) SELECT *, {} FROM unnest({}, %s::bigint[]) "
            "ON CONFLICT ({}) DO UPDATE SET version = excluded.version, filling = excluded.filling"
        ).format(
            Identifier(into or relation),
            _names(columns),
            filling,
            SQL(", ").join(SQL("%s::{}[]").format(SQL(KEY_TYPES[column])) for column in columns),
            _names(columns),
        )
        self.session.execute(statement, [*_columns(keys), [versions[key] for key in keys]])
        self._note(relation, versions, alive=True)

    def copy(self, relation: str, keys: Sequence[Key], filling: str) -> None:
        """COPY rows that are new."""
        versions = self._count(relation, keys)
        statement = SQL("COPY {} ({}, version, filling) FROM STDIN").format(
            Identifier(relation), _names(KEYS[relation])
        )
        with closing(self.session.cursor()) as cursor, cursor.copy(statement) as copy:
            for key in keys:
                copy.write_row((*key, versions[key], filling))
        self._note(relation, versions, alive=True)

    def delete(self, relation: str, keys: Sequence[Key]) -> None:
        """Delete rows, where they are."""
        versions = self._count(relation, keys)
        self.session.execute(
            _keyed("DELETE FROM {} WHERE ({}) IN (SELECT * FROM unnest({}))", relation), _columns(keys)
        )
        self._note(relation, versions, alive=False)

    def change_key(self, relation: str, old: Key, new: Key) -> None:
        """Give a row another key, in place of what has that key now."""
        versions = self._count(relation, [old, new])
        self.session.execute(
            _keyed("DELETE FROM {} WHERE ({}) IN (SELECT * FROM unnest({}))", relation), _columns([new])
        )
        columns = KEYS[relation]
        statement = SQL("UPDATE {} SET ({}, version) = ROW ({}, %s) WHERE ({}) = ({})").format(
            Identifier(relation), _names(columns), _places(columns), _names(columns), _places(columns)
        )
        moved = self.session.execute(statement, [*new, versions[new], *old]).rowcount
        self._note(relation, {old: versions[old]}, alive=False)
        self._note(relation, {new: versions[new]}, alive=moved == 1)

    def empty(self, relation: str) -> None:
        """TRUNCATE a table."""
        self.session.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(relation)))
        self.count_all(relation, "%")
        self.session.execute(SQL("TRUNCATE {}").format(Identifier(relation)))

    def count_all(self, relation: str, pattern: str) -> None:
        """Note that all keys whose JSON is like this go."""
        rows = self.session.execute(_COUNT_ALL, (relation, pattern)).fetchall()
        self._note(relation, {_key(text): version for text, version in rows}, alive=False)

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

    def _note(self, relation: str, versions: dict[Key, int], *, alive: bool) -> None:
        for key, version in versions.items():
            self.changes[relation, key] = Change(relation, key, version, alive)


class Writer:
    """One session that does something else each time, until `over`."""

    def __init__(self, url: str, number: int, random: Random, over: threading.Event) -> None:
        self._session = psycopg.connect(url, autocommit=True)
        self._number = number
        self._random = random
        self._over = over
        self._prepared: Transaction | None = None
        self._fresh = (number + 1) * 1_000_000
        self.notes: list[Note] = []

    def write(self) -> list[Note]:
        """Write until it is over; return what was committed."""
        with closing(self._session):
            for setting, value in _SESSION.items():
                self._session.execute("SELECT set_config(%s, %s, false)", (setting, value))
            while not self._over.is_set():
                self._transaction()
                if self._prepared and self._random.random() < 0.3:
                    self._resolve()
            if self._prepared:
                self._resolve()
        return self.notes

    def _transaction(self) -> None:
        transaction = Transaction(self._session)
        self._session.execute("BEGIN")
        try:
            for _ in range(self._random.randint(1, 3)):
                self._do(transaction)
            if self._random.random() < 0.15:
                with transaction.taken_back():
                    self._do(transaction)
            if self._random.random() < 0.05:
                self._session.execute("SELECT pg_sleep(%s)", (self._random.uniform(0.1, _LONG_SECONDS),))
            self._end(transaction)
        except _GIVES_WAY:
            self._session.execute("ROLLBACK")

    def _end(self, transaction: Transaction) -> None:
        end = self._random.random()
        if end < 0.15:
            self._session.execute("ROLLBACK")
        elif end < 0.25 and self._prepared is None:
            self._session.execute(f"PREPARE TRANSACTION '{self._number}'")
            self._prepared = transaction
        else:
            self._session.execute("COMMIT")
            self.notes.append(noted(transaction))

    def _resolve(self) -> None:
        assert self._prepared is not None
        if self._random.random() < 0.2:
            self._session.execute(f"ROLLBACK PREPARED '{self._number}'")
        else:
            self._session.execute(f"COMMIT PREPARED '{self._number}'")
            self.notes.append(noted(self._prepared))
        self._prepared = None

    def _do(self, transaction: Transaction) -> None:
        ways: list[tuple[Callable[[Transaction, str], None], int]] = [
            (self._upsert, 50),
            (self._delete, 20),
            (self._change_key, 15),
            (self._straight, 10),
            (self._copy, 1),
            (self._empty, 2),
        ]
        way = self._random.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
        way(transaction, self._random.choice(list(KEYS)))

    def _upsert(self, transaction: Transaction, relation: str) -> None:
        transaction.upsert(relation, self._keys(relation), self._filling())

    def _delete(self, transaction: Transaction, relation: str) -> None:
        transaction.delete(relation, self._keys(relation))

    def _change_key(self, transaction: Transaction, relation: str) -> None:
        old, *_, new = [*self._keys(relation), *self._keys(relation)]
        if old != new:
            transaction.change_key(relation, old, new)

    def _straight(self, transaction: Transaction, _relation: str) -> None:
        region = self._random.randrange(REGIONS)
        keys = sorted({(region, self._id()) for _ in range(5)})
        transaction.upsert("parted", keys, self._filling(), into=f"parted_{region}")

    def _copy(self, transaction: Transaction, relation: str) -> None:
        first = self._fresh
        self._fresh += self._random.randint(50, 400)
        ids = range(first, self._fresh)
        keys: list[Key] = [(f"copied {number}",) if relation == "worded" else (number,) for number in ids]
        transaction.copy(relation, [(0, *key) for key in keys] if relation == "parted" else keys, self._filling())

    def _empty(self, transaction: Transaction, _relation: str) -> None:
        transaction.empty("emptied")

    def _keys(self, relation: str) -> list[Key]:
        made: dict[str, Callable[[], Key]] = {
            "worded": lambda: (f'wörd "{self._id()}" \\ %s',),
            "parted": lambda: (self._random.randrange(REGIONS), self._id()),
        }
        make = made.get(relation, lambda: (self._id(),))
        return sorted({make() for _ in range(self._random.randint(1, 8))})

    def _id(self) -> int:
        return self._random.randrange(_KEY_COUNT)

    def _filling(self) -> str:
        return self._random.choice(["", "x", "é\n\t", "long " * 200])


class Owner:
    """Attaches partitions that are filled already, and takes them away with their rows."""

    def __init__(self, url: str, random: Random, over: threading.Event) -> None:
        self._url = url
        self._random = random
        self._over = over
        self._has = {0, 1}

    def write(self) -> list[Note]:
        """Go on until it is over; return what was committed."""
        notes = []
        with closing(psycopg.connect(self._url, autocommit=True)) as session:
            session.execute("SET lock_timeout = '300ms'")
            while not self._over.wait(self._random.uniform(0.2, 2.0)):
                region = self._random.randrange(1, REGIONS)
                transaction = Transaction(session)
                session.execute("BEGIN")
                try:
                    (self._take if region in self._has else self._give)(transaction, region)
                    session.execute("COMMIT")
                except _GIVES_WAY:
                    session.execute("ROLLBACK")
                else:
                    self._has ^= {region}
                    notes.append(noted(transaction))
        return notes

    def _give(self, transaction: Transaction, region: int) -> None:
        transaction.session.execute(f"CREATE TABLE parted_{region} (LIKE parted INCLUDING ALL)")
        keys: list[Key] = [(region, number) for number in range(self._random.randrange(100))]
        if keys:
            transaction.upsert("parted", keys, "filled before", into=f"parted_{region}")
        transaction.session.execute(f"ALTER TABLE parted ATTACH PARTITION parted_{region} FOR VALUES IN ({region})")

    def _take(self, transaction: Transaction, region: int) -> None:
        transaction.session.execute(f"LOCK TABLE parted, parted_{region} IN ACCESS EXCLUSIVE MODE")
        transaction.count_all("parted", f"[{region}, %")
        transaction.session.execute(f"ALTER TABLE parted DETACH PARTITION parted_{region}; DROP TABLE parted_{region}")


def fill(url: str) -> list[Note]:
    """Make the tables, with some rows; return what was committed."""
    with closing(psycopg.connect(url, autocommit=True)) as session:
        session.execute(SCHEMA)
        session.execute("BEGIN")
        transaction = Transaction(session)
        transaction.copy("plain", [(number,) for number in range(_KEY_COUNT // 2, 2_000)], "at first")
        transaction.copy("late", [(number,) for number in range(_KEY_COUNT)], "at first")
        session.execute("COMMIT")
        return [noted(transaction)]


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
