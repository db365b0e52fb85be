"""Real servers for all tests: a Postgres of each version and one broker a run, a cloned database and topics a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg import sql

from compose.local.errors import LocalSettingError
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from compose.local.registry import SchemaRegistry
from tests.daemons import ROOT, Daemons, daemons_in
from tests.servers import newest_server, older_server, server_id
from tests.topic_reader import close_readers
from tests.topics import own_topics

pytest_plugins = ("pytester", "tests.shared_servers", "tests.torture")

# The tests that read a source, by the names of their files: they run on both servers, all others on the newest alone,
# and so do those of them that are marked `newest_postgres`.
READS_A_SOURCE = (
    "test_attach",
    "test_capture",
    "test_cdc",
    "test_migrations",
    "test_postgres",
    "test_snapshot",
    "test_timestamp",
    "test_torture",
    "test_triggers",
    "test_types",
    "test_wal",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on the servers of its file, `pg18` and maybe `pg15` in its id; no test runs if a server is missing.

    pytest groups tests by what a session fixture is given, so that each server is started once.
    """
    if "postgres_binaries" not in metafunc.fixturenames:
        return
    try:
        servers = [newest_server()]
        if _is_for_both(metafunc.definition):
            servers.append(older_server())
    except LocalSettingError as error:
        raise pytest.Collector.CollectError(f"error: {error}") from None
    metafunc.parametrize("postgres_binaries", servers, indirect=True, ids=server_id, scope="session")


def _is_for_both(test: pytest.Item) -> bool:
    return _reads_a_source(test) and test.get_closest_marker("newest_postgres") is None


def _reads_a_source(test: pytest.Item) -> bool:
    return test.path.name.startswith(READS_A_SOURCE)


@pytest.fixture(scope="session")
def postgres_binaries(request: pytest.FixtureRequest) -> Path:
    """Folder of the `initdb` and `postgres` that this test runs on, for tests that start servers of their own."""
    folder: Path = request.param
    return folder


@pytest.fixture(scope="session")
def postgres(postgres_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One real Postgres of each version for the whole run."""
    with run_postgres(tmp_path_factory.mktemp("postgres"), binaries=postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def source_template(postgres: PostgresServer) -> str:
    """Name of a source database with capture objects and the demo's tables, as the migrations make them."""
    return _migrated(postgres, "source_template", "VIEWKEEPER_SOURCE_URL", sections=("source", "demo"))


@pytest.fixture(scope="session")
def view_template(postgres: PostgresServer) -> str:
    """Name of a view database with the projector's tables and user_information, as the migrations make them."""
    return _migrated(postgres, "view_template", "VIEWKEEPER_VIEW_URL", sections=("view",))


@pytest.fixture
def source_url(postgres: PostgresServer, source_template: str) -> Iterator[str]:
    """URL of this test's own source database."""
    with _clone(postgres, source_template) as url:
        yield url


@pytest.fixture
def view_url(postgres: PostgresServer, view_template: str) -> Iterator[str]:
    """URL of this test's own view database."""
    with _clone(postgres, view_template) as url:
        yield url


@pytest.fixture
def topic_prefix(kafka: KafkaBroker) -> Iterator[str]:
    """Give a topic prefix of this test's own; its topics are deleted after the test."""
    with own_topics(kafka) as prefix:
        yield prefix
        close_readers()


@pytest.fixture
def settings_env(
    request: pytest.FixtureRequest, source_url: str, kafka: KafkaBroker, topic_prefix: str
) -> dict[str, str]:
    """Give the settings of this test's daemons; each listens on any free port and logs JSON lines.

    Tests that read a source have a view database only where they ask for one: to make one and drop it takes a while.
    """
    has_view = not _reads_a_source(request.node) or "view_url" in request.fixturenames
    return {
        "VIEWKEEPER_SOURCE_URL": source_url,
        **({"VIEWKEEPER_VIEW_URL": request.getfixturevalue("view_url")} if has_view else {}),
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
        "VIEWKEEPER_LOG_FORMAT": "json",
        "VIEWKEEPER_CDC_HEALTH_PORT": "0",
        "VIEWKEEPER_PROJECTOR_HEALTH_PORT": "0",
        "VIEWKEEPER_API_PORT": "0",
    }


@pytest.fixture
def avro(schema_registry: SchemaRegistry) -> dict[str, str]:
    """Give the settings that have a daemon write or read Avro."""
    return {"VIEWKEEPER_ENCODING": "avro", "VIEWKEEPER_SCHEMA_REGISTRY_URL": schema_registry.url}


@pytest.fixture
def daemon(tmp_path: Path, settings_env: dict[str, str]) -> Iterator[Daemons]:
    """Start daemons with this test's settings, `daemon("cdc", "run")`; they end with the test."""
    with daemons_in(tmp_path, settings_env) as daemons:
        yield daemons


def _migrated(postgres: PostgresServer, database: str, url_setting: str, *, sections: tuple[str, ...]) -> str:
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(url_setting, postgres.url(database))
        for section in sections:
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
    return database


@contextmanager
def _clone(postgres: PostgresServer, template: str) -> Iterator[str]:
    name = f"{template.removesuffix('_template')}_{uuid4().hex[:12]}"
    clone, original = sql.Identifier(name), sql.Identifier(template)
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(clone, original))
        try:
            yield postgres.url(name)
        finally:
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(clone))
