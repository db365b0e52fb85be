"""The views of `own_views`, kept by hand: each change goes to the source, and to its topic as by a capture."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from uuid import UUID

import psycopg
import pytest
from alembic import command
from psycopg import sql

from cdc.wire import TableName
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.changes import Key, KeyValue
from projector.definition import ColumnType, Row, View
from projector.loading import load_views
from projector.tables import SCHEMA, view_table_name
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps, projector_settings, projector_steps
from tests.integration.test_projector_views import alembic_config, database
from tests.topics import own_topics

VIEWS = "tests.integration.own_views"
Parts = tuple[KeyValue, ...]
_numbers = count(1)


class OwnViews:
    """One database, source of all views and theirs, the topics, and a projector that takes a step when told to."""

    def __init__(self, steps: Steps, changelog: Changelog, url: str) -> None:
        self.steps = steps
        self.changelog = changelog
        self.url = url

    def catch_up(self, max_records: int = 10_000) -> None:
        """Let the views reflect all that was put."""
        self.steps.catch_up(max_records)

    def replay(self) -> None:
        """Let the projector read all topics from their beginning again, in small batches."""
        with psycopg.connect(self.url) as session:
            session.execute("UPDATE projector.partition_offset SET next_offset = 0")
        self.steps.consumer.rewind()
        self.catch_up(max_records=7)


class OwnView:
    """One of the views. Its keys are made by number."""

    def __init__(self, own: OwnViews, view: View) -> None:
        self.own = own
        self.view = view
        (self.orders,) = view.counted_tables

    def key(self) -> Parts:
        """Return a key that no other test has."""
        number = next(_numbers)
        made: dict[ColumnType, KeyValue] = {
            ColumnType.BIGINT: 2**40 + number,
            ColumnType.INTEGER: -number,
            ColumnType.TEXT: f'Zoë {number}/"\\{{,}}%',
            ColumnType.UUID: str(UUID(int=2**127 + number)),
        }
        return tuple(made[column.type] for column in self.view.key_columns)

    def order_id(self) -> int:
        """Return a number that no other order has."""
        return next(_numbers)

    def put(self, key: Parts, text: str | None, *, row: int = 0) -> None:
        """Put a source row of a key; its name, or the text that the second row adds."""
        of = self.view.rows[row]
        self._put(TableName.parse(of.of), self._row_key(of, key), {"name" if row == 0 else "bio": text})

    def remove(self, key: Parts, *, row: int = 0) -> None:
        """Remove it."""
        of = self.view.rows[row]
        self._remove(TableName.parse(of.of), self._row_key(of, key))

    def order(self, order_id: int, key: tuple[KeyValue | None, ...], status: str | None, amount: str | None) -> None:
        """Put a row that is counted."""
        groups = dict(zip(self.view.measures[0].group_columns, key, strict=True))
        self._put(self.orders, {"order_id": order_id}, {**groups, "status": status, "amount": amount})

    def no_order(self, order_id: int) -> None:
        """Remove it."""
        self._remove(self.orders, {"order_id": order_id})

    def shown(self, key: Parts) -> tuple[object, ...] | None:
        """Return what readers see of a key: name, orders, paid, spent, and with two rows the second one's text."""
        columns = ["name", "orders", "paid", "spent", *(["bio"] if len(self.view.rows) > 1 else [])]
        found = self._select(sql.Identifier(self.view.name), key)
        return tuple(str(found[name]) if name == "spent" else found[name] for name in columns) if found else None

    def stored(self, key: Parts) -> dict[str, Any] | None:
        """Return what there is of a key, shown or not."""
        return self._select(sql.Identifier(SCHEMA, view_table_name(self.view, 1)), key)

    def _row_key(self, row: Row, key: Parts) -> dict[str, KeyValue]:
        return {column.name: value for column, value in zip(self.view.key_of_row(row), key, strict=True)}

    def _put(self, table: TableName, key: dict[str, Any], values: dict[str, Any]) -> None:
        row = {**key, **values}
        self._delete(table, key)
        with psycopg.connect(self.own.url) as source:
            source.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(table.name),
                    sql.SQL(", ").join(map(sql.Identifier, row)),
                    sql.SQL(", ").join(sql.Placeholder() * len(row)),
                ),
                list(row.values()),
            )
        with self.own.changelog.transaction():
            self.own.changelog.put(table.name, row)

    def _remove(self, table: TableName, key: dict[str, Any]) -> None:
        self._delete(table, key)
        with self.own.changelog.transaction():
            self.own.changelog.remove(table.name, *key.values())

    def _delete(self, table: TableName, key: dict[str, Any]) -> None:
        with psycopg.connect(self.own.url) as source:
            statement = sql.SQL("DELETE FROM {} WHERE {}").format(sql.Identifier(table.name), _is(tuple(key)))
            source.execute(statement, list(key.values()))

    def _select(self, relation: sql.Identifier, key: Parts) -> dict[str, Any] | None:
        with psycopg.connect(self.own.url, row_factory=psycopg.rows.dict_row) as session:
            statement = sql.SQL("SELECT * FROM {} WHERE {}").format(relation, _is(self.view.key_names))
            return session.execute(statement, key).fetchone()


def as_key(parts: Parts) -> Key:
    """Return a key as the projector has it."""
    return parts if len(parts) > 1 else parts[0]


@contextmanager
def own_views(postgres: PostgresServer, kafka: KafkaBroker) -> Iterator[OwnViews]:
    """Make the views' source tables, their topics and the views; the as-of lies ahead, as if a capture went on."""
    views = load_views(VIEWS)
    with database(postgres) as url, own_topics(kafka) as prefix:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("VIEWKEEPER_VIEW_URL", url)
            environment.setenv("VIEWKEEPER_VIEWS", VIEWS)
            command.upgrade(alembic_config(), "head")
        keys = {name: key for view in views for name, key in _make_tables(url, view)}
        changelog = Changelog(kafka.bootstrap_servers, prefix, keys, partitions=1)
        changelog.create()
        settings = {
            "VIEWKEEPER_VIEW_URL": url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": prefix,
            "VIEWKEEPER_VIEWS": VIEWS,
        }
        with psycopg.connect(url) as session:
            session.execute("UPDATE projector.as_of SET as_of = now() + interval '1 day'")
        with projector_steps(projector_settings(settings), views=views) as steps:
            yield OwnViews(steps, changelog, url)


def _make_tables(url: str, view: View) -> list[tuple[str, tuple[str, ...]]]:
    """Make a view's source tables; return their names and keys."""
    made = []
    with psycopg.connect(url) as source:
        for table, row in zip(view.row_tables, view.rows, strict=True):
            key = view.key_of_row(row)
            columns = [f"{column.name} {column.type}" for column in (*key, *view.value_columns(row))]
            names = tuple(column.name for column in key)
            columns.append(f"PRIMARY KEY ({', '.join(names)})")
            source.execute(f"CREATE TABLE {table.name} ({', '.join(columns)})".encode())
            made.append((table.name, names))
        for table in view.counted_tables:
            columns = [f"{name} {kind}" for name, kind in view.columns_of(table).items()]
            source.execute(f"CREATE TABLE {table.name} (order_id bigint PRIMARY KEY, {', '.join(columns)})".encode())
            made.append((table.name, ("order_id",)))
    return made


def _is(names: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in names)
