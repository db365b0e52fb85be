"""Which settings the demo's processes get."""

import os

import pytest

from compose.demo.servers import OwnServers, Servers, own_servers

ADMIN_URL = "postgresql://me:secret@db.example:5433/postgres?sslmode=require"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("VIEWKEEPER_")]:
        monkeypatch.delenv(name)
    # Noted as absent, so that what the demo sets is taken back too.
    for name in ("SOURCE_URL", "VIEW_URL", "TOPIC_PREFIX", "CDC_NAME", "API_STORE", "LOG_FORMAT", "CDC_HEALTH_PORT"):
        monkeypatch.setenv(f"VIEWKEEPER_{name}", "")
        monkeypatch.delenv(f"VIEWKEEPER_{name}")
    monkeypatch.setenv("VIEWKEEPER_PROJECTOR_HEALTH_PORT", "18082")
    return monkeypatch


def servers() -> Servers:
    return Servers(ADMIN_URL, ADMIN_URL, lambda: "broker:9092")


def test_databases_are_the_demos_own_on_the_server_that_is_set() -> None:
    assert servers().source_url == "postgresql://me:secret@db.example:5433/viewkeeper_demo_source?sslmode=require"
    assert servers().view_url == "postgresql://me:secret@db.example:5433/viewkeeper_demo_view?sslmode=require"


def test_one_postgres_that_is_set_serves_both_databases() -> None:
    assert OwnServers(source_url=ADMIN_URL, view_url=None, kafka_bootstrap_servers=None).postgres_urls == (
        ADMIN_URL,
        ADMIN_URL,
    )
    assert OwnServers(source_url=None, view_url=ADMIN_URL, kafka_bootstrap_servers=None).postgres_urls == (
        ADMIN_URL,
        ADMIN_URL,
    )


@pytest.mark.usefixtures("environment")
def test_without_settings_all_servers_are_embedded() -> None:
    assert own_servers() == OwnServers(source_url=None, view_url=None, kafka_bootstrap_servers=None)
    assert own_servers().postgres_urls is None


@pytest.mark.usefixtures("environment")
def test_ports_are_free_ones_unless_set() -> None:
    servers().set_environment(store="postgres")
    assert os.environ["VIEWKEEPER_CDC_HEALTH_PORT"] == "0"
    assert os.environ["VIEWKEEPER_PROJECTOR_HEALTH_PORT"] == "18082"


def test_settings_of_another_capture_do_not_reach_the_demo(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("VIEWKEEPER_SOURCE_URL", ADMIN_URL)
    environment.setenv("VIEWKEEPER_TOPIC_PREFIX", "production")
    environment.setenv("VIEWKEEPER_CDC_TABLES", "orders")
    environment.setenv("VIEWKEEPER_VIEWS_FILE", "views.txt")
    servers().set_environment(store="postgres")
    assert os.environ["VIEWKEEPER_TOPIC_PREFIX"] == "viewkeeper_demo"
    assert os.environ["VIEWKEEPER_SOURCE_URL"] == servers().source_url
    assert "VIEWKEEPER_CDC_TABLES" not in os.environ
    assert "VIEWKEEPER_VIEWS_FILE" not in os.environ
