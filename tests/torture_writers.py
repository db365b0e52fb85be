"""Writers that do to a source whatever may be done to it, and note what they have committed, and by when."""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random

import psycopg
from psycopg import errors as pg

from tests.torture_transactions import KEYS, REGIONS, SCHEMA, Key, Note, Transaction, noted

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
KEY_COUNT = 400
"""Writers meet at keys of the numbers below."""
_LONG_SECONDS = 1.0


Way = tuple[Callable[[Transaction, str], None], int, Sequence[str]]
"""Something to be done in a transaction, its weight, and the tables to which it is done."""


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
        ways = self._ways()
        way, _, relations = self._random.choices(ways, [weight for _, weight, _ in ways])[0]
        way(transaction, self._random.choice(relations))

    def _ways(self) -> list[Way]:
        every = list(KEYS)
        return [
            (self._upsert, 50, every),
            (self._delete, 20, every),
            (self._change_key, 15, every),
            (self._straight, 10, every),
            (self._copy, 1, every),
            (self._empty, 2, every),
        ]

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
        return self._random.randrange(KEY_COUNT)

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
        transaction.copy("plain", [(number,) for number in range(KEY_COUNT // 2, 2_000)], "at first")
        transaction.copy("late", [(number,) for number in range(KEY_COUNT)], "at first")
        session.execute("COMMIT")
        return [noted(transaction)]
