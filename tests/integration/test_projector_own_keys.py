"""Keys of several columns and joined rows where people meet them: over HTTP, in `explain`, in `preview`."""

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.changes import Changes, Groups
from projector.errors import DefinitionError
from projector.explaining import explain
from projector.keys import key_text
from projector.preview import preview_view
from projector.writer import Writer
from tests.daemons import daemons_in
from tests.integration.own_views import four_columns, two_rows, two_rows_two_columns
from tests.integration.own_views_steps import VIEWS, OwnView, OwnViews, own_views
from tests.integration.test_api import client_of

pytestmark = pytest.mark.newest_postgres


@pytest.fixture(scope="module")
def filled(postgres: PostgresServer, kafka: KafkaBroker) -> Iterator[OwnViews]:
    """Give all views."""
    with own_views(postgres, kafka) as views:
        yield views


def test_a_resource_has_a_parameter_for_each_column(filled: OwnViews, tmp_path: Path) -> None:
    customer, contract = OwnView(filled, four_columns), OwnView(filled, two_rows_two_columns)
    keys = [customer.key(), customer.key()]
    for key in keys:
        customer.put(key, f"name of {key[1]}")
    of_contract = contract.key()
    contract.put(of_contract, "contract")
    contract.put(of_contract, "a bio", row=1)
    customer.order(customer.order_id(), keys[0], "paid", "1.50")
    filled.catch_up()
    settings = {"VIEWKEEPER_VIEW_URL": filled.url, "VIEWKEEPER_API_PORT": "0", "VIEWKEEPER_VIEWS": VIEWS}
    with (
        daemons_in(tmp_path, {**settings, "VIEWKEEPER_LOG_FORMAT": "json"}) as api,
        client_of(api("api", "run")) as http,
    ):
        for key, orders, spent in ((keys[0], 1, "1.5"), (keys[1], 0, "0")):
            assert http.get(_path(key)).json() == {
                "name": f"name of {key[1]}",
                "orders": orders,
                "spent": spent,
                "number": str(key[3]),
            }
        mixed = http.get(_path((*keys[0][:3], keys[1][3])))
        assert mixed.status_code == 404
        assert mixed.json()["detail"].endswith(f"customerId '{keys[0][2]}', number '{keys[1][3]}'")
        misspelled = http.get(_path((*keys[0][:3], "007")))
        assert misspelled.json()["detail"] == "no number is spelled so: it is a canonical bigint"
        assert _status(http, _path(keys[0]).removesuffix("/summary")) == 404
        assert _status(http, _path(keys[0]).replace("regions", "region")) == 404
        region, number = (quote(str(part), safe="") for part in of_contract)
        assert http.get(f"/contracts/{region}/{number}").json()["bio"] == "a bio"
        assert _status(http, f"/contracts/{region}/") == 404


def _path(key: tuple[int | str, ...]) -> str:
    shop, region, customer, number = (quote(str(part), safe="") for part in key)
    return f"/shops/{shop}/regions/{region}/customers/{customer}/{number}/summary"


def _status(http: httpx.Client, path: str) -> int:
    return http.get(path).status_code


def test_commands_take_a_key_as_a_path_has_it(filled: OwnViews) -> None:
    own = OwnView(filled, four_columns)
    keys = [own.key() for _ in range(3)]
    for key in keys:
        own.put(key, "ann")
        own.order(own.order_id(), key, "paid", "1.50")
        own.order(own.order_id(), key, "open", "9")
    filled.catch_up()
    written = key_text(keys[1])
    assert len(written.split("/")) == 4
    with psycopg.connect(filled.url, autocommit=True) as session:
        found = explain(session, four_columns, written, where="test")
        assert found.is_shown
        assert found.row is not None
        assert found.row["region"] == keys[1][1]
        assert [(one.measure, one.rows, str(one.value), str(one.contributed)) for one in found.measures] == [
            ("orders", 2, "2", "2"),
            ("paid", 1, "1", "1"),
            ("spent", 1, "1.5", "1.5"),
        ]
        with pytest.raises(
            DefinitionError, match=r"'1/x' is no key of .* integer/text/uuid/bigint: write shop_id/region/"
        ):
            explain(session, four_columns, "1/x", where="test")
        with pytest.raises(DefinitionError, match="'x/a/b/1' is no key of view 'four_columns'"):
            explain(session, four_columns, "x/a/b/1", where="test")
    (row,) = preview_view(four_columns, source_url=filled.url, key=written).rows
    assert (row["region"], row["orders"], row["paid"], row["spent"]) == (keys[1][1], 2, 1, 1.5)
    first = preview_view(four_columns, source_url=filled.url).rows
    assert [row["shop_id"] for row in first] == sorted(row["shop_id"] for row in first)
    assert {row["shop_id"] for row in first} >= {key[0] for key in keys}


def test_two_instances_neither_deadlock_nor_lose_increments(filled: OwnViews) -> None:
    """They add to the same keys of two columns in opposite orders, among others of their own: P6."""
    rounds, shared = 20, [(f"area {number % 7}", number) for number in range(200)]
    own = [[("own", number) for number in range(1000, 4000)], [("own", number) for number in range(5000, 5100)]]
    failures: list[BaseException] = []
    (table,) = two_rows_two_columns.counted_tables

    def add(instance: int) -> None:
        writer = Writer(two_rows_two_columns, 1)
        keys = [*shared, *own[1]] if instance else [*own[0], *reversed(shared)]
        try:
            with psycopg.connect(filled.url, autocommit=True) as connection:
                for number in range(rounds):
                    changed: dict[str, Groups | None] = {
                        f"{instance}:{number}:{key}": (*key, *key, Decimal(2)) for key in keys
                    }
                    with connection.transaction(), connection.cursor() as cursor:
                        writer.apply(cursor, Changes(counted={table: changed}))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(instance,)) for instance in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stored = [OwnView(filled, two_rows_two_columns).stored(key) for key in (shared[0], shared[-1])]
    assert [(row["orders"], row["paid"], row["spent"]) for row in stored if row] == [(40, 40, 80)] * 2


def test_what_a_second_row_says_of_the_source_is_checked(filled: OwnViews) -> None:
    own = OwnView(filled, two_rows)
    key = own.key()
    own.put(key, "ann")
    own.put(key, "a bio", row=1)
    (row,) = preview_view(two_rows, source_url=filled.url, key=str(key[0])).rows
    assert (row["name"], row["bio"]) == ("ann", "a bio")
    with psycopg.connect(filled.url, autocommit=True) as source:
        source.execute("ALTER TABLE accounts_more ALTER bio TYPE json USING NULL, ADD number integer DEFAULT 1")
        source.execute("ALTER TABLE accounts_more DROP CONSTRAINT accounts_more_pkey")
        source.execute("ALTER TABLE accounts_more ADD PRIMARY KEY (number, owner_id)")
        with pytest.raises(DefinitionError) as failure:
            preview_view(two_rows, source_url=filled.url)
        assert "public.accounts_more.bio is json, and is declared text" in str(failure.value)
        assert "of public.accounts_more is (owner_id, number), and the view's key is owner_id" in str(failure.value)
        source.execute("ALTER TABLE accounts_more RENAME owner_id TO account_id")
        with pytest.raises(
            DefinitionError, match=r"public\.accounts_more has no column 'owner_id'; it has account_id, bio"
        ):
            preview_view(two_rows, source_url=filled.url)
