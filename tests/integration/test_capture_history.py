"""C7: a source that was restored, copied or promoted, and a Kafka that was set back: never taken for what they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from confluent_kafka import Producer
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from tests.daemons import ROOT, Daemons
from tests.standby import back_up, wait_replayed
from tests.torture_source import CAPTURE, CapturedSource
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

TABLE = "public.counted"
READ_ANEW = {"VIEWKEEPER_CDC_ON_OTHER_HISTORY": "snapshot"}


@pytest.fixture
def source(source_url: str, kafka: KafkaBroker, topic_prefix: str) -> CapturedSource:
    """Give a source with one table, attached, of 100 rows."""
    return _counted(CapturedSource(source_url, kafka.bootstrap_servers, topic_prefix))


def _counted(source: CapturedSource) -> CapturedSource:
    source.run("CREATE TABLE counted (id bigint PRIMARY KEY, version bigint NOT NULL)")
    source.attach(TABLE)
    source.run("INSERT INTO counted SELECT i, 0 FROM generate_series(1, 100) i")
    return source


def _publish(source: CapturedSource, daemon: Daemons, *statements: str) -> None:
    """Run a capture until it has published what these statements do."""
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": source.url})
    source.wait_published([TABLE])
    source.run(*statements)
    source.wait_published([TABLE])
    assert capture.terminate() == 0


def _assert_refused(source: CapturedSource, daemon: Daemons, complaint: str) -> None:
    records = len(source.topic(TABLE).records)
    refused = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": source.url})
    # Reading the cursor back may take its whole deadline, and is then begun again.
    assert refused.wait(200) == 1
    last = refused.log_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last
    assert len(source.topic(TABLE).records) == records


def _assert_read_anew(source: CapturedSource, daemon: Daemons) -> None:
    """Read every table anew, once, and go on as ever."""
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": source.url, **READ_ANEW})
    source.wait_published([TABLE])
    source.assert_topics_equal_tables()
    assert capture.terminate() == 0
    _publish(source, daemon, "UPDATE counted SET version = 9 WHERE id = 9")
    source.assert_topics_equal_tables()


def test_a_database_restored_from_an_older_copy_is_refused_or_read_anew(
    source: CapturedSource, postgres: PostgresServer, daemon: Daemons
) -> None:
    _publish(source, daemon, "UPDATE counted SET version = 1 WHERE id = 1")
    name = str(conninfo_to_dict(source.url)["dbname"])
    with _copied(postgres, name) as copy:
        _publish(source, daemon, "UPDATE counted SET version = 2 WHERE id <= 2", "INSERT INTO counted VALUES (101, 2)")
        _replace(postgres, name, copy)
        source.run("UPDATE counted SET version = 3 WHERE id = 3", "DELETE FROM counted WHERE id = 4")
        _assert_refused(source, daemon, "another history")
        _assert_read_anew(source, daemon)


def test_a_table_that_is_left_out_meanwhile_is_read_anew_once_it_is_captured_again(
    source: CapturedSource, postgres: PostgresServer, daemon: Daemons
) -> None:
    """The next cursor has a mark of the new history, and would vouch for a position of the old one."""
    source.run("CREATE TABLE others (id bigint PRIMARY KEY)", "INSERT INTO others SELECT generate_series(1, 10)")
    source.attach("public.others")
    _publish(source, daemon, "UPDATE counted SET version = 1 WHERE id = 1")
    name = str(conninfo_to_dict(source.url)["dbname"])
    with _copied(postgres, name) as copy:
        capture = daemon("cdc", "run")
        source.run("INSERT INTO others VALUES (11)")
        source.wait_published([TABLE, "public.others"])
        assert capture.terminate() == 0
        _replace(postgres, name, copy)
        source.run("INSERT INTO others VALUES (12)")
        capture = daemon("cdc", "run", settings={**READ_ANEW, "VIEWKEEPER_CDC_TABLES": TABLE})
        source.wait_published([TABLE])
        assert capture.terminate() == 0
        daemon("cdc", "run")
        source.wait_published([TABLE, "public.others"])
        source.assert_topics_equal_tables()


@pytest.mark.parametrize("attached", [[], ["public.others"]], ids=["nothing", "another_table"])
def test_another_database_under_the_same_name_is_refused_though_it_has_none_of_the_cursors_tables(
    source: CapturedSource, postgres: PostgresServer, daemon: Daemons, attached: list[str]
) -> None:
    """It would write a cursor without them, and the right database could not go on from that."""
    name = str(conninfo_to_dict(source.url)["dbname"])
    with _copied(postgres, name) as copy:
        _publish(source, daemon, "UPDATE counted SET version = 1 WHERE id = 1")
        other = replace(source, url=postgres.url(copy))
        other.run("SELECT cdc.detach(capture, table_schema, table_name) FROM cdc.captured_table")
        other.run("CREATE TABLE others (id bigint PRIMARY KEY)", "INSERT INTO others SELECT generate_series(1, 10)")
        if attached:
            other.attach(*attached)
        _assert_refused(other, daemon, f"{TABLE}, which that knows, is not attached here")
    _publish(source, daemon, "UPDATE counted SET version = 2 WHERE id = 2")
    source.assert_topics_equal_tables()


def _replace(postgres: PostgresServer, name: str, copy: str) -> None:
    """Put a copy in a database's place."""
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
        session.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(copy), Identifier(name)))


@contextmanager
def _copied(postgres: PostgresServer, name: str) -> Iterator[str]:
    """Copy a database; yields the copy's name, and drops what is left of it."""
    copy = Identifier(f"{name}_copy")
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(copy, Identifier(name)))
        try:
            yield f"{name}_copy"
        finally:
            session.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(copy))


def test_a_cursor_that_is_older_than_the_change_log_is_refused_or_read_anew(
    source: CapturedSource, daemon: Daemons
) -> None:
    _publish(source, daemon, "UPDATE counted SET version = 1 WHERE id = 1")
    older = source.cursors().values[CAPTURE.encode()]
    capture = daemon("cdc", "run")
    # More than a part of the change log may hold before it is left and emptied.
    source.run(
        "INSERT INTO counted SELECT i, 2 FROM generate_series(1000, 40000) i", "DELETE FROM counted WHERE id = 1"
    )
    wait_until(lambda: _emptied(source), what="an emptied change log")
    assert capture.terminate() == 0
    _set_back(source, older)
    _assert_refused(source, daemon, "was emptied beyond the cursor: Kafka was set back")
    _assert_read_anew(source, daemon)


def _emptied(source: CapturedSource) -> bool:
    with psycopg.connect(source.url) as session:
        row = session.execute("SELECT pruned_snapshot IS NOT NULL FROM cdc.captured_table").fetchone()
    return row == (True,)


def _set_back(source: CapturedSource, older: bytes) -> None:
    """Put an older cursor record in the newest one's place."""
    producer = Producer({"bootstrap.servers": source.bootstrap_servers, "partitioner": "murmur2_random"})
    producer.produce(f"{source.prefix}.cursor", older, CAPTURE)
    assert producer.flush(30) == 0


def test_a_standby_is_refused_and_when_promoted_taken_for_the_primary_if_it_lost_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_binaries: Path,
    kafka: KafkaBroker,
    topic_prefix: str,
    daemon: Daemons,
) -> None:
    primary_dir, standby_dir, late_dir = (tmp_path_factory.mktemp(name) for name in ("primary", "standby", "late"))
    with run_postgres(primary_dir, binaries=postgres_binaries) as primary:
        source = _migrated(CapturedSource(primary.url(), kafka.bootstrap_servers, topic_prefix))
        _publish(source, daemon, "UPDATE counted SET version = 1 WHERE id = 1")
        back_up(postgres_binaries, primary, late_dir)
        back_up(postgres_binaries, primary, standby_dir)
        with run_postgres(standby_dir, binaries=postgres_binaries) as standby:
            replica = CapturedSource(standby.url(), kafka.bootstrap_servers, topic_prefix)
            _publish(source, daemon, "UPDATE counted SET version = 2 WHERE id = 2", "DELETE FROM counted WHERE id = 3")
            source.run("INSERT INTO counted VALUES (101, 3)")
            wait_replayed(source.url, replica.url)
            _assert_refused(replica, daemon, "is a standby")
            replica.run("SELECT pg_promote()")
            replica.run("UPDATE counted SET version = 4 WHERE id = 4")
            before = len(source.topic(TABLE).records)
            _publish(replica, daemon)
            replica.assert_topics_equal_tables()
            assert len(source.topic(TABLE).records) == before + 2
    # This one knows nothing of what was published since it was made.
    with run_postgres(late_dir, binaries=postgres_binaries) as late:
        lossy = CapturedSource(late.url(), kafka.bootstrap_servers, topic_prefix)
        lossy.run("SELECT pg_promote()", "UPDATE counted SET version = 5 WHERE id = 5")
        _assert_refused(lossy, daemon, "another history")
        _assert_read_anew(lossy, daemon)


def _migrated(source: CapturedSource) -> CapturedSource:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VIEWKEEPER_SOURCE_URL", source.url)
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="source"), "head")
    return _counted(source)
