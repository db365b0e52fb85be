"""Views over topics in Avro: what SQL over the source says, as with JSON, and what stops them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from compose.local.postgres import PostgresServer
from compose.local.process import free_port
from compose.local.registry import registry as run_registry
from projector.audit import audit_view
from projector.loading import load_views
from tests.daemons import ROOT, Daemons
from tests.integration.captured_source import Source
from tests.integration.test_projector_views import ONE, SHOP, STRANGE, TWO, database
from views.user_information import user_information

USERS = """
INSERT INTO users (user_id, username, name, joined_date)
SELECT i, 'ann' || i, 'Zoë "\\' || chr(128512), timestamptz '2008-01-22 15:14:44.123456+00' + i * interval '1 day'
FROM generate_series(1, 50) i
"""
ODD_USERS = """
INSERT INTO users (user_id, joined_date)
VALUES (-1, 'infinity'), (0, '-infinity'), (51, '0044-03-15 BC'), (52, '12026-01-01'),
       (9223372036854775807, '0001-01-01 00:00:00.5+00 BC')
"""
ROWS = (
    USERS,
    ODD_USERS,
    "INSERT INTO tweets SELECT i, i % 60, 'tweet ' || i, now() FROM generate_series(1, 500) i",
    "INSERT INTO follows SELECT i, i % 50, i % 7 FROM generate_series(1, 300) i",
    "INSERT INTO likes SELECT i, nullif(i % 50, 3), i FROM generate_series(1, 300) i",
)
CHANGES = (
    "UPDATE users SET name = NULL, joined_date = 'infinity' WHERE user_id % 5 = 1",
    "DELETE FROM users WHERE user_id IN (2, 51)",
    "UPDATE tweets SET user_id = user_id + 1 WHERE tweet_id % 3 = 0",
    "DELETE FROM follows WHERE follow_id % 2 = 0",
    "TRUNCATE likes",
)
SHOP_TABLES = """
CREATE TABLE products (id uuid PRIMARY KEY, price numeric(22, 2), sold_out boolean, pieces integer,
                       added_at timestamptz);
CREATE TABLE customers (email text PRIMARY KEY, "order" text);
CREATE TABLE orders (part smallint, order_id numeric, product_id uuid, customer_email text,
                     PRIMARY KEY (order_id, part));
"""


@pytest.fixture
def source(source: Source) -> Source:
    """Give the source with the demo's tables attached, and rows in them."""
    source.attach("users", "tweets", "follows", "likes")
    source.run(*ROWS)
    return source


def assert_exact(source_url: str, view_url: str) -> None:
    result = audit_view(user_information, source_url=source_url, view_url=view_url, wait_seconds=60)
    assert (result.differing_rows, result.undecided_rows) == (0, 0), result
    assert result.compared_rows > 0


def test_the_view_is_what_sql_says_while_rows_and_columns_change(
    source: Source, view_url: str, daemon: Daemons, avro: dict[str, str]
) -> None:
    daemon("cdc", "run", settings=avro)
    projector = daemon("projector", "run", settings=avro)
    assert_exact(source.url, view_url)
    source.run("ALTER TABLE users ADD COLUMN note text DEFAULT 'new'", "ALTER TABLE tweets DROP COLUMN text", *CHANGES)
    assert_exact(source.url, view_url)
    assert projector.terminate() == 0
    source.run("DELETE FROM tweets WHERE tweet_id % 5 = 0", "UPDATE users SET username = 'bob' WHERE user_id < 9")
    daemon("projector", "run", settings=avro)
    assert_exact(source.url, view_url)


@pytest.fixture
def shop(
    postgres: PostgresServer, source_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mapping[str, str]]:
    """Give the settings of views by uuid and text, of tables with other types and with a key of two columns."""
    path = tmp_path / "shop.py"
    path.write_text(SHOP)
    with psycopg.connect(source_url, autocommit=True) as session, database(postgres) as view_url:
        session.execute(SHOP_TABLES)
        settings = {"VIEWKEEPER_VIEW_URL": view_url, "VIEWKEEPER_VIEWS": str(path)}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="view"), "head")
        yield settings


def test_keys_of_all_kinds_and_decimals_give_the_same_view(
    shop: Mapping[str, str], source_url: str, daemon: Daemons, avro: dict[str, str]
) -> None:
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute("SELECT cdc.attach('viewkeeper', t) FROM unnest('{products,customers,orders}'::regclass[]) t")
        session.execute(
            "INSERT INTO products VALUES (%s, 12345678901234567890.10, false, -1, '-infinity'), "
            "(%s, -0.05, NULL, NULL, NULL)",
            [ONE, TWO],
        )
        session.execute("INSERT INTO customers VALUES (%s, 'first'), ('', NULL)", [STRANGE])
        session.execute(
            "INSERT INTO orders VALUES (1, 1.10, %s, %s), (2, 1.1, %s, %s), (1, 'NaN', %s, '')",
            [ONE, STRANGE, ONE, STRANGE, TWO],
        )
        daemon("cdc", "run", settings=avro)
        daemon("projector", "run", settings={**avro, **shop})
        views = load_views(shop["VIEWKEEPER_VIEWS"])
        for _ in range(2):
            for view in views:
                result = audit_view(view, source_url=source_url, view_url=shop["VIEWKEEPER_VIEW_URL"], wait_seconds=60)
                assert result.line() == f"{view.name}: 2 rows compared, 0 differ"
            session.execute("UPDATE orders SET order_id = 1.100, product_id = %s WHERE part = 2", [TWO])
            session.execute("DELETE FROM orders WHERE order_id = 'NaN'")


def test_a_registry_that_is_away_is_waited_for(source: Source, view_url: str, daemon: Daemons, tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "VIEWKEEPER_ENCODING": "avro",
        "VIEWKEEPER_SCHEMA_REGISTRY_URL": f"http://127.0.0.1:{port}/apis/ccompat/v7",
    }
    with run_registry(tmp_path / "registry", port=port):
        daemon("cdc", "run", settings=settings)
        source.wait_published("users", "tweets", "follows", "likes", timeout_seconds=60)
    projector = daemon("projector", "run", settings=settings)
    assert "Schema Registry http://127.0.0.1" in projector.wait_logged("retrying")["reason"]
    with run_registry(tmp_path / "registry", port=port):
        assert_exact(source.url, view_url)
    assert projector.is_running()


@pytest.mark.parametrize("written", ["json", "avro"])
def test_another_encoding_than_the_captures_stops_it_with_advice(
    source: Source, daemon: Daemons, avro: dict[str, str], written: str
) -> None:
    daemon("cdc", "run", settings={**avro, "VIEWKEEPER_ENCODING": written})
    source.wait_published("users", "tweets")
    other = {"json": "avro", "avro": "json"}[written]
    projector = daemon("projector", "run", settings={**avro, "VIEWKEEPER_ENCODING": other})
    assert projector.wait(60) == 1
    assert "does only the capture write to this topic, with the same VIEWKEEPER_ENCODING?" in projector.log_text()


def test_a_schema_that_its_registry_does_not_know_stops_it_and_names_the_record(
    source: Source, daemon: Daemons, avro: dict[str, str], tmp_path: Path
) -> None:
    daemon("cdc", "run", settings=avro)
    source.wait_published("users", "tweets")
    with run_registry(tmp_path / "empty") as empty:
        projector = daemon("projector", "run", settings={**avro, "VIEWKEEPER_SCHEMA_REGISTRY_URL": empty.url})
        assert projector.wait(60) == 1
    assert f"Schema Registry {empty.url} does not know its schema" in projector.log_text()
    assert f"topic {source.prefix}.public." in projector.log_text()
