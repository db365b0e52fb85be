"""Looking back over a real table: the server tells which rows may be late, and no row is published twice."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

import cdc.look_back
from cdc.kafka_requests import RequestTopic
from cdc.polling import Intervals
from cdc.session import SESSION
from cdc.sources import polled_options
from cdc.timestamp import TimestampSource
from runtime.kafka import admin
from runtime.postgres import connect
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE
from tests.integration.polled_source import TIMESTAMP, PolledSource
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres

LOOKING = Intervals(look_back_seconds=10, sweep_seconds=0, bulk_seconds=1)
PAGE_ROWS = 100


class Rounds:
    """Makes the rounds of one polled table one by one, as the reader does; counts the keys that they find."""

    def __init__(self, source: TimestampSource, position: str | None) -> None:
        self.source = source
        (self.table,), _ = source.attached()
        self.position = position
        self.found: Counter[str] = Counter()

    def next(self, *, is_read: bool = True) -> bool:
        """Make a round, which is not read if the table sits it out; return whether it has found something."""
        previous = {self.table.name: self.position} if self.position else {}
        with self.source.round((self.table,), previous, lambda _table: PAGE_ROWS) as round_:
            for found in round_.found if is_read else ():
                self.found.update(found.keys.literals[0])
            if is_read and previous:
                self.position = round_.position_of(self.table)
            elif is_read:
                self.position = self.source.begun_at(round_, self.table)
        if not is_read:
            self.source.sat_out(round_, (self.table,))
        return bool(round_.found)

    def wait(self, *keys: int) -> None:
        """Make rounds until these keys have been found."""

        def are_found() -> bool:
            self.next()
            return set(map(str, keys)) <= self.found.keys()

        wait_until(are_found, what=f"the keys {keys}")


Begin = Callable[..., AbstractContextManager[Rounds]]


@pytest.fixture
def begin(polled: PolledSource, settings: CdcSettings) -> Begin:
    """Give what begins a session that polls a table of ten rows."""

    @contextmanager
    def begun(table: str = "items", position: str | None = None, options: str = TIMESTAMP) -> Iterator[Rounds]:
        tables = polled.tables(**{table: options})["VIEWKEEPER_CDC_TABLES"]
        with (
            closing(RequestTopic(settings, admin(settings, name="test"), CAPTURE)) as requests,
            closing(connect(polled.url, name="test", settings=SESSION)) as connection,
        ):
            source = TimestampSource(
                connection,
                CAPTURE,
                where="test",
                token="",
                options=polled_options(tables),
                intervals=LOOKING,
                requests=requests,
            )
            rounds = Rounds(source, position)
            rounds.next()
            yield rounds

    return begun


def commit_late(polled: PolledSource, *keys: int, table: str = "items") -> None:
    """Commit rows that are older than the newest one: a walk that finds them has gone over all before them."""
    for key in keys:
        polled.run(f"INSERT INTO {table} SELECT {key}, 'late', max(updated_at) - interval '1 microsecond' FROM {table}")


@pytest.mark.parametrize("kind", ["table", "partitioned", "view"])
def test_late_rows_are_found_and_none_twice(polled: PolledSource, begin: Begin, kind: str) -> None:
    polled.run(
        "CREATE TABLE parts (id bigint PRIMARY KEY, text text, updated_at timestamptz) PARTITION BY HASH (id)",
        "CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO parts SELECT * FROM items",
        "CREATE VIEW shown AS SELECT * FROM items",
    )
    name = {"table": "items", "partitioned": "parts", "view": "shown"}[kind]
    options = f'{TIMESTAMP}\nkey = ["id"]' if kind == "view" else TIMESTAMP
    with begin(name, options=options) as rounds:
        for number in range(11, 51):
            polled.run(f"INSERT INTO {name} VALUES ({number}, 'soon', clock_timestamp())")
            rounds.wait(number)
        for key in (101, 102, 103):
            commit_late(polled, key, table=name)
            rounds.wait(key)
    new = {key: count for key, count in rounds.found.items() if int(key) > 10}
    assert new == dict.fromkeys([*map(str, range(11, 51)), "101", "102", "103"], 1)


@pytest.mark.parametrize(("name", "times"), [("items", 2), ("shown", 1)], ids=["table", "view"])
def test_a_row_that_is_stamped_alike_once_more_is_found_again_but_in_a_view(
    polled: PolledSource, begin: Begin, name: str, times: int
) -> None:
    polled.run("CREATE VIEW shown AS SELECT * FROM items")
    with begin(name, options=f'{TIMESTAMP}\nkey = ["id"]') as rounds:
        # The next walk is not due before the row has been polled.
        commit_late(polled, 101)
        rounds.wait(101)
        rounds.found.clear()
        stamp = polled.now()
        polled.run(f"UPDATE items SET text = 'second', updated_at = '{stamp}' WHERE id = 1")
        rounds.wait(1)
        polled.run(f"UPDATE items SET text = 'third', updated_at = '{stamp}' WHERE id = 1")
        for key in (102, 103):
            commit_late(polled, key)
            rounds.wait(key)
    assert rounds.found["1"] == times


def test_what_the_reading_of_all_rows_has_is_not_read_again_by_the_first_walk(
    polled: PolledSource, begin: Begin
) -> None:
    with begin() as rounds:
        commit_late(polled, 11)
        rounds.wait(11)
    assert rounds.found == {"11": 1}


def test_rows_of_a_savepoint_are_found_once_their_transaction_has_committed(polled: PolledSource, begin: Begin) -> None:
    """Their own transaction's id is one that had not been given out yet when the outer one was seen to be open."""
    with begin() as rounds, polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 1")
        late.execute("SAVEPOINT inner_one")
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 2")
        late.execute("RELEASE inner_one")
        polled.run("INSERT INTO items VALUES (11, 'soon', now())")
        rounds.wait(11)
        # Two walks, the second of which is asked for what the first had not seen as over.
        for key in (101, 102):
            commit_late(polled, key)
            rounds.wait(key)
        late.commit()
        rounds.wait(1, 2)
        commit_late(polled, 103)
        rounds.wait(103)
    assert rounds.found == dict.fromkeys(["1", "2", "11", "101", "102", "103"], 1)


def test_many_rows_of_one_transaction_are_neither_remembered_nor_published_twice(
    polled: PolledSource, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdc.look_back, "MOST_REMEMBERED", 3 * PAGE_ROWS)
    rows = range(11, 11 + 50 * PAGE_ROWS)
    with begin() as rounds:
        polled.run(f"INSERT INTO items SELECT i, 'many', now() FROM generate_series({rows[0]}, {rows[-1]}) i")
        rounds.wait(*rows)
        for key in (100_001, 100_002, 100_003):
            commit_late(polled, key)
            rounds.wait(key)
    assert rounds.found == dict.fromkeys([*map(str, rows), "100001", "100002", "100003"], 1)


def test_a_walk_goes_over_more_rows_than_one_query_does(
    polled: PolledSource, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.timestamp.SCANNED_ROWS", 7)
    with begin() as rounds:
        polled.run("INSERT INTO items SELECT i, 'many', now() FROM generate_series(11, 60) i")
        rounds.wait(60)
        commit_late(polled, *range(101, 131))
        rounds.wait(*range(101, 131))
        commit_late(polled, 131)
        rounds.wait(131)
    assert rounds.found == dict.fromkeys([*map(str, range(11, 61)), *map(str, range(101, 132))], 1)


def test_the_next_session_finds_what_is_late_and_little_else(polled: PolledSource, begin: Begin) -> None:
    with begin() as before, polled.session() as late:
        polled.run("INSERT INTO items SELECT i, 'soon', now() FROM generate_series(11, 60) i")
        before.wait(60)
        commit_late(polled, 101)
        before.wait(101)
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 1")
        # The walk that finds it has begun behind all rows but the last two, and is over when the next one is found.
        for key in (102, 103):
            commit_late(polled, key)
            before.wait(key)
        late.commit()
        position = before.position
    with begin(position=position) as after:
        after.wait(1)
        commit_late(polled, 104)
        after.wait(104)
    assert set(after.found) <= {"1", "102", "103", "104"}


def test_a_position_of_another_server_or_of_none_looks_at_the_whole_window(begin: Begin) -> None:
    with begin() as before:
        assert before.position is not None
        there, nowhere = before.position, before.position
    xmin = before.position.split('"looked_xmin":"', 1)[1].split('"', 1)[0]
    there = there.replace(f'"looked_xmin":"{xmin}"', f'"looked_xmin":"{int(xmin) + 1_000_000}"')
    nowhere = nowhere.replace(f',"looked_xmin":"{xmin}"', "")
    assert len({there, nowhere, before.position}) == 3
    for position in (there, nowhere):
        with begin(position=position) as after:
            after.wait(*range(1, 11))


def test_late_rows_of_a_round_that_was_not_read_are_found_again(polled: PolledSource, begin: Begin) -> None:
    with begin() as rounds:
        commit_late(polled, 11)
        wait_until(lambda: rounds.next(is_read=False), what="the late row, of a table that sits out")
        rounds.wait(11)
