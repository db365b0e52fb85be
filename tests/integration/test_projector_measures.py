"""Filtered counts and sums: the view is what SQL over the source gives, whatever arrives in whatever order."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.audit import audit_view
from projector.errors import BadRecord, DefinitionError
from projector.explaining import explain
from projector.preview import preview_view
from tests.daemons import ROOT, standard_output
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps, projector_settings, projector_steps
from tests.integration.test_projector_views import database
from views.shop import customer_information

pytestmark = pytest.mark.newest_postgres

SOURCE = """
CREATE TABLE customers (customer_id bigint PRIMARY KEY, name text);
CREATE TABLE orders (order_id bigint PRIMARY KEY, customer_id bigint, status text, price numeric, quantity integer);
"""
KEYS = {"customers": "customer_id", "orders": "order_id"}
SHOWN = "SELECT customer_id, order_count, open_order_count, spent::text FROM customer_information ORDER BY 1"


@pytest.fixture
def shop_url(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of one database that is source and view database of the shop."""
    with database(postgres) as url:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        monkeypatch.setenv("VIEWKEEPER_VIEWS", "views.shop")
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="view"), "head")
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(SOURCE.encode())
        yield url


@pytest.fixture
def shop(kafka: KafkaBroker, topic_prefix: str) -> Changelog:
    changelog = Changelog(kafka.bootstrap_servers, topic_prefix, KEYS, partitions=2)
    changelog.create()
    return changelog


@pytest.fixture
def steps(kafka: KafkaBroker, topic_prefix: str, shop_url: str, shop: Changelog) -> Iterator[Steps]:  # noqa: ARG001 - topics first
    settings = projector_settings(
        {
            "VIEWKEEPER_VIEW_URL": shop_url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
            "VIEWKEEPER_VIEWS": "views.shop",
        }
    )
    with projector_steps(settings, views=[customer_information]) as steps:
        yield steps


def order(
    number: int, customer: int | None, status: str | None, price: str | None, quantity: int | None
) -> dict[str, Any]:
    return {"order_id": number, "customer_id": customer, "status": status, "price": price, "quantity": quantity}


def _shown(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as session:
        return session.execute(SHOWN).fetchall()


def test_a_row_counts_and_adds_as_long_as_the_filter_is_true(steps: Steps, shop: Changelog, shop_url: str) -> None:
    with shop.transaction():
        for customer in (1, 2):
            shop.put("customers", {"customer_id": customer, "name": None})
        shop.put("orders", order(1, 1, "paid", "1.50", 2))
        shop.put("orders", order(2, 1, "open", "10", 1))
        shop.put("orders", order(3, 1, None, "10", 1))
        shop.put("orders", order(4, 2, "paid", None, 1))
        shop.put("orders", order(5, None, "paid", "7", 1))
    steps.catch_up()
    assert _shown(shop_url) == [(1, 3, 1, "3"), (2, 1, 0, "0")]
    with shop.transaction():
        shop.put("orders", order(1, 2, "paid", "1.505", 2))
        shop.put("orders", order(2, 1, "paid", "-10", 1))
        shop.put("orders", order(3, 1, "open", "99", 9))
    steps.catch_up()
    assert _shown(shop_url) == [(1, 2, 1, "-10"), (2, 2, 0, "3.01")]
    with shop.transaction():
        shop.put("orders", order(1, 2, "void", "1.505", 2))
        shop.remove("orders", 2)
    steps.catch_up()
    assert _shown(shop_url) == [(1, 1, 1, "0"), (2, 2, 1, "0")]


def test_the_first_amounts_of_a_sum_leave_no_zeros_at_its_end(steps: Steps, shop: Changelog, shop_url: str) -> None:
    with shop.transaction():
        shop.put("customers", {"customer_id": 1, "name": None})
        for number in (1, 2):
            shop.put("orders", order(number, 1, "paid", "0.50", 1))
    steps.catch_up()
    assert _shown(shop_url) == [(1, 2, 0, "1")]


def test_a_sum_refuses_what_cannot_be_taken_back(steps: Steps, shop: Changelog, shop_url: str) -> None:
    with shop.transaction():
        shop.put("orders", order(1, 1, "open", "NaN", 1))
    steps.catch_up()
    with shop.transaction():
        shop.put("orders", order(2, 1, "paid", "Infinity", 1))
    with pytest.raises(BadRecord, match=r"spent\.amount is Infinity, which cannot be taken back from a sum"):
        steps.catch_up()
    assert _shown(shop_url) == []


def test_an_amount_that_is_refused_is_left_out_of_its_sum(
    shop: Changelog, shop_url: str, kafka: KafkaBroker, topic_prefix: str
) -> None:
    settings = {
        "VIEWKEEPER_VIEW_URL": shop_url,
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
        "VIEWKEEPER_PROJECTOR_ON_BAD_RECORD": "dead_letter",
    }
    with projector_steps(projector_settings(settings), views=[customer_information]) as steps:
        with shop.transaction():
            shop.put("customers", {"customer_id": 1, "name": None})
            shop.put("orders", order(1, 1, "paid", "5", 1))
            # Not finite, more than Postgres holds, no exact product; the last but one has no exact sum with the second.
            for number, price in ((1, "Infinity"), (2, "1e200000"), (3, "1e999999")):
                shop.put("orders", order(number, 1, "paid", price, 20))
            shop.put("orders", order(4, 1, "paid", "1e-50000", 1))
            shop.put("orders", order(5, 1, "paid", "0.5", 3))
        steps.catch_up()
        assert _shown(shop_url) == [(1, 2, 0, "6.5")]
        with psycopg.connect(shop_url) as session:
            reasons = [reason for (reason,) in session.execute("SELECT reason FROM projector.dead_letter ORDER BY key")]
        parts = ("spent.amount is Infinity", "overflow", "no exact result", "")
        assert [part in reason for part, reason in zip(parts, reasons, strict=True)] == [True] * 4, reasons


def test_any_history_in_any_batches_gives_what_sql_gives(steps: Steps, shop: Changelog, shop_url: str) -> None:
    random = Random(6)  # noqa: S311 - no secret
    with psycopg.connect(shop_url, autocommit=True) as source:
        for _ in range(12):
            with shop.transaction():
                for _ in range(random.randint(1, 40)):
                    _change(random, source, shop)
            steps.catch_up(max_records=random.randint(1, 30))
        with shop.transaction():
            shop.watermark(datetime(2999, 1, 1, tzinfo=UTC))
        steps.catch_up()
        customers = source.execute("SELECT count(*) FROM customers").fetchone()
        result = audit_view(customer_information, source_url=shop_url, view_url=shop_url, wait_seconds=1)
        assert customers is not None
        assert result.line() == f"customer_information: {customers[0]} rows compared, 0 differ"
        source.execute("UPDATE orders SET price = price + 0.01 WHERE status = 'paid'")
        assert audit_view(customer_information, source_url=shop_url, view_url=shop_url).differing_fields.keys() == {
            "spent"
        }


def test_padded_columns_are_what_they_are_in_their_topics(steps: Steps, shop: Changelog, shop_url: str) -> None:
    with psycopg.connect(shop_url, autocommit=True) as source:
        source.execute("ALTER TABLE customers ALTER name TYPE character(8)")
        source.execute("ALTER TABLE orders ALTER status TYPE character(8), ALTER price TYPE text")
        source.execute("INSERT INTO customers VALUES (1, 'ann'), (2, NULL)")
        source.execute("INSERT INTO orders VALUES (1, 1, 'paid', '5', 1), (2, 2, NULL, '5', 1)")
        with shop.transaction():
            for table in ("customers", "orders"):
                for (row,) in source.execute(f"SELECT row_to_json(t) FROM {table} t".encode()):
                    shop.put(table, row)
            shop.watermark(datetime(2999, 1, 1, tzinfo=UTC))
        steps.catch_up()
        source.execute("ALTER TABLE orders ALTER price TYPE numeric USING price::numeric")
        result = audit_view(customer_information, source_url=shop_url, view_url=shop_url, wait_seconds=1)
        assert result.line() == "customer_information: 2 rows compared, 0 differ"
    (previewed,) = preview_view(customer_information, source_url=shop_url, key="1").rows
    assert (previewed["name"], previewed["open_order_count"], previewed["spent"]) == ("ann     ", 1, 0)
    assert _shown(shop_url)[0] == (1, 1, 1, "0")


def _change(random: Random, source: psycopg.Connection, shop: Changelog) -> None:
    """Change a row of the source, and put what a capture would publish of it."""
    number = random.randint(1, 30)
    if random.random() < 0.3:
        row: dict[str, Any] = {"customer_id": random.randint(1, 6), "name": random.choice(["ann", None])}
        table = "customers"
    else:
        price = random.choice([None, "0.10", "19.99", "-5", "100000000000000000000.5"])
        status = random.choice([None, "open", "paid", "paid"])
        row = order(number, random.choice([None, 1, 2, 3, 4, 5, 6]), status, price, random.choice([None, 1, 3]))
        table = "orders"
    key = KEYS[table]
    source.execute(f"DELETE FROM {table} WHERE {key} = %s".encode(), [row[key]])
    if random.random() < 0.2:
        shop.remove(table, row[key])
        return
    values = ", ".join(f"%({name})s" for name in row)
    source.execute(f"INSERT INTO {table} VALUES ({values})".encode(), row)
    shop.put(table, row)


def test_a_row_is_explained_by_what_it_is_made_of(steps: Steps, shop: Changelog, shop_url: str) -> None:
    with shop.transaction():
        shop.put("customers", {"customer_id": 1, "name": "ann"})
        for number in range(1, 11):
            shop.put("orders", order(number, 1, "paid" if number % 2 else "open", "1.10", 1))
        shop.put("orders", order(99, 2, "open", "5", 1))
    steps.catch_up()
    settings = {"VIEWKEEPER_VIEW_URL": shop_url, "VIEWKEEPER_VIEWS": "views.shop"}
    found = json.loads(standard_output(settings, "projector", "explain", "customer_information", "1", "--json"))
    assert found["row"]["spent"] == "5.5"
    by_name = {one["measure"]: one for one in found["measures"]}
    assert [by_name[name]["rows"] for name in ("order_count", "open_order_count", "spent")] == [10, 5, 5]
    assert all(one["value"] == one["contributed"] for one in found["measures"])
    assert by_name["open_order_count"]["first"] == ['{"order_id":10}', '{"order_id":2}', '{"order_id":4}']
    assert by_name["spent"]["topic"] == shop.topic("orders")
    text = standard_output(settings, "projector", "explain", "customer_information", "2")
    assert "whose source row was not seen" in text
    with psycopg.connect(shop_url, autocommit=True) as session:
        session.execute("UPDATE projector.customer_information_v1 SET order_count = 7 WHERE customer_id = 1")
        found_wrong = explain(session, customer_information, "1", where="test")
        assert found_wrong.disagreeing == ("order_count",)
        with pytest.raises(DefinitionError, match="'x' is no key of view 'customer_information', which has bigint"):
            explain(session, customer_information, "x", where="test")
