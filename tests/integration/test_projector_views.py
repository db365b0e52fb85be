"""Other views than the shipped one: other key types, several at once, and the migration that makes their tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg import sql

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.audit import audit_view
from projector.daemon import group_name
from projector.errors import Refused
from projector.loading import load_views
from projector.registry import database_id
from tests.daemons import ROOT
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import projector_settings, projector_steps
from views.user_information import user_information

SHOP = """
from projector.definition import Column, ColumnType, Count, Resource, Row, View

product = View(
    name="product",
    key="id",
    schema="shop",
    row=Row(
        "public.products",
        (
            Column("price", ColumnType.NUMERIC),
            Column("id", ColumnType.UUID),
            Column("sold_out", ColumnType.BOOLEAN),
            Column("pieces", ColumnType.INTEGER),
            Column("added_at", ColumnType.TIMESTAMPTZ),
        ),
    ),
    measures=(Count("order_count", of="public.orders", by="product_id"),),
    resource=Resource("/products/{id}", ()),
)
customer = View(
    name="customer",
    key="email",
    row=Row("public.customers", (Column("email", ColumnType.TEXT), Column("order", ColumnType.TEXT))),
    measures=(Count("order_count", of="public.orders", by="customer_email"),),
    resource=Resource("/customers/{email}", ()),
)
"""
SOURCE = """
CREATE TABLE products (id uuid PRIMARY KEY, price numeric, sold_out boolean, pieces integer, added_at timestamptz);
CREATE TABLE customers (email text PRIMARY KEY, "order" text);
CREATE TABLE orders (order_id bigint PRIMARY KEY, product_id uuid, customer_email text);
"""
KEYS = {"products": "id", "customers": "email", "orders": "order_id"}
ONE, TWO = UUID("0190163d-8694-739b-aea5-966c26f8ad91"), UUID("ff90163d-8694-739b-aea5-966c26f8ad91")
STRANGE = 'Zoë "\\" {a,b} NULL \U0001f600@example.org'


@contextmanager
def database(postgres: PostgresServer) -> Iterator[str]:
    name = f"own_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield postgres.url(name)
        finally:
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def shop_file(tmp_path: Path) -> str:
    path = tmp_path / "shop.py"
    path.write_text(SHOP)
    return str(path)


@pytest.fixture
def shop_url(postgres: PostgresServer, shop_file: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of one database that is source and view database of the shop."""
    with database(postgres) as url:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        monkeypatch.setenv("VIEWKEEPER_VIEWS", shop_file)
        command.upgrade(alembic_config(), "head")
        yield url


def alembic_config() -> Config:
    return Config(ROOT / "alembic.ini", ini_section="view")


def relations(url: str) -> set[str]:
    with psycopg.connect(url) as session:
        rows = session.execute(
            "SELECT relnamespace::regnamespace || '.' || relname FROM pg_class "
            "WHERE relkind IN ('r', 'v') AND relnamespace::regnamespace::text IN ('projector', 'public', 'shop')"
        )
        return {name for (name,) in rows}


def test_migration_makes_each_declared_view_and_takes_it_back(shop_url: str) -> None:
    made = relations(shop_url)
    assert made == {
        "projector.alembic_version",
        "projector.as_of",
        "projector.database_id",
        "projector.dead_letter",
        "projector.customer_v1",
        "projector.customer_v1_public_orders",
        "projector.partition_offset",
        "projector.product_v1",
        "projector.product_v1_public_orders",
        "projector.stable_view",
        "projector.view_version",
        "public.customer",
        "public.viewkeeper_as_of",
        "shop.product",
    }
    command.upgrade(alembic_config(), "head")
    assert relations(shop_url) == made
    command.downgrade(alembic_config(), "base")
    assert relations(shop_url) == {"projector.alembic_version"}
    command.upgrade(alembic_config(), "head")
    assert relations(shop_url) == made


@pytest.mark.parametrize("taken", ["VIEW customer AS SELECT 'a' AS email, 'b' AS \"order\"", "TABLE customer ()"])
def test_what_has_the_name_of_a_new_view_is_left_alone(
    taken: str, postgres: PostgresServer, shop_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(postgres) as url:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        monkeypatch.setenv("VIEWKEEPER_VIEWS", shop_file)
        with psycopg.connect(url) as session:
            session.execute(f"CREATE {taken}".encode())
        with pytest.raises(Refused, match=r'"public"\."customer" is there already, and is not view \'customer\''):
            command.upgrade(alembic_config(), "head")
        assert relations(url) == {"public.customer"}


def test_views_of_one_process_share_topics_and_count_by_uuid_and_text(
    kafka: KafkaBroker, topic_prefix: str, shop_url: str, shop_file: str
) -> None:
    changelog = Changelog(kafka.bootstrap_servers, topic_prefix, KEYS, partitions=2)
    changelog.create()
    views = load_views(shop_file)
    settings = projector_settings(
        {
            "VIEWKEEPER_VIEW_URL": shop_url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
            "VIEWKEEPER_VIEWS": shop_file,
        }
    )
    product = {"id": str(ONE), "price": "12345678901234567890.10", "sold_out": False, "pieces": -1}
    with changelog.transaction():
        changelog.put("products", {**product, "added_at": "-infinity"})
        changelog.put("products", {**dict.fromkeys(product), "id": str(TWO), "added_at": None})
        changelog.put("customers", {"email": STRANGE, "order": "first"})
        for number in range(3):
            changelog.put("orders", {"order_id": number, "product_id": str(ONE), "customer_email": STRANGE})
    with projector_steps(settings, views=views) as steps:
        steps.catch_up()
        with changelog.transaction():
            changelog.put("orders", {"order_id": 1, "product_id": str(TWO), "customer_email": "nobody"})
            changelog.remove("orders", 2)
            changelog.watermark(datetime(2999, 1, 1, tzinfo=UTC))
        steps.catch_up()
    with psycopg.connect(shop_url, autocommit=True) as session:
        products = session.execute("SELECT price, id, sold_out, pieces, added_at::text, order_count FROM shop.product")
        assert sorted(products, key=str) == [
            (Decimal("12345678901234567890.10"), ONE, False, -1, "-infinity", 1),
            (None, TWO, None, None, None, 1),
        ]
        customers = session.execute("SELECT * FROM customer").fetchall()
        assert customers == [(STRANGE, "first", 1)]
        assert session.execute("SELECT view FROM viewkeeper_as_of WHERE as_of > now() ORDER BY 1").fetchall() == [
            ("customer",),
            ("product",),
        ]
        session.execute(SOURCE.encode())
        session.execute(
            "INSERT INTO products VALUES (%s, 12345678901234567890.10, false, -1, '-infinity'), "
            "(%s, NULL, NULL, NULL, NULL)",
            [ONE, TWO],
        )
        session.execute("INSERT INTO customers VALUES (%s, 'first')", [STRANGE])
        session.execute("INSERT INTO orders VALUES (0, %s, %s), (1, %s, 'nobody')", [ONE, STRANGE, TWO])
        for view, rows in zip(views, (2, 1), strict=True):
            result = audit_view(view, source_url=shop_url, view_url=shop_url, wait_seconds=1)
            assert result.line() == f"{view.name}: {rows} rows compared, 0 differ"
        session.execute("UPDATE orders SET product_id = %s", [TWO])
        session.execute("INSERT INTO customers VALUES ('Ä', NULL), ('a', NULL), ('Z', NULL)")
        differing = [audit_view(view, source_url=shop_url, view_url=shop_url) for view in views]
        assert [dict(result.differing_fields) for result in differing] == [{"order_count": 2}, {"(missing)": 3}]


def test_each_view_database_has_a_group_of_its_own(view_url: str, settings_env: dict[str, str]) -> None:
    """Also where another server has one of the same name."""
    groups = []
    for _ in range(2):
        with psycopg.connect(view_url) as session:
            groups.append(group_name(projector_settings(settings_env), [user_information], database_id(session)))
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("VIEWKEEPER_VIEW_URL", view_url)
            view = Config(ROOT / "alembic.ini", ini_section="view")
            command.downgrade(view, "base")
            command.upgrade(view, "head")
    assert groups[0] != groups[1]
