"""`viewkeeper-projector preview`: a view's rows from the source, and what of its declaration is not true there."""

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.daemons import ROOT, standard_output

pytestmark = pytest.mark.newest_postgres

VIEW = "customer_information"
SOURCE = """
CREATE TABLE customers (customer_id integer PRIMARY KEY, name text);
CREATE TABLE orders (order_id bigint PRIMARY KEY, customer_id bigint, status text, price numeric, quantity smallint);
INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 15) i;
INSERT INTO orders VALUES (1, 2, 'paid', 1.50, 2), (2, 2, 'open', 5, 1), (3, 2, 'paid', 0.25, 4), (4, 99, 'paid', 1, 1);
"""


@pytest.fixture
def shop(source_url: str) -> dict[str, str]:
    """Give the settings of a source that has the shop's tables."""
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute(SOURCE.encode())
    return {"VIEWKEEPER_SOURCE_URL": source_url, "VIEWKEEPER_VIEWS": "views.shop"}


def _refusal(settings: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "projector.cli", "preview", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    return done.stderr


def test_it_shows_rows_and_the_sql_that_computes_them(shop: dict[str, str]) -> None:
    document = json.loads(standard_output(shop, "projector", "preview", VIEW, "2", "--json"))
    assert document["rows"] == [
        {"customer_id": 2, "name": "customer 2", "order_count": 3, "open_order_count": 1, "spent": 4}
    ]
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"]) as session:
        rows = session.execute(document["sql"].encode()).fetchall()
        assert [json.loads(row) for _, row in rows] == document["rows"]
    document = json.loads(standard_output(shop, "projector", "preview", VIEW, "--json"))
    assert [row["customer_id"] for row in document["rows"]] == list(range(1, 11))
    shown = standard_output(shop, "projector", "preview", VIEW, "2")
    assert "GROUP BY 1" in shown
    assert "customer 2  3" in shown
    assert "has no such row" in standard_output(shop, "projector", "preview", VIEW, "99")


def test_a_percent_sign_in_a_constant_is_one(shop: dict[str, str], tmp_path: Path) -> None:
    declared = (ROOT / "views" / "shop.py").read_text()
    path = tmp_path / "shop.py"
    path.write_text(declared.replace("status <> 'paid'", "status IN ('100%', '100%%', '%s')"))
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("UPDATE orders SET status = '100%' WHERE order_id = 1")
    settings = {**shop, "VIEWKEEPER_VIEWS": str(path)}
    document = json.loads(standard_output(settings, "projector", "preview", VIEW, "2", "--json"))
    assert document["rows"][0]["open_order_count"] == 1
    assert "('100%'::text" in document["sql"]


def test_numbers_have_all_their_digits(shop: dict[str, str]) -> None:
    spent = "100000000000000000000.0000001"
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("INSERT INTO orders VALUES (5, 3, 'paid', %s, 1), (6, 4, 'paid', 0.0000001, 1)", [spent])
    assert f'"spent":{spent}}}' in standard_output(shop, "projector", "preview", VIEW, "3", "--json")
    text = standard_output({**shop, "COLUMNS": "200"}, "projector", "preview", VIEW)
    assert f" {spent} " in text
    assert " 0.0000001 " in text


def test_a_value_that_a_terminal_would_obey_is_shown(shop: dict[str, str]) -> None:
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("UPDATE customers SET name = E'\\x1b[31mred' WHERE customer_id = 3")
    assert " \\x1b[31mred " in standard_output(shop, "projector", "preview", VIEW, "3")


def test_what_is_not_true_of_the_source_is_said_at_once(shop: dict[str, str]) -> None:
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("ALTER TABLE orders ALTER price TYPE float8")
        session.execute("ALTER TABLE orders RENAME status TO state")
        session.execute("ALTER TABLE customers DROP CONSTRAINT customers_pkey, ADD PRIMARY KEY (customer_id, name)")
    refusal = _refusal(shop, VIEW)
    assert "public.orders has no column 'status'; it has customer_id, order_id, price, quantity, state" in refusal
    assert "public.orders.price is double precision, and is declared numeric" in refusal
    assert "the primary key of public.customers is (customer_id, name), and the view's key is customer_id" in refusal
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("DROP TABLE orders")
    assert "there is no table public.orders that this role may see" in _refusal(shop, VIEW)


def test_a_view_or_a_key_that_is_none_is_named(shop: dict[str, str]) -> None:
    assert "there is no view 'nothing'; declared are customer_information" in _refusal(shop, "nothing")
    assert "'abc' is no key of view 'customer_information', which has bigint" in _refusal(shop, VIEW, "abc")


def test_another_key_of_a_table_will_do_as_it_does_for_attach(shop: dict[str, str]) -> None:
    with psycopg.connect(shop["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("ALTER TABLE customers DROP CONSTRAINT customers_pkey, ADD number serial PRIMARY KEY")
        session.execute("CREATE UNIQUE INDEX ON customers (customer_id) WHERE name <> ''")
        assert "the primary key of public.customers is (number)" in _refusal(shop, VIEW)
        session.execute("CREATE UNIQUE INDEX ON customers (customer_id) INCLUDE (name)")
    document = json.loads(standard_output(shop, "projector", "preview", VIEW, "2", "--json"))
    assert document["rows"][0]["name"] == "customer 2"
