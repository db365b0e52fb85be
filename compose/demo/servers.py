"""The servers that the demo uses: embedded ones, or those that the settings name, with databases of its own."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from pydantic import Field

from compose.local.kafka import launched
from compose.local.postgres import postgres
from runtime.postgres import connect, describe, translated
from runtime.settings import Accepts, PostgresUrl, Settings, read_settings

SOURCE_DATABASE = "viewkeeper_demo_source"
VIEW_DATABASE = "viewkeeper_demo_view"
TOPIC_PREFIX = "viewkeeper_demo"
MARK = "Made by the Viewkeeper demo"
"""The comment on each database of ours; one without it was made by someone else and is never dropped."""

# Left at their defaults, so that a setting meant for another capture or view cannot lead the demo astray.
_DEFAULTS = ("CDC_TABLES", "VIEWS", "PROJECTOR_GROUP", "HEALTH_HOST", "API_HOST", "LOG_LEVEL", "ENCODING")

AnyPostgresUrl = Annotated[PostgresUrl | None, Accepts("a Postgres URL such as postgresql://user@host:5432/postgres")]


class OwnServers(Settings):
    """Servers of yours for the demo; embedded ones take the place of those that are not set."""

    source_url: AnyPostgresUrl = Field(None, description="any database of the source's server", repr=False)
    view_url: AnyPostgresUrl = Field(None, description="any database of the view's server", repr=False)
    kafka_bootstrap_servers: str | None = Field(None, description="Kafka brokers, host:port[,host:port…]")

    @property
    def postgres_urls(self) -> tuple[str, str] | None:
        """Servers for the source and for the view; one that is set alone serves both. None when none is set."""
        source_url, view_url = self.source_url or self.view_url, self.view_url or self.source_url
        return (source_url, view_url) if source_url and view_url else None


@dataclass(frozen=True, slots=True)
class Servers:
    """The Postgres servers, by the URL of a database that was there before, and Kafka, which may still be starting."""

    admin_source_url: str
    admin_view_url: str
    kafka: Callable[[], str]

    @property
    def source_url(self) -> str:
        """The demo's source database."""
        return _with_database(self.admin_source_url, SOURCE_DATABASE)

    @property
    def view_url(self) -> str:
        """The demo's view database."""
        return _with_database(self.admin_view_url, VIEW_DATABASE)

    def set_environment(self, *, store: str) -> None:
        """Give this process, and so those that it starts, the demo's settings; Kafka's address comes later.

        Ports are any free ones unless set.
        """
        decided = {
            "SOURCE_URL": self.source_url,
            "VIEW_URL": self.view_url,
            "TOPIC_PREFIX": TOPIC_PREFIX,
            "CDC_NAME": TOPIC_PREFIX,
            "API_STORE": store,
            "LOG_FORMAT": "json",
        }
        for name in (*decided, *_DEFAULTS):
            os.environ.pop(f"VIEWKEEPER_{name}_FILE", None)
            os.environ.pop(f"VIEWKEEPER_{name}", None)
        os.environ.update({f"VIEWKEEPER_{name}": value for name, value in decided.items()})
        for name in ("CDC_HEALTH_PORT", "PROJECTOR_HEALTH_PORT"):
            os.environ.setdefault(f"VIEWKEEPER_{name}", "0")

    def view_capture(self) -> dict[str, str]:
        """Return the environment of the view's own capture, whose source is the view database."""
        decided = {"SOURCE_URL": self.view_url, "CDC_NAME": f"{TOPIC_PREFIX}_view", "CDC_HEALTH_PORT": "0"}
        return {**os.environ, **{f"VIEWKEEPER_{name}": value for name, value in decided.items()}}

    def wait_for_kafka(self) -> None:
        """Wait until Kafka answers and add its address to the settings."""
        os.environ.pop("VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS_FILE", None)
        os.environ["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"] = self.kafka()


def own_servers() -> OwnServers:
    """Read which servers of yours are set; raises ConfigurationError for a wrong value."""
    return read_settings(OwnServers)


@contextmanager
def started_servers(data_dir: Path, own: OwnServers) -> Iterator[Servers]:
    """Start embedded servers in the place of those that are not set, and stop them after.

    Yields when Postgres answers, so that its databases can be prepared while Kafka, which takes longest, still starts.
    Raises what `compose.local` raises.
    """
    urls, brokers = own.postgres_urls, own.kafka_bootstrap_servers
    with ExitStack() as started:
        broker = None if brokers else started.enter_context(launched(data_dir / "kafka"))
        if urls is None:
            server = started.enter_context(postgres(data_dir / "postgres"))
            urls = server.url(), server.url()

        def kafka() -> str:
            return broker.wait_until_ready().bootstrap_servers if broker else str(brokers)

        yield Servers(*urls, kafka)


def make_databases(servers: Servers) -> None:
    """Make the demo's databases where they are missing; raises ConfigurationError without the right to."""
    for url, name in ((servers.admin_source_url, SOURCE_DATABASE), (servers.admin_view_url, VIEW_DATABASE)):
        with connect(url, name="viewkeeper-demo") as connection, translated(describe(url)):
            if _comment(connection, name) is None:
                database = sql.Identifier(name)
                connection.execute(sql.SQL("CREATE DATABASE {}").format(database))
                connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, MARK))


def drop_databases(source_url: str, view_url: str) -> Iterator[str]:
    """Drop the databases that the demo made on these servers, even while they are in use; yields what was dropped."""
    for url, name in ((source_url, SOURCE_DATABASE), (view_url, VIEW_DATABASE)):
        with connect(url, name="viewkeeper-demo") as connection, translated(describe(url)):
            if _comment(connection, name) == MARK:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                yield f"database {name}"


def _comment(connection: psycopg.Connection, database: str) -> str | None:
    """Return a database's comment, empty if it has none; None when there is no such database."""
    row = connection.execute(
        "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = %s", (database,)
    ).fetchone()
    return str(row[0]) if row else None


def _with_database(url: str, database: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=f"/{database}").geturl()
