"""The timestamp source where nothing may be written: a role with SELECT alone, a replica, and a lease in Kafka."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from psycopg.sql import SQL

from cdc.kafka_lease import KafkaLease
from cdc.session import SESSION
from cdc.sources import polled_options
from cdc.timestamp_tables import polled_table
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from runtime.errors import ConfigurationError
from runtime.postgres import connect
from runtime.settings import CdcSettings, read_settings
from tests.daemons import Daemons
from tests.integration.polled_source import BOTH, TIMESTAMP, PolledSource
from tests.standby import back_up, wait_replayed
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

TAKE_OVER_SECONDS = 10.0
TRIALS = 10
KEYED = f'{TIMESTAMP}\nkey = ["id"]'


@pytest.fixture
def reader(polled: PolledSource) -> Iterator[dict[str, str]]:
    """Give the settings of a role that may log in and nothing else."""
    role = f"reader_{polled.prefix}"
    polled.run(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    # Postgres gives this one to everybody; an administrator may have taken it back.
    polled.run("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    yield {"VIEWKEEPER_SOURCE_URL": polled.url_of(role, "secret")}
    polled.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_role_with_select_alone_will_do(polled: PolledSource, daemon: Daemons, reader: dict[str, str]) -> None:
    settings = {**polled.tables(items=BOTH), **reader}
    refused = daemon("cdc", "run", settings=settings)
    assert refused.wait() == 2
    assert "permission denied for table items" in refused.log_text()
    polled.run(f"GRANT SELECT ON items TO reader_{polled.prefix}")
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("items", 1, "second")
    for command in (("status", "--json"), ("snapshot", "items", "--wait"), ("reconcile", "items")):
        done = daemon("cdc", *command, settings=settings)
        assert done.wait(60) == 0, done.log_text()
    assert capture.terminate() == 0


def test_w6_a_role_that_may_read_a_view_alone_captures_that(
    polled: PolledSource, daemon: Daemons, reader: dict[str, str]
) -> None:
    polled.run(
        "CREATE VIEW shown AS SELECT id, md5(text) AS text, updated_at FROM items",
        f"GRANT SELECT ON shown TO reader_{polled.prefix}",
    )
    daemon("cdc", "run", settings={**polled.tables(shown=KEYED), **reader})
    polled.wait_published("shown")
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("shown", 1, str(polled.value("SELECT md5('second')")))


def test_w5_a_flush_waits_for_wal_that_nobody_else_waits_for(
    polled: PolledSource, settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash of the server takes back must not be published, and nothing may be written to flush it."""
    for name, value in settings_env.items():
        monkeypatch.setenv(name, value)
    with closing(connect(polled.url, name="flush", settings=SESSION)) as session, ExitStack() as after:
        lease = KafkaLease(read_settings(CdcSettings), session, where="test", token="")
        after.callback(lease.release)
        polled.run("SET synchronous_commit = off")
        for number in range(TRIALS):
            polled.run(f"INSERT INTO items VALUES ({100 + number}, 'not waited for', now())")
            written = str(polled.value("SELECT pg_current_wal_insert_lsn()::text"))
            lease.flush(published="")
            assert polled.value(f"SELECT pg_current_wal_flush_lsn() >= '{written}'")


def test_status_tells_leader_mode_and_requests(polled: PolledSource, daemon: Daemons) -> None:
    settings = polled.tables(items=TIMESTAMP)
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    shown = daemon("cdc", "status", "--json", settings=settings)
    assert shown.wait() == 0, shown.log_text()
    status = json.loads(shown.log_text())
    assert (status["source"], status["leader"]["alive"], status["token_known"]) == ("timestamp", True, True)
    table = status["tables"][0]
    assert (table["mode"], table["change_log"], table["phase"]) == ("timestamp", None, "complete")
    assert capture.terminate() == 0
    assert daemon("cdc", "snapshot", "items", settings=settings).wait() == 0
    idle = daemon("cdc", "status", "--json", settings=settings)
    assert idle.wait() == 1
    status = json.loads(idle.log_text())
    assert (status["leader"]["name"], [one["table"] for one in status["requests"]]) == (None, ["public.items"])


def test_status_tells_of_other_tables_where_one_was_dropped(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("CREATE TABLE others (LIKE items INCLUDING ALL)")
    settings = polled.tables(others=TIMESTAMP, items=TIMESTAMP)
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items", "others")
    polled.run("DROP TABLE others")
    assert capture.wait() == 1
    shown = daemon("cdc", "status", "--json", settings=settings)
    assert shown.wait() == 1
    status = json.loads(shown.log_text())
    assert [(table["table"], table["phase"]) for table in status["tables"]] == [("public.items", "complete")]
    assert [need for need in status["needs_a_person"] if "there is no table or view public.others" in need]
    refused = daemon("cdc", "snapshot", "others", settings=settings)
    assert refused.wait() == 1
    assert "there is no table or view public.others" in refused.log_text()
    assert daemon("cdc", "snapshot", "items", settings=settings).wait() == 0


def test_reconcile_goes_on_with_other_tables_where_one_is_not_there(
    polled: PolledSource, daemon: Daemons, tmp_path: Path
) -> None:
    """The capture that runs polls fewer, or has not noticed yet."""
    running = polled.tables(items=TIMESTAMP)
    file = Path(running["VIEWKEEPER_CDC_TABLES"]).rename(tmp_path / "running.toml")
    daemon("cdc", "run", settings={**running, "VIEWKEEPER_CDC_TABLES": str(file)})
    polled.wait_published("items")
    settings = polled.tables(others=TIMESTAMP, items=TIMESTAMP)
    compared = daemon("cdc", "reconcile", "--json", settings=settings)
    assert compared.wait(60) == 1
    report, *complaint = compared.log_text().splitlines()
    assert (json.loads(report)["table"], json.loads(report)["equal"]) == ("public.items", 10)
    assert "there is no table or view public.others, which VIEWKEEPER_CDC_TABLES names" in complaint[-1]
    named = daemon("cdc", "reconcile", "others", "items", settings=settings)
    assert named.wait(60) == 1
    assert "there is no table or view public.others" in named.log_text()
    assert daemon("cdc", "reconcile", "items", settings=settings).wait(60) == 0


def test_a_standby_takes_over_within_ten_seconds(polled: PolledSource, daemon: Daemons) -> None:
    settings = polled.tables(items=BOTH)
    first = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    second = daemon("cdc", "run", settings=settings)
    second.wait_logged("standby")
    assert not second.logged("leading")
    first.kill()
    killed_at = time.monotonic()
    second.wait_logged("leading")
    assert time.monotonic() - killed_at < TAKE_OVER_SECONDS
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("items", 1, "second")


def test_a_leader_that_wakes_up_late_publishes_nothing(polled: PolledSource, daemon: Daemons) -> None:
    settings = polled.tables(items=BOTH)
    first = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    second = daemon("cdc", "run", settings=settings)
    second.wait_logged("standby")
    first.signal(signal.SIGSTOP)
    second.wait_logged("leading")
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("items", 1, "second")
    first.signal(signal.SIGCONT)
    wait_until(lambda: len(first.logged("retrying")) + len(first.logged("standby")) > 0, what="the first one to notice")
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "needs its mode"),
        ('mode = "timestamp"', "mode timestamp needs option timestamp"),
        (f'{TIMESTAMP}\nincrementing = "id"', "mode timestamp has no use for option incrementing"),
        (f'{TIMESTAMP}\nmasks = ["text"]', "list its columns beside its masks"),
        (f'{TIMESTAMP}\ncolumns = ["id"]\nmasks = ["text"]', "column text cannot be masked: its columns leave it out"),
        (f'{TIMESTAMP}\ncolumns = ["id"]\nmasks = ["id"]', "column id cannot be masked: rows are told apart by it"),
        (f'{TIMESTAMP}\ncolumns = ["text"]', "key column id is missing in its columns"),
        (f'{TIMESTAMP}\nkey = ["text"]', "its key (text) is not unique"),
        ('mode = "timestamp"\ntimestamp = ["text"]', "timestamp columns are all of type"),
        ('mode = "incrementing"\nincrementing = "updated_at"', "accepted are smallint, integer, bigint"),
        ('mode = "timestamp"\ntimestamp = ["changed"]', "has no column changed; it has id, text, updated_at"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    polled: PolledSource, daemon: Daemons, options: str, complaint: str
) -> None:
    settings = {**polled.tables(items=options), "VIEWKEEPER_CDC_MASK_KEY": "sixteen characters"}
    refused = daemon("cdc", "run", settings=settings)
    assert refused.wait(30) == 2
    assert complaint in refused.log_text()


@pytest.mark.parametrize("masked", ["born", "number"])
def test_what_orders_rows_is_in_the_cursor_and_cannot_be_masked(polled: PolledSource, masked: str) -> None:
    polled.run("CREATE TABLE people (id bigint PRIMARY KEY, born timestamptz, number bigint, name text)")
    order = 'mode = "timestamp+incrementing"\ntimestamp = ["born"]\nincrementing = "number"'
    listed = f'{order}\ncolumns = ["id", "name", "{masked}"]'
    (options,) = polled_options(polled.tables(people=f'{listed}\nmasks = ["name"]')["VIEWKEEPER_CDC_TABLES"])
    polled_table(polled.connection, options, where="test")
    (options,) = polled_options(polled.tables(people=f'{listed}\nmasks = ["{masked}"]')["VIEWKEEPER_CDC_TABLES"])
    with pytest.raises(ConfigurationError, match=f"column {masked} cannot be masked: rows are ordered by it"):
        polled_table(polled.connection, options, where="test")


def test_nothing_is_attached_and_tables_have_to_be_named(polled: PolledSource, daemon: Daemons) -> None:
    settings = {**polled.tables(items=BOTH), "VIEWKEEPER_CDC_TABLES": ""}
    refused = daemon("cdc", "run", settings=settings)
    assert refused.wait() == 2
    assert "VIEWKEEPER_CDC_TABLES is missing" in refused.log_text()
    attach = daemon("cdc", "attach", "items", settings=settings)
    assert attach.wait() == 2
    assert "tables are named in VIEWKEEPER_CDC_TABLES" in attach.log_text()


@pytest.mark.parametrize("command", ["status", "reconcile"])
def test_a_forgotten_source_is_named_beside_the_migration(polled: PolledSource, daemon: Daemons, command: str) -> None:
    tables = polled.tables(items=BOTH)["VIEWKEEPER_CDC_TABLES"]
    refused = daemon("cdc", command, settings={"VIEWKEEPER_CDC_TABLES": tables})
    assert refused.wait() == 2
    assert "schema cdc is missing; run: alembic" in refused.log_text()
    assert "if the capture polls its tables, set VIEWKEEPER_CDC_SOURCE=timestamp" in refused.log_text()


@pytest.fixture(scope="module")
def replica(
    tmp_path_factory: pytest.TempPathFactory, postgres_binaries: Path
) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Give a primary with a role that may only read, and a standby of it."""
    primary_dir, standby_dir = (tmp_path_factory.mktemp(name) for name in ("primary", "standby"))
    with run_postgres(primary_dir, binaries=postgres_binaries) as primary:
        with closing(connect(primary.url(), name="test", settings={})) as session:
            session.execute("CREATE ROLE poller LOGIN")
            session.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO poller")
        back_up(postgres_binaries, primary, standby_dir)
        with run_postgres(standby_dir, binaries=postgres_binaries) as standby:
            yield primary, standby


@pytest.fixture
def polled_replica(
    replica: tuple[PostgresServer, PostgresServer], kafka: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> Iterator[tuple[PolledSource, dict[str, str]]]:
    """Give the primary, with a table of ten rows, and the settings of a capture that polls it on the standby."""
    primary, standby = replica
    source = PolledSource(primary.url(), kafka, topic_prefix, tmp_path)
    with closing(source.connection):
        source.run(
            "CREATE TABLE items (id bigint PRIMARY KEY, text text, updated_at timestamptz)",
            "INSERT INTO items SELECT i, 'first', now() FROM generate_series(1, 10) i",
        )
        wait_replayed(primary.url(), standby.url())
        url = standby.url().replace("postgres@", "poller@")
        yield source, {**source.tables(items=TIMESTAMP), "VIEWKEEPER_SOURCE_URL": url}
        source.run("DROP TABLE items")


def test_a_replica_is_polled(polled_replica: tuple[PolledSource, dict[str, str]], daemon: Daemons) -> None:
    source, settings = polled_replica
    often = {"VIEWKEEPER_CDC_SWEEP_SECONDS": "1", "VIEWKEEPER_CDC_CHUNK_ROWS": "4"}
    capture = daemon("cdc", "run", settings={**settings, **often})
    capture.wait_logged("replica")
    source.wait_published("items")
    source.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1", "DELETE FROM items WHERE id = 2")
    source.wait_text("items", 1, "second")
    source.wait_keys("items", 1, *range(3, 11))
    marks = [entry.watermark for cursor in source.cursors() if (entry := cursor.tables.get("public.items"))]
    assert all(mark.uncertain for mark in marks if mark)
    assert any(marks)
    assert capture.terminate() == 0


def test_the_watermark_stands_still_while_a_replica_receives_nothing(
    replica: tuple[PostgresServer, PostgresServer],
    polled_replica: tuple[PolledSource, dict[str, str]],
    daemon: Daemons,
) -> None:
    source, settings = polled_replica
    capture = daemon("cdc", "run", settings=settings)
    source.wait_published("items")
    with _cut_off(replica[1]):
        cut_at = source.now()
        source.run("UPDATE items SET text = 'not received', updated_at = now() WHERE id = 1")
        beats = len(source.cursors())
        wait_until(lambda: len(source.cursors()) >= beats + 2, what="cursors of after that")
        time_ = source.watermark_time("items")
        assert time_ is not None
        assert time_ < cut_at
    source.wait_text("items", 1, "not received")
    source.wait_published("items")
    assert capture.terminate() == 0


def test_who_asks_about_a_replica_without_the_source_is_told_of_it(
    polled_replica: tuple[PolledSource, dict[str, str]], daemon: Daemons
) -> None:
    _, settings = polled_replica
    refused = daemon("cdc", "status", settings={**settings, "VIEWKEEPER_CDC_SOURCE": "triggers"})
    assert refused.wait() == 1
    assert "if the capture polls its tables, set VIEWKEEPER_CDC_SOURCE=timestamp" in refused.log_text()


@contextmanager
def _cut_off(standby: PostgresServer) -> Iterator[None]:
    """Have a standby receive nothing from its primary."""
    with closing(connect(standby.url(), name="test", settings={})) as session:

        def receives() -> bool:
            return session.execute("SELECT FROM pg_stat_wal_receiver").rowcount == 1

        def connect_to(primary: str) -> None:
            session.execute(SQL("ALTER SYSTEM SET primary_conninfo = {}").format(primary))
            session.execute("SELECT pg_reload_conf()")

        (primary,) = session.execute("SHOW primary_conninfo").fetchone() or ("",)
        connect_to("")
        wait_until(lambda: not receives(), what="the end of the receiver")
        yield
        connect_to(primary)
        wait_until(receives, what="a receiver")
