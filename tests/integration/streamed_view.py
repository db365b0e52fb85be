"""A view database whose user_information has a topic of its own, and APIs that stream it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from alembic import command
from alembic.config import Config

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.tables import SCHEMA, view_table_name
from tests.daemons import ROOT, Daemon, Daemons, daemons_in
from tests.integration.test_projector_views import database
from tests.topics import own_topics
from tests.waiting import wait_until
from views.user_information import user_information

TABLE = f"{SCHEMA}.{view_table_name(user_information, 1)}"
NAME = "public.user_information"
AS_OF = "2026-11-22T19:40:43.399031Z"
# So seldom that no stream hears of a change by its heartbeat.
RARELY = {"VIEWKEEPER_API_HEARTBEAT_SECONDS": "120"}


@dataclass(frozen=True)
class StreamedView:
    """A view database, and daemons that have its settings."""

    url: str
    prefix: str
    daemons: Daemons

    def run(self, *statements: str) -> None:
        """Execute statements, all in one transaction."""
        with psycopg.connect(self.url) as session:
            for statement in statements:
                session.execute(statement.encode())

    def value(self, query: str) -> str:
        """Return the one text that a query selects."""
        with psycopg.connect(self.url) as session:
            row = session.execute(query.encode()).fetchone()
        assert row is not None
        return str(row[0])

    def change(self, statement: str, *user_ids: int) -> None:
        """Change rows and log their keys, in one transaction."""
        self.run(statement, log_users(*user_ids))

    def insert(self, user_id: int, **values: object) -> None:
        """Insert a user whose key nobody logs."""
        row = {"user_id": user_id, "viewkeeper_present": True, **values}
        marks = ", ".join(["%s"] * len(row))
        with psycopg.connect(self.url) as session:
            session.execute(f"INSERT INTO {TABLE} ({', '.join(row)}) VALUES ({marks})".encode(), list(row.values()))

    @contextmanager
    def api(self, settings: Mapping[str, str] = RARELY) -> Iterator["Api"]:
        """Run an API that is ready."""
        daemon = self.daemons("api", "run", settings=settings)
        port = daemon.wait_logged("api_listening")["port"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200, what="the API to be ready")
            try:
                yield Api(daemon, client, int(port))
            finally:
                if daemon.is_running():
                    daemon.kill()


@dataclass(frozen=True)
class Api:
    """An API and a client of it."""

    daemon: Daemon
    client: httpx.Client
    port: int

    def metric(self, name: str) -> float:
        """Return a metric's value, 0 while it has none."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def wait_metric(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        wait_until(lambda: self.metric(name) == value, what=f"{name} to be {value:g}")


def log_users(*user_ids: int) -> str:
    """Return the statement that logs the keys of rows that the transaction changes."""
    return f"SELECT cdc.log_changes('{NAME}', '{{{','.join(map(str, user_ids))}}}')"


def set_count(user_id: int, count: int) -> str:
    return f"UPDATE {TABLE} SET like_count = {count} WHERE user_id = {user_id}"


@contextmanager
def view_database(postgres: PostgresServer) -> Iterator[str]:
    """Give a view database that has what a capture needs, too; it knows an as-of."""
    with database(postgres) as url, pytest.MonkeyPatch.context() as environment:
        for section in ("view", "source"):
            environment.setenv(f"VIEWKEEPER_{section.upper()}_URL", url)
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
        with psycopg.connect(url) as session:
            session.execute("UPDATE projector.as_of SET as_of = %s", (AS_OF,))
        yield url


ATTACH = f"SELECT cdc.attach('view', '{NAME}', NULL, '{{user_id}}')"


@contextmanager
def streamed_view(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    prepare: Sequence[str] = (ATTACH,),
) -> Iterator[StreamedView]:
    """Run a capture of what `prepare` attaches until the end; daemons have further `settings`."""
    with view_database(postgres) as url, own_topics(kafka) as prefix:
        ours = {
            "VIEWKEEPER_SOURCE_URL": url,
            "VIEWKEEPER_VIEW_URL": url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": prefix,
            "VIEWKEEPER_LOG_FORMAT": "json",
            "VIEWKEEPER_CDC_NAME": "view",
            "VIEWKEEPER_CDC_HEALTH_PORT": "0",
            "VIEWKEEPER_API_PORT": "0",
        }
        with daemons_in(folder, {**ours, **(settings or {})}) as daemons:
            view = StreamedView(url, prefix, daemons)
            view.run(*prepare)
            capture = daemons("cdc", "run")
            wait_until(lambda: is_ready(capture), what="the capture to be ready")
            yield view


def is_ready(daemon: Daemon) -> bool:
    """Return whether a daemon says so."""
    return httpx.get(f"http://127.0.0.1:{daemon.health_port}/readyz").status_code == 200
