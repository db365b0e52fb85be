"""The source killed beside writers that do not wait for their commits: nothing is lost and nothing is invented.

Without the flush a trial mostly loses a row, not always: what is on whole pages of the WAL survives a kill by itself.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from random import Random

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from cdc.tables import SourceKind
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from runtime.postgres import connect
from tests.daemons import ROOT, Daemons
from tests.torture import Torture
from tests.torture_source import CapturedSource
from tests.waiting import wait_until

TRIALS_A_ROUND = 3
WRITERS = 4
TABLE = "public.counted"


@pytest.mark.torture
@pytest.mark.parametrize("kind", [SourceKind.TRIGGERS, SourceKind.WAL])
def test_c6_what_was_published_survives_a_crash_of_the_source(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_binaries: Path,
    kafka: KafkaBroker,
    topic_prefix: str,
    daemon: Daemons,
    torture: Torture,
    kind: SourceKind,
) -> None:
    folder = tmp_path_factory.mktemp("own-postgres")
    with run_postgres(folder, binaries=postgres_binaries) as server:
        source = CapturedSource(server.url(), kafka.bootstrap_servers, topic_prefix, kind)
        _prepare(source)
        capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": source.url, "VIEWKEEPER_CDC_SOURCE": kind})
        source.wait_published([TABLE])
        _write_until_killed(source, server, torture.random)
    for trial in range(1, TRIALS_A_ROUND * torture.rounds + 1):
        with run_postgres(folder, port=server.port, binaries=postgres_binaries) as server:
            # These take the xids that the crash has given back.
            source.run(f"INSERT INTO counted SELECT -i, 0 FROM generate_series({trial * 10}, {trial * 10 + 9}) i")
            source.wait_published([TABLE])
            source.assert_topics_equal_tables()
            _write_until_killed(source, server, torture.random)
    assert capture.is_running()


def _prepare(source: CapturedSource) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VIEWKEEPER_SOURCE_URL", source.url)
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="source"), "head")
    source.run(
        # The writer of WAL would flush it by itself within 0.6 s.
        "ALTER SYSTEM SET wal_writer_delay = '10s'",
        "SELECT pg_reload_conf()",
        "CREATE TABLE counted (id bigint PRIMARY KEY, version bigint NOT NULL)",
    )
    source.attach(TABLE)


def _write_until_killed(source: CapturedSource, server: PostgresServer, random: Random) -> None:
    """Kill the server once some of what is being written was published."""
    published = len(source.topic(TABLE).records) + random.randint(20, 200)
    with ThreadPoolExecutor(WRITERS) as executor, _killed_after(server):
        for number in range(WRITERS):
            executor.submit(_write, source.url, number * 1_000_000 + random.randrange(1_000) * 1_000)
        wait_until(lambda: len(source.topic(TABLE).records) >= published, what="published rows")


@contextmanager
def _killed_after(server: PostgresServer) -> Iterator[None]:
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGKILL)


def _write(url: str, first: int) -> None:
    """Commit rows without a flush, and between them take xids that leave no trace, until the server is gone."""
    try:
        with closing(connect(url, name="test", settings={"synchronous_commit": "off"})) as session:
            for key in count(first):
                # The one row that is written again and again is read newer than the change that is known of it.
                for written in (key, first):
                    session.execute(
                        "INSERT INTO counted VALUES (%s, 1)"
                        " ON CONFLICT (id) DO UPDATE SET version = counted.version + 1",
                        (written,),
                    )
                session.execute("SELECT pg_current_xact_id()")
                with session.transaction(force_rollback=True):
                    session.execute("INSERT INTO counted VALUES (%s, 2)", (-key,))
    except psycopg.OperationalError:
        return
