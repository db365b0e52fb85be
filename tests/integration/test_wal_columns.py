"""Columns that may not leave the database, and the WAL: a publication shows the capture no more than keys."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import psycopg
import pytest

from cdc.attachment import attach
from cdc.tables import SourceKind
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.wal_steps import attach_wal, run_wal
from tests.waiting import wait_until

KEPT = TableName("public", "kept")
PUBLICATION = "viewkeeper_viewkeeper"
MASK_KEY = {"VIEWKEEPER_CDC_MASK_KEY": "a secret of some length"}
TABLE = "CREATE TABLE kept (secret text, id bigint, code text NOT NULL, shown text, PRIMARY KEY (id) INCLUDE (secret))"
IN_PUBLICATION = "SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'kept'::regclass"
LISTED = """
SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_publication_rel r
JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::smallint[])
WHERE r.prrelid = 'kept'::regclass
"""
STREAM = f"""
SELECT string_agg(data, ''::bytea)
FROM pg_logical_slot_get_binary_changes('watched', NULL, NULL, 'proto_version', '1',
                                        'publication_names', '{PUBLICATION}')
"""


def _attach(
    source: Source, columns: tuple[str, ...] | None = ("id", "shown"), masks: tuple[str, ...] | None = None
) -> None:
    assert attach(source.connection, CAPTURE, KEPT, where="test", source=SourceKind.WAL, columns=columns, masks=masks)


def test_only_keys_are_in_the_stream_and_only_listed_columns_in_the_topic(wal: Source, daemon: Daemons) -> None:
    wal.run(TABLE, "INSERT INTO kept SELECT 'hidden', i, 'hidden', 'shown' FROM generate_series(1, 5) i")
    _attach(wal)
    wal.value("SELECT pg_create_logical_replication_slot('watched', 'pgoutput')")
    run_wal(daemon)
    wal.wait_exact("kept")
    wal.run(
        "INSERT INTO kept VALUES ('hidden', 6, 'hidden', 'seen')",
        "ALTER TABLE kept ADD COLUMN later text DEFAULT 'hidden'",
        "UPDATE kept SET secret = repeat('hidden', 3000), later = 'hidden', shown = 'altered' WHERE id = 1",
        "UPDATE kept SET id = 102, code = 'hidden' WHERE id = 2",
        "DELETE FROM kept WHERE id = 3",
        "COPY kept (id, code) FROM PROGRAM 'echo 7,hidden' WITH (FORMAT csv)",
    )
    wal.wait_exact("kept")
    stream = wal.value(STREAM)
    wal.value("SELECT pg_drop_replication_slot('watched')")
    assert isinstance(stream, bytes)
    assert b"kept" in stream
    assert b"102" in stream
    assert not re.search(rb"hidden|seen|altered|secret|later|shown", stream)
    published = b"".join(record.value() or b"" for record in wal.topic("kept").records)
    assert b"altered" in published
    assert not re.search(rb"hidden|secret|later", published)


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("statements", "masks", "complaint"),
    [
        (
            ["ALTER TABLE kept REPLICA IDENTITY FULL"],
            None,
            "has columns that may not leave the database, and replica identity FULL, which shows them in the WAL",
        ),
        (
            ["CREATE UNIQUE INDEX wide ON kept (id, code)", "ALTER TABLE kept REPLICA IDENTITY USING INDEX wide"],
            None,
            "has column code in its replica identity, which the WAL shows, and it may not leave the database",
        ),
        (
            ["CREATE UNIQUE INDEX wide ON kept (id, code)", "ALTER TABLE kept REPLICA IDENTITY USING INDEX wide"],
            ("code",),
            "has column code in its replica identity, which the WAL shows, and it may not leave the database",
        ),
        (
            ["DROP TABLE kept", "CREATE TABLE kept (id bigint PRIMARY KEY, shown text) PARTITION BY RANGE (id)"],
            None,
            "is partitioned and has columns that may not leave the database, which a publication shows",
        ),
    ],
    ids=["full", "wider than the list", "masked", "partitioned"],
)
def test_a_table_whose_wal_would_show_other_columns_is_refused(
    wal: Source, statements: list[str], masks: tuple[str, ...] | None, complaint: str
) -> None:
    wal.run(TABLE, *statements)
    columns = ("id", "shown", *(masks or ()))
    with pytest.raises(ConfigurationError, match=re.escape(f"table public.kept {complaint}")):
        _attach(wal, columns, masks)
    assert wal.value("SELECT count(*) FROM pg_publication") == 0


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("lists", "identity", "complaint"),
    [
        ("listed => '{id,shown}'", "FULL", "has columns that may not leave the database, and replica identity FULL"),
        ("masks => '{code}'", "FULL", "has columns that may not leave the database, and replica identity FULL"),
        ("listed => '{id,shown}'", "USING INDEX wide", "has column code in its replica identity"),
        ("listed => '{id,shown}'", "NOTHING", "has replica identity NOTHING, which does not cover its key"),
    ],
    ids=["full", "full, masks alone", "wider than the list", "nothing"],
)
def test_a_table_whose_identity_is_altered_while_attach_waits_is_refused(
    wal: Source, lists: LiteralString, identity: LiteralString, complaint: str
) -> None:
    """What was looked at before the lock is as it was before the other session's commit."""
    attach_wal(wal, "users")
    wal.run(TABLE, "CREATE UNIQUE INDEX wide ON kept (id, code)")
    statement: LiteralString = f"SELECT cdc.attach_published('{CAPTURE}', 'kept', {lists})"
    with wal.session() as altering, wal.session() as attaching, ThreadPoolExecutor(1) as executor:
        altering.execute(f"ALTER TABLE kept REPLICA IDENTITY {identity}")
        attached = executor.submit(attaching.execute, statement)
        waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        wait_until(lambda: wal.value(waits, attaching.info.backend_pid), what="attach to wait for the lock")
        altering.commit()
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=f"table public.kept {complaint}"):
            attached.result()
    assert wal.value(IN_PUBLICATION) == 0


@pytest.mark.newest_postgres
def test_a_table_that_comes_from_triggers_keeps_its_list(wal: Source) -> None:
    wal.run(TABLE)
    assert attach(wal.connection, CAPTURE, KEPT, where="test", columns=("id", "shown"))
    wal.run("ALTER TABLE kept REPLICA IDENTITY FULL")
    with pytest.raises(ConfigurationError, match="replica identity FULL, which shows them in the WAL"):
        _attach(wal, None)
    wal.run("ALTER TABLE kept REPLICA IDENTITY DEFAULT")
    _attach(wal, None)
    assert wal.value(LISTED) == ["id"]


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("alter", "listed"),
    [
        (
            [
                "CREATE UNIQUE INDEX wide ON kept (id, code)",
                "ALTER TABLE kept REPLICA IDENTITY USING INDEX wide",
            ],
            ["id", "code"],
        ),
        ([f"ALTER PUBLICATION {PUBLICATION} SET TABLE kept"], ["id"]),
        ([f"ALTER PUBLICATION {PUBLICATION} DROP TABLE kept"], ["id"]),
    ],
    ids=["another identity", "whole rows", "taken out"],
)
def test_a_list_that_does_not_fit_any_more_is_made_anew_and_the_table_read_anew(
    wal: Source, daemon: Daemons, alter: list[str], listed: list[str]
) -> None:
    wal.run(TABLE, "INSERT INTO kept SELECT 'hidden', i, i, 'shown' FROM generate_series(1, 5) i")
    _attach(wal, ("id", "code", "shown"))
    capture = run_wal(daemon)
    wal.wait_exact("kept")
    wal.run(*alter)
    wait_until(lambda: wal.value(LISTED) == listed, what="the new list of columns")
    wait_until(_writes(wal, "UPDATE kept SET shown = 'altered' WHERE id = 1"), what="a writer that is not refused")
    wal.run("UPDATE kept SET id = 102 WHERE id = 2", "DELETE FROM kept WHERE id = 3")
    wal.wait_exact("kept")
    assert len(capture.logged("snapshot_begins")) == 2
    assert "that the capture did not make" not in capture.log_text()


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("identity", "complaint"),
    [
        ("FULL", "and replica identity FULL, which shows them in the WAL"),
        ("NOTHING", "has replica identity NOTHING, which does not cover its key"),
    ],
)
def test_an_identity_that_shows_more_stops_the_capture_not_the_writers(
    wal: Source, daemon: Daemons, identity: str, complaint: str
) -> None:
    """Postgres refuses them while the table is in the publication: it is taken out before the capture stops."""
    wal.run(TABLE, "INSERT INTO kept SELECT 'hidden', i, i, 'shown' FROM generate_series(1, 5) i")
    _attach(wal)
    capture = run_wal(daemon)
    wal.wait_exact("kept")
    wal.run(f"ALTER TABLE kept REPLICA IDENTITY {identity}")
    assert capture.wait(60) == 1
    assert complaint in capture.log_text().splitlines()[-1]
    assert wal.value(IN_PUBLICATION) == 0
    wal.run("UPDATE kept SET shown = 'altered' WHERE id = 1", "DELETE FROM kept WHERE id = 2")
    wal.run("ALTER TABLE kept REPLICA IDENTITY DEFAULT")
    run_wal(daemon)
    wal.wait_exact("kept")
    assert wal.value(LISTED) == ["id"]


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("columns", "masks", "alter", "shown"),
    [
        (None, ("code",), ["ALTER TABLE kept ADD later text NOT NULL DEFAULT 'hidden'"], "later"),
        (None, ("code",), ["ALTER TABLE kept RENAME code TO plain"], "plain"),
        (
            ("id", "shown"),
            None,
            ["ALTER TABLE kept RENAME shown TO other", "ALTER TABLE kept RENAME code TO shown"],
            "shown",
        ),
    ],
    ids=["added later", "masked, renamed", "renamed to a listed one"],
)
@pytest.mark.parametrize("moves", [False, True], ids=["from the WAL", "from triggers to the WAL"])
def test_columns_that_leave_as_they_are_are_known_by_more_than_their_names(
    wal: Source,
    daemon: Daemons,
    columns: tuple[str, ...] | None,
    masks: tuple[str, ...] | None,
    alter: list[str],
    shown: str,
    moves: bool,
) -> None:
    wal.run(TABLE, "INSERT INTO kept SELECT 'hidden', i, i, 'shown' FROM generate_series(1, 5) i")
    show = [
        *alter,
        f"CREATE UNIQUE INDEX wide ON kept (id, {shown})",
        "ALTER TABLE kept REPLICA IDENTITY USING INDEX wide",
    ]
    complaint = f"has column {shown} in its replica identity, which the WAL shows, and it may not leave the database"
    if moves:
        assert attach(wal.connection, CAPTURE, KEPT, where="test", columns=columns, masks=masks)
        wal.run(*show)
        with pytest.raises(ConfigurationError, match=complaint):
            _attach(wal, None)
        return
    _attach(wal, columns, masks)
    capture = run_wal(daemon, MASK_KEY)
    wal.wait_published("kept")
    wal.run(*show)
    assert capture.wait(60) == 1
    assert complaint in capture.log_text().splitlines()[-1]
    assert wal.value(IN_PUBLICATION) == 0


@pytest.mark.newest_postgres
@pytest.mark.parametrize("taken_out", [False, True], ids=["beside it", "in its place"])
def test_a_schema_that_was_added_to_the_publication_stops_the_capture(
    wal: Source, daemon: Daemons, taken_out: bool
) -> None:
    """A list of columns and a whole schema do not go together: Postgres would refuse to add the table again."""
    wal.run(TABLE)
    _attach(wal, None if not taken_out else ("id", "shown"))
    capture = run_wal(daemon)
    wal.wait_exact("kept")
    wal.run(
        *([f"ALTER PUBLICATION {PUBLICATION} DROP TABLE kept"] * taken_out),
        "CREATE SCHEMA another",
        f"ALTER PUBLICATION {PUBLICATION} ADD TABLES IN SCHEMA another",
    )
    assert capture.wait(60) == 1
    assert f"ALTER PUBLICATION {PUBLICATION} DROP TABLES IN SCHEMA another" in capture.log_text().splitlines()[-1]
    wal.run(f"ALTER PUBLICATION {PUBLICATION} DROP TABLES IN SCHEMA another", "INSERT INTO kept VALUES ('', 1, '', '')")
    run_wal(daemon)
    wal.wait_exact("kept")


def _writes(source: Source, statement: str) -> Callable[[], bool]:
    """Return a function that tries a statement, and tells whether Postgres lets its writer go on."""

    def attempt() -> bool:
        try:
            source.run(statement)
        except psycopg.errors.InvalidColumnReference:
            return False
        return True

    return attempt
