"""A real Reader over change logs: what it does between two units."""

from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime

import psycopg
import pytest

import cdc.reading
from cdc.change import Unit
from cdc.errors import CaptureError, CatalogChanged
from cdc.rounds import NOTHING_KNOWN
from cdc.session import SESSION
from cdc.tables import captured_tables
from cdc.triggers import TriggerSource
from runtime.postgres import LockNotAvailable, connect
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.logged import other_role
from tests.integration.reader_steps import Units, read_units
from tests.topics import delete_topic
from tests.waiting import wait_until

# None of the versions' business.
pytestmark = pytest.mark.newest_postgres

TWEETS, USERS, LEADER = "public.tweets", "public.users", "the leader"


@pytest.fixture
def session(source: Source) -> Iterator[psycopg.Connection]:
    with closing(connect(source.url, name="test", settings=SESSION)) as session:
        yield session


@pytest.fixture
def logs(source: Source, session: psycopg.Connection) -> TriggerSource:
    """Give what reads the source as its leader."""
    source.run(f"INSERT INTO cdc.capture (name, leader) VALUES ('{CAPTURE}', '{LEADER}')")
    return TriggerSource(session, CAPTURE, where="test", leader=LEADER)


@pytest.fixture
def units(logs: TriggerSource, settings: CdcSettings) -> Iterator[Units]:
    """Give its units, a hundred rows a page, before the first is read."""
    with read_units(settings.model_copy(update={"cdc_chunk_rows": 100}), logs) as units:
        yield units


def _wait_complete(units: Units) -> None:
    wait_until(lambda: units.is_complete(TWEETS), what="a table that is read")


def test_rights_to_log_are_given_back_once_the_cursor_says_that_the_table_is_read_anew(
    source: Source, units: Units
) -> None:
    """Killed in between, it would go on from a position that knows nothing of what was not logged."""
    with other_role(source.connection, "owner") as owner:
        source.run(f"ALTER TABLE tweets OWNER TO {owner}")
        source.attach("tweets", level="row")
        _wait_complete(units)
        source.run(f"REVOKE USAGE ON SCHEMA cdc FROM {owner}", insert_tweets(1, 10))
        granted = "SELECT cdc.is_logging_granted(id) FROM cdc.captured_table"
        waiting = units.until(lambda unit: unit.tables[TWEETS].position is None)
        assert units.is_waiting(seconds=2 * cdc.reading.LOOK_SECONDS)
        assert source.value(granted) is False
        units.tell(waiting)

        def is_granted() -> bool:
            units.next()
            return source.value(granted) is True

        wait_until(is_granted, what="rights that are given back")
        _wait_complete(units)


def test_a_log_is_emptied_once_the_cursor_says_so_and_not_what_it_said_of_an_earlier_time(
    source: Source, logs: TriggerSource, settings: CdcSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit that is on its way in between has a position, which a killed capture would go on from."""
    monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 0.0)
    seldom = settings.model_copy(update={"cdc_chunk_rows": 10, "cdc_poll_seconds": 1.0})
    with read_units(seldom, logs) as units:
        source.attach("tweets")
        _wait_complete(units)
        # Its pages come between the rounds, for longer than from one to the next.
        source.run("INSERT INTO users (user_id) SELECT generate_series(1, 20000)")
        source.attach("users")
        units.tell(units.until(lambda unit: USERS in unit.tables and unit.tables[USERS].reading))
        _request_snapshot(source)
        early = _held_until(units, is_waiting=True)
        begun = _held_until(units, is_waiting=False)
        _request_snapshot(source)
        late = _held_until(units, is_waiting=True)
        source.run(insert_tweets(1, 10))
        for unit in early:
            units.tell(unit)
        after = [units.next(held=True), units.next(held=True)]
        assert source.logged() == 10
        for unit in (*begun, *late, *after):
            units.tell(unit)
        wait_until(lambda: bool(units.next()) and source.logged() == 0, what="a log that is emptied, step by step")
        _wait_complete(units)


def test_a_watermark_moves_on_though_every_round_is_too_large_for_a_page(source: Source, units: Units) -> None:
    """Who writes as fast as is read would hold it where it was for as long, however little the topic lags behind."""
    source.attach("tweets")
    _wait_complete(units)
    committed: dict[bytes, datetime] = {}
    published = set[bytes]()
    known = set[datetime]()

    def is_known_by_three_times() -> bool:
        last = 150 * (len(committed) + 1)
        source.run(insert_tweets(last - 149, last))
        committed[f'{{"tweet_id":{last}}}'.encode()] = source.now()
        unit = units.next()
        published.update(key for page in unit.pages for key, _ in page.changes)
        time = unit.known_by.get(TWEETS, NOTHING_KNOWN).time
        if time is not None:
            known.add(time)
            assert published >= {key for key, at in committed.items() if at <= time}
        return len(known) == 3

    wait_until(is_known_by_three_times, what="a watermark that moves on")


def _request_snapshot(source: Source) -> None:
    source.run(
        "INSERT INTO cdc.request (capture, attachment, kind) "
        "SELECT capture, id, 'snapshot' FROM cdc.captured_table WHERE id = 1"
    )


def _held_until(units: Units, *, is_waiting: bool) -> list[Unit]:
    """Return the units until tweets wait, or do no more, none of them published."""
    held = [units.next(held=True)]
    while (held[-1].tables[TWEETS].position is None) is not is_waiting:
        held.append(units.next(held=True))
    return held


def test_a_round_is_read_once_those_before_are_published_and_has_all_that_changed_until_then(
    source: Source, units: Units
) -> None:
    source.attach("tweets")
    _wait_complete(units)
    source.run(insert_tweets(1, 1))
    first = units.until(lambda unit: unit.pages)
    source.run(insert_tweets(2, 2))
    assert units.is_waiting(seconds=0.5)
    source.run(insert_tweets(3, 3))
    units.tell(first)
    assert [len(page.changes) for page in units.next().pages] == [2]


def test_what_is_begun_of_a_table_ends_with_its_attachment(
    source: Source, logs: TriggerSource, settings: CdcSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its position would be taken for one of the table that is attached anew, whose rows nobody has read."""
    seldom = settings.model_copy(update={"cdc_chunk_rows": 100, "cdc_poll_seconds": 5.0})
    with read_units(seldom, logs) as units:
        source.attach("tweets")
        _wait_complete(units)
        source.run(insert_tweets(1, 250))
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 3600.0)
        wait_until(lambda: sum(len(page.changes) for page in units.next().pages), what="a page of a large round")
        units.next()
        source.run("SELECT cdc.detach('viewkeeper', 'public', 'tweets')")
        delete_topic(source.bootstrap_servers, source.topic_name("tweets"))
        source.attach("tweets")
        monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 0.0)
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 1.0)
        _wait_complete(units)


def test_a_table_that_is_another_one_while_it_waits_is_told_of(
    source: Source, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.attach("users", "tweets")
    _wait_complete(units)
    source.run("INSERT INTO cdc.log_2_0 (mark) VALUES ('limit')")
    wait_until(lambda: units.next().tables[TWEETS].position is None, what="a table that waits")
    monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 3600.0)
    source.run(
        "ALTER TABLE tweets RENAME TO old_tweets",
        "CREATE TABLE tweets (tweet_id bigint PRIMARY KEY)",
        "DROP TABLE old_tweets",
        "INSERT INTO users (user_id) VALUES (1)",
    )
    with pytest.raises(CaptureError, match="tweets: the table was dropped or renamed"):
        wait_until(lambda: units.next().tables[TWEETS].position, what="a table that is read anew")


def test_a_leader_of_before_gives_no_rights_back_behind_its_successors_back(source: Source, units: Units) -> None:
    """What was written without a record would never be found: nothing that the successor sees tells of it."""
    with other_role(source.connection, "owner") as owner:
        source.run(f"ALTER TABLE tweets OWNER TO {owner}")
        source.attach("tweets", level="row")
        _wait_complete(units)
        source.run(f"REVOKE USAGE ON SCHEMA cdc FROM {owner}", insert_tweets(1, 10))
        with closing(connect(source.url, name="test", settings=SESSION)) as session:
            (table,) = captured_tables(session, CAPTURE)
            with suppress(LockNotAvailable):
                TriggerSource(session, CAPTURE, where="test", leader="of before").arm(table)
        wait_until(lambda: units.next().tables[TWEETS].position is None, what="a table that waits")
        _wait_complete(units)


@pytest.mark.parametrize(
    "change",
    ["ADD COLUMN note text DEFAULT 'new'", "ALTER COLUMN text TYPE text USING text || '!'"],
    ids=["altered", "rewritten"],
)
def test_c2_a_publishing_round_looks_for_what_fired_no_trigger_though_no_second_has_passed(
    source: Source, units: Units, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Its watermark would pass rows that nobody has read as they are since."""
    source.attach("tweets")
    source.run(insert_tweets(1, 10))
    _wait_complete(units)
    monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 3600.0)
    # A table that has just become complete hastens one more round, whether anything changed or not.
    source.run("UPDATE tweets SET text = 'seen' WHERE tweet_id = 1")
    wait_until(lambda: units.next().pages, what="a round with the row")
    source.run(f"ALTER TABLE tweets {change}", "UPDATE tweets SET text = 'other' WHERE tweet_id = 2")
    unit = units.next()
    assert unit.known_by.get(TWEETS, NOTHING_KNOWN).time is None or not unit.tables[TWEETS].complete


@pytest.mark.parametrize(
    ("pruned", "position", "is_reached"),
    [
        ("20:20:", "20:20:", True),
        ("10:20:10", "10:20:10", True),
        ("21:21:", "20:20:", False),
        ("20:20:", "10:20:10", False),
        ("10:20:10", "10:20:10,15", False),
    ],
    ids=["equal", "open_in_both", "later", "ended_since", "one_of_two_ended_since"],
)
def test_c7_a_position_is_out_of_reach_once_its_log_was_emptied_of_what_it_had_not_seen(
    source: Source, logs: TriggerSource, pruned: str, position: str, *, is_reached: bool
) -> None:
    source.attach("tweets")
    source.run(f"UPDATE cdc.captured_table SET pruned_snapshot = '{pruned}'")
    assert list(logs.out_of_reach({1: position})) == ([] if is_reached else [1])


def test_a_table_whose_entry_somebody_holds_waits_on(source: Source, units: Units) -> None:
    """An attach that moves it to another source, for instance."""
    source.attach("tweets")
    _wait_complete(units)
    source.run("INSERT INTO cdc.log_1_0 (mark) VALUES ('limit')")
    with source.session() as mover:
        mover.execute("SELECT FROM cdc.captured_table FOR UPDATE")
        wait_until(lambda: units.next().tables[TWEETS].position is None, what="a table that waits")
        assert [units.next().tables[TWEETS].position for _ in range(3)] == [None] * 3
    _wait_complete(units)


def test_changes_of_many_tables_are_one_unit_no_larger_than_a_page_and_none_is_claimed_before_it_is_read(
    source: Source, units: Units
) -> None:
    tables = ("tweets", "follows", "likes")
    source.attach(*tables)
    wait_until(lambda: all(units.next().tables[f"public.{table}"].complete for table in tables), what="what is read")
    source.run(
        insert_tweets(1, 80),
        "INSERT INTO follows (follow_id) SELECT generate_series(1, 80)",
        "INSERT INTO likes (like_id) SELECT generate_series(1, 80)",
    )
    committed = source.now()
    rows = dict.fromkeys((f"public.{table}" for table in tables), 0)
    known = set[str]()
    while known != rows.keys():
        unit = units.next()
        assert sum(len(page.changes) for page in unit.pages) <= 100
        for page in unit.pages:
            rows[str(page.table.name)] += len(page.changes)
        known |= {name for name, by in unit.known_by.items() if by.time is not None and by.time >= committed}
        assert all(rows[name] == 80 for name in known)


def test_polls_are_one_statement_whatever_a_page_holds(
    source: Source, session: psycopg.Connection, logs: TriggerSource
) -> None:
    """Each page teaches how many rows the next one is to hold: a statement for each size would be kept for ever."""
    source.attach("tweets")
    tables, _ = logs.attached()
    positions = {tables[0].name: str(source.value("SELECT pg_current_snapshot()::text"))}
    source.run(insert_tweets(1, 100))

    def found(most_rows: int) -> list[int]:
        with logs.round(tables, positions, lambda _table: most_rows) as round_:
            return [one.records for one in round_.found]

    # Of more records than a page's it is known that they are more.
    assert [found(most_rows) for most_rows in (50, 99, 100, 40_000)] == [[51], [100], [100], [100]]
    polls = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%AS MATERIALIZED%'"
    assert session.execute(polls).fetchone() == (1,)


def test_a_column_retyped_while_its_tables_rows_are_read_is_looked_at_again(
    source: Source, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as what it was, it may fail in any way, as a key that is none of its type for instance."""
    source.attach("tweets")
    source.run(insert_tweets(1, 200))
    wait_until(lambda: units.next().tables[TWEETS].reading, what="rows that are read")
    monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 3600.0)
    source.run("ALTER TABLE tweets ALTER created_at TYPE bigint USING extract(epoch FROM created_at)")
    with pytest.raises(CatalogChanged, match=TWEETS):
        units.next()
