"""Histories that are published step by step, and read by instances by hand: what hypothesis draws, and the rules."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cdc.wire import cursor_topic_name
from tests.accounts import KEYS, LARGE, SHOWN, Truth, Witness, account, on_the_wire, unlike
from tests.integration.changelog import Changelog
from tests.integration.projector_by_hand import Instance, apply_at_once
from tests.integration.projector_steps import projector_settings
from tests.waiting import wait_until

PARTITIONS = 2
PLACES = [("cursor", 0), *((table, number) for table in KEYS for number in range(PARTITIONS))]
START = datetime(2026, 11, 1, tzinfo=UTC)

OWNERS = st.sampled_from([None, 1, 2, 3])
PRICES = st.sampled_from([None, Decimal("0.10"), Decimal(-5), LARGE])
ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "owners": st.just({}),
    "items": st.fixed_dictionaries(
        {
            "owner_id": OWNERS,
            "holder_id": OWNERS,
            "state": st.sampled_from([None, "lent", "lent", "lost", "here"]),
            "price": PRICES,
            "pieces": st.sampled_from([None, 1, 3]),
        }
    ),
    "letters": st.fixed_dictionaries({"owner_id": OWNERS, "stamp": PRICES}),
}
Change = tuple[str, int, dict[str, Any] | None]
"""A table, a key, and the row's columns but for those that make it another one than before; None takes it away."""

GONE = st.none()
CHANGES = st.sampled_from(sorted(KEYS)).flatmap(
    lambda table: st.tuples(st.just(table), st.integers(1, 4), st.one_of(ROWS[table], ROWS[table], ROWS[table], GONE))
)
TRANSACTIONS = st.lists(CHANGES, min_size=1, max_size=8)
WHO = st.integers(0, 2)
HALVES = st.sampled_from([PLACES, PLACES, PLACES[::2], PLACES[1::2]])
SHARES = st.one_of(HALVES, st.lists(st.sampled_from(PLACES), unique=True))
RECORDS = st.sampled_from([1, 3, 10, 30])


@dataclass
class Servers:
    """What the histories of a test share: a view database, and a prefix for each history's own topics."""

    view_url: str
    bootstrap_servers: str
    admin: AdminClient
    prefixes: Iterator[str]


class Histories(RuleBasedStateMachine):
    """A history that is published step by step, and three instances that nobody keeps from reading the same records.

    Each step is whole: a batch is read in one and applied in another, so that others come between. An instance with
    records that others have applied meanwhile is one that woke too late.
    """

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        self._settings = projector_settings(
            {
                "VIEWKEEPER_VIEW_URL": servers.view_url,
                "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": servers.bootstrap_servers,
                "VIEWKEEPER_TOPIC_PREFIX": next(servers.prefixes),
            }
        )
        self._changelog = Changelog(servers.bootstrap_servers, self._settings.topic_prefix, KEYS, PARTITIONS)
        self._changelog.create()
        self._admin = servers.admin
        self._session = psycopg.connect(servers.view_url, autocommit=True)
        self._session.execute("DELETE FROM projector.partition_offset")
        empty(self._session)
        self._truth = Truth()
        self._witness = Witness(self._truth)
        self._instances: dict[int, Instance] = {}
        self._replayed: dict[tuple[str, int], int] = {}

    @initialize(transactions=st.lists(TRANSACTIONS, min_size=12, max_size=20))
    def begin(self, transactions: list[list[Change]]) -> None:
        """Publish so much that there is something to be read, whatever rules a history is made of."""
        for number, changes in enumerate(transactions):
            self.publish(changes, marked=number % 4 != 3)

    @rule(changes=TRANSACTIONS, marked=st.booleans())
    def publish(self, changes: list[Change], marked: bool) -> None:
        """Publish changes, and maybe a watermark that covers them, in one transaction."""
        with self._changelog.transaction():
            for table, key, columns in changes:
                row = None if columns is None else self._row(table, key, columns)
                self._truth.note(table, key, row)
                self._put(table, key, row)
            if marked:
                time = START + timedelta(seconds=self._truth.steps)
                self._truth.mark(time)
                self._changelog.watermark(time)

    @rule(changes=TRANSACTIONS)
    def take_back(self, changes: list[Change]) -> None:
        """Publish changes in a transaction that is aborted."""
        with self._changelog.aborted():
            for table, key, columns in changes:
                self._put(table, key, None if columns is None else self._row(table, key, columns))

    @rule(who=WHO, share=SHARES)
    def give(self, who: int, share: list[tuple[str, int]]) -> None:
        """Rebalance: the instance has these partitions from now on, whoever else has them."""
        self._instance(who).give([(self._topic(table), partition) for table, partition in share])

    @rule(who=WHO)
    def take(self, who: int) -> None:
        """Leave the instance without partitions."""
        self._instance(who).take()

    @rule(who=WHO, max_records=RECORDS)
    def read(self, who: int, max_records: int) -> None:
        """Read a batch, cut after so many records, and be slow to apply it."""
        self._instance(who).read(max_records)

    @rule(who=WHO, max_records=RECORDS)
    def step(self, who: int, max_records: int) -> None:
        """Read a batch if there is none at hand, and apply it."""
        self._instance(who).read(max_records)
        self._instance(who).apply()

    @rule(who=WHO, changes=TRANSACTIONS, max_records=RECORDS)
    def go_on(self, who: int, changes: list[Change], max_records: int) -> None:
        """Publish changes with their watermark, and have an instance read a part of them, then another."""
        self.publish(changes, marked=True)
        for _ in range(2):
            self.step(who, max_records)
            self.nothing_is_wrong()

    @rule(who=WHO, other=WHO, max_records=RECORDS, steps=st.integers(1, 4))
    def oversleep(self, who: int, other: int, max_records: int, steps: int) -> None:
        """Read a batch, and apply it when another one has gone on for some steps."""
        self._instance(who).read(max_records)
        for _ in range(steps):
            self.step(other, max_records)
            self.nothing_is_wrong()
        self._instance(who).apply()

    @rule(max_records=RECORDS)
    def step_at_once(self, max_records: int) -> None:
        """Read with all instances, then apply with all of them at the same time."""
        for who in range(3):
            self._instance(who).read(max_records)
        apply_at_once(self._instances.values())

    @rule(who=WHO, max_records=RECORDS, statements=st.integers(0, 12))
    def crash(self, who: int, max_records: int, statements: int) -> None:
        """Step, and die after so many statements, or right after the commit if there are less; begin again."""
        instance = self._instance(who)
        instance.read(max_records)
        instance.fate.statements = statements
        with suppress(psycopg.OperationalError):
            instance.apply()
        instance.end()
        del self._instances[who]

    @rule(fresh=st.booleans())
    def replay(self, fresh: bool) -> None:
        """Have all of it read again from the beginning, into the rows that are there or into none."""
        if fresh:
            empty(self._session)
            self._replayed = {}
        else:
            read = self._stored()
            self._replayed = {place: max(at, self._replayed.get(place, 0)) for place, at in read.items()}
        self._session.execute("UPDATE projector.partition_offset SET next_offset = 0")
        self._session.execute("UPDATE projector.as_of SET as_of = NULL")
        self._witness.forget()

    @invariant()
    def nothing_is_wrong(self) -> None:
        """See that the view is right as far as it has come, and has not gone back."""
        stored = self._stored()
        if any(stored[place] < before for place, before in self._replayed.items()):
            # What was there already is overwritten from its beginning.
            self._witness.forget()
        else:
            self._replayed = {}
        self._witness.look(self._session)
        assert self._witness.wrong == []

    def teardown(self) -> None:
        """Have an instance catch up, and see that the view is what the whole history comes to."""
        try:
            self._catch_up()
            shown = {row[0]: row[1:] for row in self._session.execute(SHOWN)}
            assert shown == self._truth.shown()
        finally:
            for instance in self._instances.values():
                instance.end()
            self._session.close()

    def _catch_up(self) -> None:
        instance = self._instance(0)
        instance.give([(self._topic(table), partition) for table, partition in PLACES])

        def caught_up() -> bool:
            instance.read(1000)
            applied = instance.apply()
            self.nothing_is_wrong()
            return applied and instance.is_at_end() and self._witness.as_of == max(self._truth.watermarks)

        wait_until(caught_up, what="an instance to catch up")

    def _stored(self) -> dict[tuple[str, int], int]:
        rows = self._session.execute("SELECT topic, partition, next_offset FROM projector.partition_offset")
        return {(topic, partition): next_offset for topic, partition, next_offset in rows}

    def _instance(self, who: int) -> Instance:
        if who not in self._instances:
            self._instances[who] = Instance(self._settings, account, self._admin)
            self._instances[who].give([(self._topic(table), partition) for table, partition in PLACES])
        return self._instances[who]

    def _topic(self, table: str) -> str:
        prefix = self._settings.topic_prefix
        return cursor_topic_name(prefix) if table == "cursor" else self._changelog.topic(table)

    def _row(self, table: str, key: int, columns: dict[str, Any]) -> dict[str, Any]:
        """Make a row like no row before it, as far as it has a name or an amount."""
        step = self._truth.steps
        amounts: dict[str, Any] = {name: unlike(columns[name], step) for name in ("price", "stamp") if name in columns}
        return {KEYS[table]: key, "name": f"name {step}", **columns, **amounts}

    def _put(self, table: str, key: int, row: dict[str, Any] | None) -> None:
        if row is None:
            self._changelog.remove(table, key)
        else:
            self._changelog.put(table, on_the_wire(row))


def empty(session: psycopg.Connection) -> None:
    """Leave nothing in the view's tables."""
    session.execute(
        "TRUNCATE projector.account_v1, projector.account_v1_public_items, projector.account_v1_public_letters"
    )
    session.execute("UPDATE projector.as_of SET as_of = NULL, flags = '{}'")
