"""Streams of a view whose key has columns of all types, told of changes by a topic in each encoding."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from tests.event_stream import event_stream
from tests.integration.streamed_view import streamed_view

REGION = 'a/b "é" \\'
CUSTOMER = "0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6"
TABLE = """
CREATE TABLE four_columns (
    shop_id integer, region text, customer_id uuid, number bigint, name text,
    orders bigint NOT NULL DEFAULT 0, paid bigint NOT NULL DEFAULT 0, spent numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (shop_id, region, customer_id, number)
)
"""
ATTACH = "SELECT cdc.attach('view', 'four_columns', 'statement')"


@pytest.fixture(params=["json", "avro"])
def encoding(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Give the settings of an encoding."""
    settings: Mapping[str, str] = request.getfixturevalue("avro") if request.param == "avro" else {}
    return settings


def test_a_key_of_several_columns_is_found_in_the_topic(
    postgres: PostgresServer, kafka: KafkaBroker, encoding: Mapping[str, str], tmp_path: Path
) -> None:
    views = tmp_path / "one_view.py"
    views.write_text("from tests.integration.own_views import four_columns\n")
    settings = {**encoding, "VIEWKEEPER_VIEWS": str(views)}
    path = f"/shops/-7/regions/{quote(REGION, safe='')}/customers/{CUSTOMER}/{2**63 - 1}/summary"
    with streamed_view(postgres, kafka, tmp_path, settings, prepare=(TABLE, ATTACH)) as view:
        view.run(f"INSERT INTO four_columns VALUES (-7, '{REGION}', '{CUSTOMER}', {2**63 - 1}, 'first')")
        with view.api() as api, event_stream(api.port, path) as stream:
            assert stream.next_of("row").json["name"] == "first"
            view.run("UPDATE four_columns SET name = 'second'")
            assert stream.next_of("row").json["name"] == "second"
            view.run("DELETE FROM four_columns")
            assert stream.next_of("row", "gone").name == "gone"
