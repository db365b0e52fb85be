"""`viewkeeper-cdc reconcile`: what differs between topic and table is found while both change, and repaired."""

import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from cdc.attachment import attach
from cdc.partitions import partition_of
from cdc.source_rows import CHUNK_ROWS
from cdc.wire import TableName
from runtime.settings import CdcSettings
from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import CAPTURE, Source, attach_words_view, headers, insert_tweets
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

STALE, MISSING, GHOST = b'{"tweet_id":1}', b'{"tweet_id":2}', b'{"tweet_id":1000}'
WRONG = b'{"tweet_id":1,"user_id":1,"text":"never was","created_at":null,"updated_at":null}'
FOREIGN = [
    b"",
    b"none",
    b"[1]",
    b'{"tweet_id": 3}',
    b'{"tweet_id":"abc"}',
    b'{"tweet_id":"\\u0000"}',
    b'{"a":1,"b":2}',
    b'{"tweet_id":99999999999999999999}',
]


PARTITIONS = CdcSettings.model_fields["topic_partitions"].default
LARGE_ROWS = 300_000
DIFFERENT_ROWS = 20_000
MOST_MEBIBYTES = 170


class Reconcile:
    """Runs the command."""

    def __init__(self, daemon: Daemons) -> None:
        self._daemon = daemon

    def begin(self, *arguments: str, **settings: str) -> Daemon:
        return self._daemon("cdc", "reconcile", *arguments, settings=settings)

    def json(
        self, *arguments: str, exit_code: int = 0, settings: Mapping[str, str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return what it says of each table; fails with its log for another exit code."""
        command = self.begin("--json", *arguments, **(settings or {}))
        code = command.wait(60)
        assert code == exit_code, command.log_text()
        return {report["table"]: report for report in reports(command)}


def reports(command: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command.log_text().splitlines() if line.startswith('{"table"')]


def counts(report: dict[str, Any]) -> dict[str, int]:
    """Return what is not zero of a table's counts."""
    return {name: count for name, count in report.items() if name not in ("table", "differences") and count}


def keys(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(difference["kind"], difference["key"]) for difference in report["differences"]}


@pytest.fixture
def reconcile(daemon: Daemons) -> Reconcile:
    return Reconcile(daemon)


def put(source: Source, table: str, images: Mapping[bytes, bytes | None], *, beside: bool = False) -> None:
    """Write records into a table's topic as no capture would; `beside` the partitions where their keys belong."""
    producer = Producer({"bootstrap.servers": source.bootstrap_servers, "partitioner": "murmur2_random"})
    for key, value in images.items():
        place = {"partition": (partition_of(key, PARTITIONS) + 1) % PARTITIONS} if beside else {}
        producer.produce(source.topic_name(table), value, key, **place)
        producer.poll(0)
    assert producer.flush(30) == 0


@pytest.fixture
def planted(source: Source, daemon: Daemons) -> Source:
    """Give 300 tweets that are captured, with a stale row, a missing one and a ghost in their topic."""
    source.run(insert_tweets(1, 300))
    source.attach("tweets", "users")
    daemon("cdc", "run")
    source.wait_exact("tweets")
    put(source, "tweets", {STALE: WRONG, MISSING: None, GHOST: WRONG})
    return source


def test_a_dry_run_says_what_differs_and_changes_nothing(planted: Source, reconcile: Reconcile) -> None:
    before = len(planted.topic("tweets").records)
    found = reconcile.json("--dry-run", exit_code=1)
    assert counts(found["public.users"]) == {}
    tweets = found["public.tweets"]
    assert counts(tweets) == {"compared": 301, "equal": 298, "missing": 1, "stale": 1, "ghosts": 1, "left": 3}
    assert keys(tweets) == {("stale", STALE.decode()), ("missing", MISSING.decode()), ("ghost", GHOST.decode())}
    assert not any(difference["repaired"] for difference in tweets["differences"])
    planted.wait_published("tweets")
    assert len(planted.topic("tweets").records) == before


def test_c5_the_running_capture_repairs_what_differs(planted: Source, reconcile: Reconcile) -> None:
    tweets = reconcile.json("tweets")["public.tweets"]
    assert counts(tweets) == {"compared": 301, "equal": 298, "missing": 1, "stale": 1, "ghosts": 1, "repaired": 3}
    assert all(difference["repaired"] for difference in tweets["differences"])
    planted.wait_exact("tweets")
    newest = {record.key(): record for record in planted.topic("tweets").records}
    ops = [headers(newest[key])["__op"] for key in (STALE, MISSING, GHOST)]
    assert ops == [b"u", b"u", b"d"], "they went through the capture, as changes do"
    assert counts(reconcile.json("tweets")["public.tweets"]) == {"compared": 300, "equal": 300}


def test_c5_what_cannot_be_asked_of_the_capture_is_not_published(planted: Source, reconcile: Reconcile) -> None:
    """Two publishers could publish an older image after a newer one."""
    before = planted.topic("tweets").next_offsets
    with planted.session() as holder:
        # The capture reads on, and nobody can log a key.
        holder.execute("LOCK TABLE cdc.log_1_0, cdc.log_1_1 IN SHARE MODE")
        command = reconcile.begin("tweets", "--json")
        assert command.wait(60) == 1
        assert "function cdc.log_keys" in command.log_text()
        planted.wait_published("tweets")
        assert planted.topic("tweets").next_offsets == before


def test_the_text_names_counts_and_the_first_keys(planted: Source, reconcile: Reconcile) -> None:
    put(planted, "tweets", {f'{{"tweet_id":{number}}}'.encode(): None for number in range(101, 151)})
    dry = reconcile.begin("tweets", "--dry-run", COLUMNS="80")
    assert dry.wait(60) == 1
    text = dry.log_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].split() == [
        "table", "compared", "equal", "missing", "stale", "ghosts", "undecided", "repaired",
    ]  # fmt: skip
    assert 'public.tweets, stale:\n  {"tweet_id":1}\n' in text
    assert '{"tweet_id":101}' in text
    assert "and 31 more, which --json lists" in text
    assert text.splitlines()[-1] == "53 keys differ; without --dry-run the capture repairs what it can."
    wet = reconcile.begin("tweets", COLUMNS="80")
    assert wet.wait(60) == 0
    assert '{"tweet_id":1} (repaired)' in wet.log_text()
    assert wet.log_text().splitlines()[-1] == "Nothing differs any more."


def test_a_key_that_is_none_of_the_tables_is_named_and_left(planted: Source, reconcile: Reconcile) -> None:
    put(planted, "tweets", dict.fromkeys(FOREIGN, WRONG))
    tweets = reconcile.json("tweets", exit_code=1)["public.tweets"]
    assert (tweets["repaired"], tweets["foreign"], tweets["left"]) == (3, len(FOREIGN), len(FOREIGN))
    assert {key for kind, key in keys(tweets) if kind == "foreign"} == {key.decode() for key in FOREIGN}
    put(planted, "tweets", dict.fromkeys(FOREIGN))
    assert counts(reconcile.json("tweets")["public.tweets"]) == {"compared": 300, "equal": 300}


def test_records_in_another_partition_than_their_keys_own_are_foreign_and_hide_nothing(
    planted: Source, reconcile: Reconcile
) -> None:
    of_another_row = b'{"tweet_id":3}'
    astray = {MISSING: planted.wire_rows("tweets")[MISSING], of_another_row: WRONG, GHOST: WRONG, b"none": WRONG}
    put(planted, "tweets", astray, beside=True)
    tweets = reconcile.json("tweets", exit_code=1)["public.tweets"]
    assert counts(tweets) == {
        "compared": 305, "equal": 298, "missing": 1, "stale": 1, "ghosts": 1, "foreign": 4, "repaired": 3, "left": 4,
    }  # fmt: skip
    homes = {key: partition_of(key, PARTITIONS) for key in astray}
    assert {key for kind, key in keys(tweets) if kind == "foreign"} == {
        f"{key.decode()} (in partition {(home + 1) % PARTITIONS}, and belongs in {home})" for key, home in homes.items()
    }
    put(planted, "tweets", dict.fromkeys(astray), beside=True)
    assert counts(reconcile.json("tweets")["public.tweets"]) == {"compared": 300, "equal": 300}


def test_keys_of_any_length_belong_where_our_producers_write_them(planted: Source) -> None:
    put(planted, "tweets", {b"\xfe%s" % (b"k" * length): WRONG for length in range(9)})
    places = {bytes(record.key() or b""): record.partition() for record in planted.topic("tweets").records}
    assert len(places) > 300
    assert places == {key: partition_of(key, PARTITIONS) for key in places}


def test_p10_rows_that_change_all_the_time_are_never_a_difference(
    source: Source, daemon: Daemons, reconcile: Reconcile
) -> None:
    source.run(insert_tweets(1, 2_000))
    source.attach("tweets")
    # The topic is behind all the time: most of what was just written is not in it yet.
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_POLL_SECONDS": "0.5"})
    source.wait_published("tweets")
    with changed(source):
        for _ in range(2):
            tweets = reconcile.json("--dry-run")["public.tweets"]
            assert tweets["compared"] >= 2_000
            assert tweets["differences"] == []
        put(source, "tweets", {b'{"tweet_id":1500}': None, GHOST.replace(b"1000", b"0"): WRONG})
        tweets = reconcile.json()["public.tweets"]
        assert keys(tweets) == {("missing", '{"tweet_id":1500}'), ("ghost", '{"tweet_id":0}')}
        assert tweets["repaired"] == 2
    source.wait_exact("tweets")


@contextmanager
def changed(source: Source) -> Iterator[None]:
    """Change some rows again and again, insert others and delete them, while the body runs."""
    over = threading.Event()

    def write() -> None:
        with source.session() as session:
            number = 10_000
            while not over.is_set():
                number += 1
                session.execute("UPDATE tweets SET text = %s WHERE tweet_id <= 10", (str(number),))
                session.execute("UPDATE tweets SET text = %s WHERE tweet_id = %s", (str(number), number % 1000))
                session.execute("INSERT INTO tweets (tweet_id) VALUES (%s)", (number,))
                session.execute("DELETE FROM tweets WHERE tweet_id = %s", (number - 200,))
                session.commit()

    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(write)
        try:
            yield
        finally:
            over.set()
            writing.result()


TYPED = {
    "i": ("integer", "1", "2"),
    "b": ("bigint", "-9223372036854775808", "9007199254740993"),
    "t": ("text", 'Zoë "Z" {1,NULL} %s \\', "NULL"),
    "v": ("character varying(9)", "", "a,b"),
    "u": ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "00000000-0000-0000-0000-000000000000"),
    "n": ("numeric", "1.10", "-Infinity"),
    "y": ("bytea", "\\x00ff10", "\\x"),
    "d": ("date", "0044-03-15 BC", "2026-01-02"),
    "c": ("time", "24:00", "03:04:05.6"),
    "s": ("timestamp", "2026-01-02 03:04:05.6", "infinity"),
    "z": ("timestamptz", "2026-01-02 03:04:05.6+02", "0044-03-15 12:00:00.5+00 BC"),
    "o": ("boolean", "true", "false"),
    "a": ("inet", "10.0.0.1/8", "2001:DB8::1"),
    "e": ("mood", 'so "so"', "sad"),
    "p": ("price", "2.5", "3"),
}
"""Key columns: their types, and their values in two rows."""


def test_c10_keys_of_all_types_come_back_as_they_were(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    columns = ", ".join(f"{name} {type_name}" for name, (type_name, _, _) in TYPED.items())
    marks = ", ".join(["%s"] * len(TYPED))
    source.run(
        """CREATE TYPE mood AS ENUM ('sad', 'so "so"')""",
        "CREATE DOMAIN price AS numeric(12, 2) CHECK (value >= 0)",
        f"CREATE TABLE typed ({columns}, text text, PRIMARY KEY ({', '.join(TYPED)}))",
    )
    for place in (1, 2):
        values = [value[place] for value in TYPED.values()]
        source.connection.execute(f"INSERT INTO typed VALUES ({marks}, 'row')".encode(), values)
    source.attach("typed")
    daemon("cdc", "run")
    source.wait_exact("typed")
    before = source.topic("typed").values
    source.run("DELETE FROM typed WHERE i = 2")
    source.wait_published("typed")
    (living,) = source.topic("typed").values
    (gone,) = before.keys() - {living}
    put(source, "typed", {living: None, gone: before[gone]})
    typed = reconcile.json("typed")["public.typed"]
    assert keys(typed) == {("missing", living.decode()), ("ghost", gone.decode())}
    assert counts(typed) == {"compared": 2, "missing": 1, "ghosts": 1, "repaired": 2}
    source.wait_exact("typed")


def test_c16_rows_that_are_held_back_are_counted_apart(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    too_large = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)"
    source.run(insert_tweets(1, 3), f"INSERT INTO tweets SELECT 4, 1, {too_large}")
    source.attach("tweets")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_ON_OVERSIZE_ROW": "hold_back"})
    source.wait_published("tweets")
    source.run(f"UPDATE tweets SET text = {too_large} WHERE tweet_id = 3")
    source.wait_published("tweets")
    assert counts(reconcile.json()["public.tweets"]) == {"compared": 4, "equal": 2, "held_back": 2}


def test_views_and_partitioned_tables_are_compared(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    source.run(
        "CREATE TABLE parted (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (100)",
        "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (10000)",
        "INSERT INTO parted SELECT generate_series(1, 6000)",
        "CREATE VIEW even AS SELECT id, 'even' AS word FROM parted WHERE id % 2 = 0",
        "SELECT cdc.attach('viewkeeper', 'even', NULL, '{id}')",
    )
    source.attach("parted")
    daemon("cdc", "run")
    source.wait_exact("parted", "even")
    for table in ("parted", "even"):
        put(source, table, {b'{"id":2}': None, b'{"id":20000}': WRONG})
    found = reconcile.json()
    for table in ("parted", "even"):
        assert found[f"public.{table}"]["repaired"] == 2
    source.wait_exact("parted", "even")


@pytest.mark.parametrize("rows", [10, CHUNK_ROWS], ids=["last_of_all", "last_of_a_full_chunk"])
def test_a_row_of_a_view_whose_key_is_null_is_told_of(
    source: Source, daemon: Daemons, reconcile: Reconcile, rows: int
) -> None:
    """No capture is told of it, as long as nobody logs the view's changes."""
    attach_words_view(source)
    daemon("cdc", "run")
    source.wait_published("shown")
    source.run(f"INSERT INTO words SELECT nullif(i, {rows}), 'later' FROM generate_series(3, {rows}) i")
    command = reconcile.begin("shown")
    assert command.wait(60) == 1
    assert "public.shown: a row's key (id) is NULL" in command.log_text()
    assert "WHERE (id) IS NOT NULL" in command.log_text()


def test_without_a_capture_it_says_what_to_do(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    source.attach("tweets")
    command = reconcile.begin()
    assert command.wait() == 1
    assert "capture viewkeeper: none is running, and only a running one tells" in command.log_text()
    assert "run: viewkeeper-cdc run" in command.log_text()
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    capture.kill()
    command = reconcile.begin()
    assert command.wait() == 1
    assert "gives no sign of life" in command.log_text()


def test_a_capture_that_ends_meanwhile_is_waited_for_and_named(
    source: Source, daemon: Daemons, reconcile: Reconcile
) -> None:
    source.run(insert_tweets(1, 10))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    put(source, "tweets", {MISSING: None})
    command = reconcile.begin("--wait-seconds", "2")
    wait_until(lambda: is_executing(source, "SELECT clock_timestamp()"), what="a look at what differs")
    capture.kill()
    assert command.wait(30) == 1
    assert "public.tweets has not been published up to " in command.log_text()
    assert "of its source within 2 s" in command.log_text()
    assert "is viewkeeper-cdc run at work?" in command.log_text()


def is_executing(source: Source, begin: str) -> bool:
    """Return whether the command's last statement in one of its sessions begins so."""
    count = source.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'viewkeeper-cdc reconcile' AND starts_with(query, %s)",
        begin,
    )
    return bool(count)


@contextmanager
def compared_while_locked(
    source: Source, reconcile: Reconcile, *arguments: str, **settings: str
) -> Iterator[tuple[Daemon, psycopg.Connection]]:
    """Begin the command, and hold the table that it wants to read; the lock goes with the session's transaction."""
    with source.session() as holder:
        holder.execute("LOCK TABLE tweets IN ACCESS EXCLUSIVE MODE")
        command = reconcile.begin(*arguments, **settings)
        wait_until(
            lambda: is_executing(
                source, 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE "public"."tweets"'
            ),
            what="the table to be wanted",
        )
        yield command, holder


def test_a_table_that_stays_locked_ends_it(planted: Source, reconcile: Reconcile) -> None:
    with compared_while_locked(planted, reconcile, "tweets", "--wait-seconds", "1") as (command, _holder):
        assert command.wait() == 1
        assert "public.tweets was locked for more than 1 s" in command.log_text()


def test_c2_a_table_that_is_altered_meanwhile_is_no_difference(planted: Source, reconcile: Reconcile) -> None:
    with compared_while_locked(planted, reconcile, "tweets") as (command, holder):
        holder.execute("ALTER TABLE tweets ADD COLUMN mood text DEFAULT 'glad'")
        holder.commit()
        assert command.wait(60) == 1
    assert "public.tweets was altered or attached anew" in command.log_text()
    wait_until(lambda: b"mood" in planted.topic("tweets").values[STALE], what="the table to be read anew")
    planted.wait_exact("users")
    assert counts(reconcile.json("tweets")["public.tweets"]) == {"compared": 300, "equal": 300}


def test_ctrl_c_ends_it_and_leaves_nothing(planted: Source, reconcile: Reconcile, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with compared_while_locked(planted, reconcile, TMPDIR=str(folder)) as (command, _holder):
        command.signal(signal.SIGINT)
        assert command.wait() == 130
    assert "not compared to the end" in command.log_text()
    assert "Traceback" not in command.log_text()
    assert list(folder.iterdir()) == []


def test_a_table_that_is_being_read_is_refused(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    source.run(insert_tweets(1, 60_000))
    source.attach("tweets", "users")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "20"})

    def is_read() -> bool:
        entry = source.entry("tweets")
        return entry is not None and entry.reading is not None

    wait_until(is_read, what="a snapshot under way")
    command = reconcile.begin()
    assert command.wait() == 1
    assert "public.tweets has no watermark, so that nothing tells how far its topic reflects it" in command.log_text()
    assert "its snapshot is being read" in command.log_text()


def test_a_table_that_is_not_attached_is_named(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    daemon("cdc", "run")
    wait_until(lambda: source.value("SELECT count(*) FROM cdc.capture WHERE beat > 1"), what="a leader")
    command = reconcile.begin()
    assert command.wait() == 2
    assert "no table is attached to capture viewkeeper; run: viewkeeper-cdc attach TABLE" in command.log_text()
    source.attach("tweets")
    source.wait_published("tweets")
    command = reconcile.begin("tweets", "likes")
    assert command.wait() == 2
    assert "public.likes is not attached to capture viewkeeper; run: viewkeeper-cdc attach public.likes" in (
        command.log_text()
    )


def test_a_large_topic_takes_little_memory_and_a_file_without_a_name(
    source: Source, daemon: Daemons, reconcile: Reconcile, tmp_path: Path
) -> None:
    source.run(
        "CREATE TABLE notes (name text PRIMARY KEY, text text)",
        f"INSERT INTO notes SELECT repeat(md5(i::text), 8), repeat('x', 500) FROM generate_series(1, {LARGE_ROWS}) i",
    )
    source.attach("notes")
    daemon("cdc", "run")
    source.wait_published("notes", timeout_seconds=120)
    names = source.connection.execute("SELECT name FROM notes LIMIT %s", [DIFFERENT_ROWS])
    put(source, "notes", {json.dumps({"name": name}, separators=(",", ":")).encode(): None for (name,) in names})
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = reconcile.begin("--json", TMPDIR=str(folder))
    peak_mebibytes = largest_file = 0.0

    def is_over() -> bool:
        nonlocal peak_mebibytes, largest_file
        with suppress(OSError):
            peak_mebibytes = max(peak_mebibytes, _peak_mebibytes(command))
            largest_file = max(largest_file, _unnamed_bytes(command, folder))
        assert list(folder.iterdir()) == []
        return not command.is_running()

    wait_until(is_over, timeout_seconds=120, what="the end")
    assert command.wait() == 0
    (report,) = reports(command)
    assert (report["compared"], report["missing"], report["repaired"]) == (LARGE_ROWS, DIFFERENT_ROWS, DIFFERENT_ROWS)
    assert len(report["differences"]) == DIFFERENT_ROWS
    assert largest_file > LARGE_ROWS * 256
    assert 0 < peak_mebibytes < MOST_MEBIBYTES


def _peak_mebibytes(command: Daemon) -> float:
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{command.pid}/status").read_text())
    return int(peak[1]) / 1024 if peak else 0


def _unnamed_bytes(command: Daemon, folder: Path) -> int:
    """Return the size of the files that it has open and that have no name any more."""
    files = Path(f"/proc/{command.pid}/fd").iterdir()
    return sum(file.stat().st_size for file in files if str(file.readlink()).startswith(str(folder)))


def test_masked_columns_are_compared_under_the_same_key(source: Source, daemon: Daemons, reconcile: Reconcile) -> None:
    key = {"VIEWKEEPER_CDC_MASK_KEY": "a secret of some length"}
    source.run("INSERT INTO users (user_id, username, location) VALUES (1, 'ann', 'here')")
    users = TableName("public", "users")
    attach(source.connection, CAPTURE, users, where="test", columns=("user_id", "username"), masks=("username",))
    daemon("cdc", "run", settings=key)
    source.wait_published("users")
    assert counts(reconcile.json("--dry-run", settings=key)["public.users"]) == {"compared": 1, "equal": 1}
    refused = reconcile.begin("users")
    assert refused.wait(60) == 2
    assert "VIEWKEEPER_CDC_MASK_KEY is not set, and public.users has masked columns" in refused.log_text()
    wrong = reconcile.begin("users", VIEWKEEPER_CDC_MASK_KEY="another secret of some length")
    assert wrong.wait(60) == 1
    assert "VIEWKEEPER_CDC_MASK_KEY is not what viewkeeper-cdc run has: set it as it is there" in wrong.log_text()


def test_topics_in_avro_are_compared_as_they_are_written(
    source: Source, daemon: Daemons, reconcile: Reconcile, avro: dict[str, str]
) -> None:
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    capture = daemon("cdc", "run", settings=avro)
    source.wait_published("tweets")
    source.run("DELETE FROM tweets WHERE tweet_id = 300")
    source.wait_published("tweets")
    values = source.topic("tweets").values
    first, second, *_ = values
    put(source, "tweets", {first: values[second], second: None, b'{"tweet_id":3}': WRONG, b"\0\0\0\0\1": WRONG})
    tweets = reconcile.json("tweets", exit_code=1, settings=avro)["public.tweets"]
    assert counts(tweets) == {
        "compared": 301,
        "equal": 297,
        "missing": 1,
        "stale": 1,
        "foreign": 2,
        "repaired": 2,
        "left": 2,
    }
    assert all(json.loads(key)["tweet_id"] for kind, key in keys(tweets) if kind != "foreign")
    assert source.topic("tweets").values.items() >= values.items()
    refused = reconcile.begin("tweets")
    assert refused.wait(60) == 2
    assert "is written with VIEWKEEPER_ENCODING=avro: set that here, too" in refused.log_text()
    source.run("TRUNCATE tweets")
    source.wait_published("tweets")
    assert set(source.topic("tweets").values) == {b'{"tweet_id":3}', b"\0\0\0\0\1"}, "a sweep goes over what is foreign"
    assert capture.logged("foreign_keys")[0]["keys"] == 2
