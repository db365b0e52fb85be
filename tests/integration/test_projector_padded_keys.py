"""A column character(n) that counts for a text key: right where its values fill it, and refused where they do not."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from alembic import command

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.audit import audit_view
from projector.definition import Column, ColumnType, Count, Resource, Row, View
from projector.errors import DefinitionError
from projector.preview import preview_view
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import projector_settings, projector_steps
from tests.integration.test_projector_views import alembic_config, database

pytestmark = pytest.mark.newest_postgres

SOURCE = """
CREATE TABLE countries (code text PRIMARY KEY);
CREATE TABLE cities (id bigint PRIMARY KEY, country character(2));
INSERT INTO countries VALUES ('US'), ('X');
INSERT INTO cities VALUES (1, 'US'), (2, NULL);
"""
SHORT = "public.cities.country is character(2) and has shorter values"

country = View(
    name="country",
    key="code",
    row=Row("public.countries", (Column("code", ColumnType.TEXT),)),
    measures=(Count("cities", of="public.cities", by="country"),),
    resource=Resource("/countries/{code}", ()),
)


@pytest.fixture
def url(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of one database that is source and view database."""
    with database(postgres) as url:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        monkeypatch.setenv("VIEWKEEPER_VIEWS", __file__)
        command.upgrade(alembic_config(), "head")
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(SOURCE.encode())
        yield url


def test_values_that_fill_the_column_count_and_shorter_ones_are_refused_where_the_source_is_seen(
    kafka: KafkaBroker, topic_prefix: str, url: str
) -> None:
    changelog = Changelog(kafka.bootstrap_servers, topic_prefix, {"countries": "code", "cities": "id"}, partitions=1)
    changelog.create()
    settings = projector_settings(
        {
            "VIEWKEEPER_VIEW_URL": url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
            "VIEWKEEPER_VIEWS": __file__,
        }
    )
    with psycopg.connect(url, autocommit=True) as source, projector_steps(settings, views=[country]) as steps:

        def counted() -> list[tuple[str, int]]:
            """Publish all rows as they are on the wire, and return what the view makes of them."""
            with changelog.transaction():
                for table in ("countries", "cities"):
                    for (row,) in source.execute(f"SELECT row_to_json(t) FROM {table} t".encode()):
                        changelog.put(table, row)
                changelog.watermark(datetime(2999, 1, 1, tzinfo=UTC))
            steps.catch_up()
            return source.execute("SELECT code, cities FROM country ORDER BY 1").fetchall()

        assert counted() == [("US", 1), ("X", 0)]
        result = audit_view(country, source_url=url, view_url=url, wait_seconds=1)
        assert result.line() == "country: 2 rows compared, 0 differ"
        assert [row["cities"] for row in preview_view(country, source_url=url).rows] == [1, 0]
        source.execute("INSERT INTO cities VALUES (3, 'X')")
        assert counted() == [("US", 1), ("X", 0)], "its padding is part of it"
        for refused in (
            lambda: audit_view(country, source_url=url, view_url=url, wait_seconds=1),
            lambda: preview_view(country, source_url=url),
        ):
            with pytest.raises(DefinitionError) as failure:
                refused()
            assert SHORT in str(failure.value)
        # Padded alike on both sides they are equal again.
        source.execute("ALTER TABLE countries ALTER code TYPE character(2)")
        assert ("X ", 1) in counted()
        assert preview_view(country, source_url=url).rows
