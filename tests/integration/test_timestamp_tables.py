"""Tables that are polled: keys of every kind, partitions, and one that triggers or the WAL captured before."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.sources import polled_options
from cdc.tables import SourceKind
from cdc.timestamp_tables import polled_table
from compose.local.kafka import KafkaBroker
from runtime.errors import ConfigurationError
from tests.daemons import Daemons
from tests.integration.captured_source import Source
from tests.integration.polled_source import BOTH, NO_LOOK_BACK, TIMESTAMP, PolledSource
from tests.integration.wal_steps import SLOTS
from tests.topics import delete_topic
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres


def test_keys_of_every_kind_are_found_looked_up_and_swept(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN felt AS mood",
        'CREATE TABLE odd (u uuid, n numeric, f felt, b bytea, "p%" text, d timestamptz, text text, '
        'updated_at timestamp, PRIMARY KEY (u, n, f, b, "p%", d)) PARTITION BY HASH (u)',
        "CREATE TABLE odd_0 PARTITION OF odd FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE odd_1 PARTITION OF odd FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO odd SELECT md5(i::text)::uuid, i * 1.10, 'ok', '\\x00ff'::bytea, 'a \"%', "
        "'2026-01-01 00:00:00.1+05', 'first', '2026-01-01' FROM generate_series(1, 9) i",
    )
    # A look back at rows of the same time would find the row that is to be lost.
    settings = {**polled.tables(odd=TIMESTAMP), **NO_LOOK_BACK, "VIEWKEEPER_CDC_CHUNK_ROWS": "2"}
    daemon("cdc", "run", settings={**settings, "VIEWKEEPER_CDC_SWEEP_SECONDS": "1"})
    polled.wait_published("odd")
    polled.run(
        "UPDATE odd SET text = 'second', updated_at = '2026-01-02' WHERE n > 2",
        "UPDATE odd SET text = 'lost' WHERE n = 1.1",
        "DELETE FROM odd WHERE n = 2.2",
    )
    wait_until(lambda: _texts(polled) == {"first": 1, "second": 7}, what="the changed rows, and one less")
    assert daemon("cdc", "reconcile", settings=settings).wait(60) == 0
    assert _texts(polled) == {"lost": 1, "second": 7}


def test_its_file_of_tables_is_read_at_the_start(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TABLE ones (id bigint PRIMARY KEY, text text, updated_at timestamptz DEFAULT now())",
        "CREATE TABLE others (id bigint PRIMARY KEY, text text, updated_at timestamptz DEFAULT now())",
    )
    run = daemon("cdc", "run", settings=polled.tables(ones=TIMESTAMP))
    polled.wait_published("ones")
    more = polled.tables(ones=TIMESTAMP, others=TIMESTAMP)
    polled.run("INSERT INTO others VALUES (1, 'first')", "INSERT INTO ones VALUES (1, 'first')")
    polled.wait_published("ones")
    polled.wait_text("ones", 1, "first")
    Path(more["VIEWKEEPER_CDC_TABLES"]).write_text("half a fi")
    # It looks at what is there each second.
    polled.wait_published("ones")
    polled.run("INSERT INTO ones VALUES (2, 'second')")
    polled.wait_published("ones")
    polled.wait_text("ones", 2, "second")
    assert run.terminate() == 0
    daemon("cdc", "run", settings=polled.tables(ones=TIMESTAMP, others=TIMESTAMP))
    polled.wait_text("others", 1, "first")


def _texts(polled: PolledSource) -> dict[str, int]:
    texts = [json.loads(value)["text"] for value in polled.topic("odd").values.values()]
    return {text: texts.count(text) for text in set(texts)}


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ("CREATE TABLE child () INHERITS (odd)", "takes part in inheritance"),
        ("CREATE TABLE parent (id bigint NOT NULL); ALTER TABLE odd INHERIT parent", "takes part in inheritance"),
        ("ALTER TABLE odd SET UNLOGGED", "odd is unlogged or temporary"),
        (
            """
            DROP TABLE odd;
            CREATE TABLE odd (id bigint PRIMARY KEY, updated_at timestamptz) PARTITION BY LIST (id);
            CREATE UNLOGGED TABLE one PARTITION OF odd FOR VALUES IN (1)
            """,
            "public.one is unlogged or temporary",
        ),
    ],
    ids=["parent", "child", "unlogged", "unlogged partition"],
)
def test_a_table_whose_rows_have_no_common_key_or_do_not_last_is_refused(
    polled: PolledSource, made: str, complaint: str
) -> None:
    polled.run("CREATE TABLE odd (id bigint PRIMARY KEY, updated_at timestamptz)")
    (options,) = polled_options(polled.tables(odd=TIMESTAMP)["VIEWKEEPER_CDC_TABLES"])
    polled_table(polled.connection, options, where="test")
    polled.run(made)
    with pytest.raises(ConfigurationError, match=complaint):
        polled_table(polled.connection, options, where="test")


@pytest.mark.parametrize(
    ("altered", "complaint"),
    [
        ("CREATE TABLE child () INHERITS (items); INSERT INTO child VALUES (1, 'twice', now())", "inheritance"),
        ("ALTER TABLE items SET UNLOGGED", "unlogged"),
    ],
    ids=["parent", "unlogged"],
)
def test_the_capture_stops_at_a_table_that_becomes_so(
    polled: PolledSource, daemon: Daemons, altered: str, complaint: str
) -> None:
    capture = daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    polled.run(altered)
    assert capture.wait() == 2
    assert complaint in capture.log_text().splitlines()[-1]
    assert polled.rows("items")["1"]["text"] == "first"


@pytest.mark.parametrize(
    ("altered", "column", "value"),
    [
        ("ALTER TABLE odd ALTER COLUMN twice SET EXPRESSION AS (id * 3)", "twice", 3),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "mood", "blue"),
        ("ALTER TYPE place RENAME ATTRIBUTE city TO town", "place", {"town": "Ulm"}),
    ],
    ids=["virtual", "label", "attribute"],
)
def test_values_that_change_without_a_write_are_read_anew(
    polled: PolledSource, daemon: Daemons, altered: str, column: str, value: object
) -> None:
    """No row is rewritten, no timestamp moves, and no column has another type."""
    polled.run(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE TYPE place AS (city text)",
        "CREATE TABLE odd (id bigint PRIMARY KEY, mood mood, place place, updated_at timestamptz, "
        "twice bigint GENERATED ALWAYS AS (id * 2) VIRTUAL)",
        "INSERT INTO odd VALUES (1, 'sad', ROW('Ulm'), now())",
    )
    daemon("cdc", "run", settings={**polled.tables(odd=TIMESTAMP), **NO_LOOK_BACK})
    polled.wait_published("odd")
    polled.run(altered)
    wait_until(lambda: polled.rows("odd")["1"][column] == value, what=f"another value in column {column}")


@pytest.mark.parametrize(
    "swapped",
    [
        "ALTER TABLE items RENAME TO old; ALTER TABLE other RENAME TO items",
        "ALTER TABLE items SET SCHEMA aside; ALTER TABLE other RENAME TO items",
    ],
    ids=["renamed", "moved"],
)
def test_no_row_of_another_table_that_has_its_name_now_is_published(
    polled: PolledSource, daemon: Daemons, swapped: str
) -> None:
    """The catalog is read each second, polls come more often, and they read whatever table has the name."""
    polled.run(
        "CREATE SCHEMA aside",
        "CREATE TABLE other (LIKE items INCLUDING ALL)",
        "INSERT INTO other SELECT i, 'other', now() FROM generate_series(1, 20) i",
    )
    capture = daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    polled.run(f"BEGIN; {swapped}; COMMIT")
    assert capture.wait() == 1
    assert "the cursor knows nothing of this attachment of public.items" in capture.log_text()
    assert {row["text"] for row in polled.rows("items").values()} == {"first"}


def test_a_name_of_no_table_is_a_wrong_setting_and_a_table_that_was_dropped_is_none(
    polled: PolledSource, daemon: Daemons
) -> None:
    refused = daemon("cdc", "run", settings=polled.tables(itmes=TIMESTAMP))
    assert refused.wait() == 2
    assert "there is no table or view public.itmes" in refused.log_text()
    settings = polled.tables(items=TIMESTAMP)
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("DROP TABLE items")
    assert capture.wait() == 1
    assert daemon("cdc", "run", settings=settings).wait() == 1


def test_what_to_do_about_another_key_or_a_second_capture_is_said_in_words_of_polled_tables(
    polled: PolledSource, daemon: Daemons
) -> None:
    settings = polled.tables(items=TIMESTAMP)
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    second = daemon("cdc", "run", settings={**settings, "VIEWKEEPER_CDC_NAME": "second"})
    assert second.wait(30) == 1
    assert "or take it out of VIEWKEEPER_CDC_TABLES of one that polls" in second.log_text()
    assert capture.terminate() == 0
    polled.run("UPDATE items SET text = id::text", "ALTER TABLE items ADD UNIQUE (text), ALTER text SET NOT NULL")
    settings = polled.tables(items=f'{TIMESTAMP}\nkey = ["text"]')
    refused = daemon("cdc", "run", settings=settings)
    assert refused.wait(30) == 1
    complaint = refused.log_text().splitlines()[-1]
    topic = polled.topic_name("items")
    assert "(id integer): undo that; or delete topic" in complaint
    assert "tach" not in complaint
    delete_topic(polled.bootstrap_servers, topic)
    assert daemon("cdc", "snapshot", "items", settings=settings).wait() == 0
    daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    assert polled.rows("items").keys() == {f'"{number}"' for number in range(1, 11)}


def test_rows_that_are_wider_than_a_page_are_read_in_smaller_ones(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=BOTH))
    polled.wait_published("items")
    polled.run("INSERT INTO items SELECT i, repeat('wide ', 100000), now() FROM generate_series(11, 60) i")
    polled.wait_keys("items", *range(1, 61))
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")


@pytest.fixture
def movable(wal: Source, kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[PolledSource]:
    """Give a source with a table of ten rows that can be polled, and attached as well."""
    source = PolledSource(wal.url, kafka, topic_prefix, tmp_path)
    with closing(source.connection):
        source.run(
            "CREATE TABLE items (id bigint PRIMARY KEY, text text, updated_at timestamptz)",
            "INSERT INTO items SELECT i, 'first', now() FROM generate_series(1, 10) i",
        )
        yield source


@pytest.mark.parametrize("to_polls", [True, False], ids=["to-polls", "from-polls"])
@pytest.mark.parametrize("kind", [SourceKind.TRIGGERS, SourceKind.WAL])
def test_a_table_that_comes_from_polls_or_goes_there_is_read_anew_when_that_is_asked_for(
    movable: PolledSource, daemon: Daemons, kind: SourceKind, *, to_polls: bool
) -> None:
    attached, polling = {"VIEWKEEPER_CDC_SOURCE": str(kind)}, movable.tables(items=TIMESTAMP)
    before, after = (attached, polling) if to_polls else (polling, attached)
    if to_polls:
        assert daemon("cdc", "attach", "items", settings=attached).wait() == 0
    capture = daemon("cdc", "run", settings=before)
    movable.wait_published("items")
    assert capture.terminate() == 0
    if not to_polls:
        assert daemon("cdc", "attach", "items", settings=attached).wait() == 0
    movable.run("UPDATE items SET text = 'between' WHERE id = 1", "DELETE FROM items WHERE id = 2")
    refused = daemon("cdc", "run", settings=after)
    assert refused.wait() == 1
    assert "run: viewkeeper-cdc snapshot public.items" in refused.log_text()
    assert daemon("cdc", "snapshot", "items", settings=after).wait() == 0
    if to_polls:
        still = f"run: VIEWKEEPER_CDC_SOURCE={kind} viewkeeper-cdc detach public.items"
        assert refused.logged("still_attached")[0]["reason"].endswith(still)
        shown = daemon("cdc", "status", settings=after)
        assert shown.wait() == 1
        assert still in " ".join(shown.log_text().split())
        assert daemon("cdc", "detach", "items", settings=attached).wait() == 0
        assert movable.value(f"SELECT count(*) {SLOTS}") == 0, "a slot for nobody keeps the server's WAL"
    daemon("cdc", "run", settings=after)
    movable.wait_keys("items", 1, *range(3, 11))
    movable.run("UPDATE items SET text = 'after', updated_at = now() WHERE id = 3")
    movable.wait_text("items", 3, "after")
    movable.wait_published("items")
    movable.assert_topic_equals_table("items", "id")
