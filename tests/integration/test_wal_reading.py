"""A real Reader over the WAL: what a round cannot read is not lost, and not taken for read."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from time import monotonic

import pytest

import cdc.reading
from cdc.change import Unit
from cdc.errors import CatalogChanged
from cdc.rounds import NOTHING_KNOWN, Round
from cdc.session import SESSION
from cdc.tables import CapturedTable
from cdc.wal import WalSource
from cdc.wire import TableName
from runtime.postgres import connect
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.reader_steps import read_units
from tests.integration.wal_steps import attach_wal
from tests.waiting import wait_until

PAGE_KEYS = 1_000


class NotingSource(WalSource):
    """Notes the tables that sat a round out that had taken keys of them."""

    noted: tuple[str, ...] = ()

    def sat_out(self, round_: Round, tables: Sequence[CapturedTable]) -> None:
        self.noted += tuple(str(table.name) for table in tables if table.attachment in self._taken)
        super().sat_out(round_, tables)


@pytest.fixture
def noting(wal: Source) -> Iterator[NotingSource]:
    """Give what reads a table that is attached."""
    attach_wal(wal, "tweets")
    with (
        closing(connect(wal.url, name="test", settings=SESSION)) as session,
        closing(NotingSource(session, CAPTURE, url=wal.url, where="test", page_keys=PAGE_KEYS)) as source,
    ):
        yield source


def test_keys_of_a_table_altered_between_look_and_round_are_found_again(
    wal: Source, noting: NotingSource, settings: CdcSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as it was when it is looked at next, so that nothing else would have them read."""
    table = "public.tweets"
    with read_units(settings, noting) as units:
        wait_until(lambda: units.is_complete(table), what="a table that is read")
        # No look comes before the round that finds a key, and no round that finds none.
        monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 3600.0)
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 3600.0)
        # But the one that is due now, for the watermark.
        units.next()
        wal.run("ALTER TABLE tweets RENAME text TO words", "INSERT INTO tweets (tweet_id) VALUES (1)")
        units.next()
        assert noting.noted == (table,)
        wal.run("ALTER TABLE tweets RENAME words TO text")
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 1.0)

        def found() -> bool:
            unit = units.next()
            assert unit.tables[table].complete, "it is not read anew"
            return b'{"tweet_id":1}' in [key for page in unit.pages for key, _ in page.changes]

        wait_until(found, what="the key")


@pytest.mark.parametrize(
    "before", ["ALTER TABLE tweets RENAME TO tweets_before", "DROP TABLE tweets"], ids=["renamed", "dropped"]
)
def test_another_table_with_its_name_is_not_taken_for_it(
    wal: Source, noting: NotingSource, settings: CdcSettings, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """The publication has the other one, whose changes would be found, and this one's rows be read."""
    table = "public.tweets"
    with read_units(settings, noting) as units:
        wait_until(lambda: units.is_complete(table), what="a table that is read")
        monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 3600.0)
        wal.run(
            "CREATE TABLE tweets_after (LIKE tweets INCLUDING ALL)",
            "INSERT INTO tweets_after (tweet_id, text) VALUES (1, 'of another table')",
            f"DO $$ BEGIN {before}; ALTER TABLE tweets_after RENAME TO tweets; END $$",
        )
        until = wal.now()

        def is_claimed() -> bool:
            return _knows(units.next(), table, until)

        with pytest.raises(CatalogChanged, match="another table has its name now"):
            wait_until(is_claimed, what="a watermark of after that")


def test_a_sweep_passes_over_a_key_that_came_back_and_no_watermark_speaks_of_it_before_its_change_is_found(
    wal: Source,
) -> None:
    """The topic has the row of before it went, and the stream lags behind what the sweep has seen."""
    attach_wal(wal, "tweets")
    wal.run("INSERT INTO tweets (tweet_id, text) VALUES (1, 'old')")
    with (
        closing(connect(wal.url, name="test", settings=SESSION)) as session,
        # A change a round.
        closing(WalSource(session, CAPTURE, url=wal.url, where="test", page_keys=1)) as source,
    ):
        (table,), _ = source.attached()
        positions: dict[TableName, str] = {}

        def turn() -> tuple[Round, bool]:
            with source.round((table,), positions, lambda _table: PAGE_KEYS) as round_:
                positions.update({table.name: round_.position_of(table)} if positions else {})
                return round_, table.attachment not in round_.behind and round_.known_by is not None

        def is_known(until: datetime) -> bool:
            round_, is_current = turn()
            return is_current and round_.known_by is not None and round_.known_by >= until

        wal.run("DELETE FROM tweets")
        gone = wal.now()
        # Its rows are read from here on: the delete lies behind.
        wait_until(lambda: is_known(gone), what="the delete")
        positions[table.name] = turn()[0].position_of(table)
        wal.run(*[f"INSERT INTO tweets (tweet_id) VALUES ({number})" for number in range(100, 110)])
        turn()
        wal.run("INSERT INTO tweets (tweet_id, text) VALUES (1, 'new')")
        looked_up = source.ghosts(table, [["1"]])
        assert looked_up is not None, "nobody locks it"
        assert not looked_up.changes, "it has a row"

        def is_found() -> bool:
            round_, is_current = turn()
            has_come_back = any('"1"' in str(found.keys.literals[0]) for found in round_.found)
            assert has_come_back or not is_current, f"known by {round_.known_by}, without the key that came back"
            return has_come_back

        wait_until(is_found, what="the key that came back")
        until = wal.now()
        wait_until(lambda: is_known(until), what="a watermark")


@pytest.mark.parametrize("is_transactional", [True, False])
def test_a_round_ends_however_much_others_write_to_the_wal(wal: Source, *, is_transactional: bool) -> None:
    """A program that writes messages of its own all the time must not keep the slot where it is."""
    attach_wal(wal, "tweets")
    with (
        closing(connect(wal.url, name="test", settings=SESSION)) as session,
        closing(WalSource(session, CAPTURE, url=wal.url, where="test", page_keys=PAGE_KEYS)) as source,
    ):
        (table,), _ = source.attached()
        positions = {table.name: source.begin(table) or ""}

        def finds_a_key() -> bool:
            with source.round((table,), positions, lambda _table: PAGE_KEYS) as round_:
                return bool(round_.found)

        assert not finds_a_key()
        emitted = f"pg_logical_emit_message({is_transactional}, 'other', '')"
        wal.run(
            f"SELECT count({emitted}) FROM generate_series(1, {PAGE_KEYS})", "INSERT INTO tweets (tweet_id) VALUES (1)"
        )
        end = wal.value("SELECT pg_current_wal_flush_lsn()::text")
        sent = f"SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE '%wal' AND sent_lsn >= '{end}'"
        wait_until(lambda: wal.value(sent), what="the change behind the messages")
        assert not finds_a_key(), "one round reads all that has come"
        wait_until(finds_a_key, what="the change")


def test_a_table_that_somebody_else_added_to_the_publication_begins_once_its_writers_of_before_are_over(
    wal: Source, noting: NotingSource, settings: CdcSettings
) -> None:
    """What they had written by then is not in the stream, and not in a snapshot of before their commit (W2)."""
    table = "public.tweets"
    wal.run("INSERT INTO tweets (tweet_id, text) VALUES (1, 'old')")
    with read_units(settings, noting) as units, wal.session() as writer:
        wait_until(lambda: units.is_complete(table), what="a table that is read")
        wal.run("ALTER PUBLICATION viewkeeper_viewkeeper DROP TABLE tweets")
        writer.execute("UPDATE tweets SET text = 'new'")
        wal.run("ALTER PUBLICATION viewkeeper_viewkeeper ADD TABLE tweets")
        wait_until(lambda: not units.is_complete(table), what="a table that is altered")
        until = monotonic() + 2
        wait_until(lambda: units.is_complete(table) or monotonic() > until, what="a while")
        rows: list[bytes] = []
        writer.commit()
        committed = wal.now()

        def is_claimed() -> bool:
            unit = units.next()
            rows.extend(row for page in unit.pages for _, row in page.changes if row is not None)
            return _knows(unit, table, committed) and unit.tables[table].complete

        wait_until(is_claimed, what="a watermark of after that")
        assert [row for row in rows if b'"new"' in row]


def _knows(unit: Unit, table: str, until: datetime) -> bool:
    """Return whether all of a table that was committed by a time is in this unit or an earlier one."""
    known = unit.known_by.get(table, NOTHING_KNOWN)
    return known.time is not None and known.time >= until
