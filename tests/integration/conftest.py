"""What integration tests share beside the servers: topics written by hand, and a projector driven by hand."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

import tests.accounts
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from runtime.postgres import connect
from runtime.settings import CdcSettings, read_settings
from tests.daemons import ROOT, Daemons
from tests.integration.captured_source import Source
from tests.integration.changelog import KEYS, PARTITIONS, Changelog
from tests.integration.logged import Logged
from tests.integration.polled_source import PolledSource
from tests.integration.projector_steps import Steps, projector_settings, projector_steps
from tests.integration.streamed_view import StreamedView, streamed_view
from tests.integration.test_projector_views import database
from tests.integration.view_topic import ViewTopic
from tests.integration.wal_steps import SLOTS
from tests.waiting import wait_until


@pytest.fixture
def changelog_to_come(kafka: KafkaBroker, topic_prefix: str) -> Changelog:
    """Give the demo tables' topics before they are created."""
    return Changelog(kafka.bootstrap_servers, topic_prefix, KEYS, PARTITIONS)


@pytest.fixture
def changelog(changelog_to_come: Changelog) -> Changelog:
    """Give the demo tables' topics, empty."""
    changelog_to_come.create()
    return changelog_to_come


@pytest.fixture
def steps(changelog: Changelog, settings_env: dict[str, str]) -> Iterator[Steps]:  # noqa: ARG001 - topics first
    """Give a projector that reads them, one batch at a time."""
    with projector_steps(projector_settings(settings_env)) as steps:
        yield steps


@pytest.fixture
def account_url(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a view database with the view `account`, empty; the settings' views are it alone."""
    with database(postgres) as url:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        monkeypatch.setenv("VIEWKEEPER_VIEWS", tests.accounts.__file__)
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="view"), "head")
        yield url


@pytest.fixture
def settings(settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> CdcSettings:
    """Give the settings of this test's captures, for parts of them that a test drives itself."""
    for name, value in settings_env.items():
        monkeypatch.setenv(name, value)
    return read_settings(CdcSettings)


@pytest.fixture
def source(source_url: str, kafka: KafkaBroker, topic_prefix: str) -> Iterator[Source]:
    """Give the source database, with nothing attached yet."""
    with connect(source_url, name="test", settings={"TimeZone": "UTC"}) as connection:
        yield Source(connection, source_url, kafka, topic_prefix)


@pytest.fixture
def logged(source_url: str) -> Iterator[Logged]:
    """Give the source database as its change logs show it."""
    with connect(source_url, name="test") as session:
        yield Logged(session)


@pytest.fixture
def polled(source_url: str, kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[PolledSource]:
    """Give a source that nobody may add anything to, with a table of ten rows."""
    source = PolledSource(source_url, kafka, topic_prefix, tmp_path)
    with closing(source.connection):
        source.run(
            "DROP SCHEMA cdc CASCADE",
            "CREATE TABLE items (id bigint PRIMARY KEY, text text, updated_at timestamptz)",
            "INSERT INTO items SELECT i, 'first', now() FROM generate_series(1, 10) i",
        )
        yield source


@pytest.fixture
def wal(source: Source, daemon: Daemons) -> Iterator[Source]:
    """Give the source database of captures that read the WAL; their slot goes after the test, as the database does."""
    yield source
    daemon.end_all()
    wait_until(lambda: not source.value(f"SELECT count(*) {SLOTS} AND active"), what="the end of the stream")
    source.run(f"SELECT pg_drop_replication_slot(slot_name) {SLOTS}")


@pytest.fixture
def view_topic(settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ViewTopic:
    """Give the view with what a capture needs in its database; nothing is attached."""
    settings = {"VIEWKEEPER_SOURCE_URL": settings_env["VIEWKEEPER_VIEW_URL"], "VIEWKEEPER_CDC_NAME": "view"}
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", settings["VIEWKEEPER_SOURCE_URL"])
    command.upgrade(Config(ROOT / "alembic.ini", ini_section="source"), "head")
    return ViewTopic(
        settings["VIEWKEEPER_SOURCE_URL"],
        settings_env["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"],
        settings_env["VIEWKEEPER_TOPIC_PREFIX"],
        settings,
    )


@pytest.fixture(scope="module")
def view(
    postgres: PostgresServer, kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StreamedView]:
    """Give a captured view to all tests of a module; each has users of its own."""
    with streamed_view(postgres, kafka, tmp_path_factory.mktemp("streams")) as view:
        yield view
