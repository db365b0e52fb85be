"""Settings: what is accepted, and what a person is told when it is not."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.errors import ConfigurationError
from runtime.settings import ApiSettings, CdcSettings, read_settings, settings_help, unknown_variables

GOOD = {
    "VIEWKEEPER_SOURCE_URL": "postgresql://me:secret@db:5432/app",
    "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": "broker:9092",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)


def test_defaults_and_a_frozen_object() -> None:
    settings = read_settings(CdcSettings)
    assert (settings.topic_prefix, settings.topic_partitions, settings.cdc_name) == ("viewkeeper", 6, "viewkeeper")
    with pytest.raises(ValidationError):
        settings.topic_prefix = "other"


def test_every_wrong_or_missing_setting_is_named_with_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS")
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", "mysql://db/app")
    monkeypatch.setenv("VIEWKEEPER_TOPIC_PARTITIONS", "0")
    monkeypatch.setenv("VIEWKEEPER_CDC_SOURCE", "magic")
    with pytest.raises(ConfigurationError) as raised:
        read_settings(CdcSettings)
    text = str(raised.value)
    assert "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS is missing" in text
    assert "VIEWKEEPER_SOURCE_URL is wrong" in text
    assert "accepted: a Postgres URL such as postgresql://" in text
    assert "VIEWKEEPER_TOPIC_PARTITIONS is wrong" in text
    assert "a whole number from 1 to 1000" in text
    assert "VIEWKEEPER_CDC_SOURCE is wrong" in text
    assert "accepted: triggers or wal or timestamp" in text


def test_a_secret_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://from-a-file/app\n")
    monkeypatch.delenv("VIEWKEEPER_SOURCE_URL")
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL_FILE", str(secret))
    assert read_settings(CdcSettings).source_url == "postgresql://from-a-file/app"
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", "postgresql://both/app")
    with pytest.raises(ConfigurationError, match="both set"):
        read_settings(CdcSettings)


def test_a_secret_file_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL_FILE", "")
    assert read_settings(CdcSettings).source_url == GOOD["VIEWKEEPER_SOURCE_URL"]


def test_variables_that_nobody_reads_are_found_with_what_may_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_CDC_SORCE", "wal")
    monkeypatch.setenv("VIEWKEEPER_NOTHING_OF_THE_KIND", "1")
    monkeypatch.setenv("VIEWKEEPER_PROJECTOR_HEALTH_PORT", "0")
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL_FILE", "/run/secrets/url")
    monkeypatch.setenv("VIEWKEEPER_KAFKA_LINGER_MS", "5")
    monkeypatch.setenv("VIEWKEEPER_LOCAL_CACHE_DIR", "cache")
    assert unknown_variables() == {
        "VIEWKEEPER_CDC_SORCE": "VIEWKEEPER_CDC_SOURCE",
        "VIEWKEEPER_NOTHING_OF_THE_KIND": None,
    }


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIEWKEEPER_SOURCE_URL")
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"VIEWKEEPER_SOURCE_URL_FILE: cannot read .*nowhere"):
        read_settings(CdcSettings)


def test_the_api_needs_no_kafka_and_takes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL", GOOD["VIEWKEEPER_SOURCE_URL"])
    monkeypatch.setenv("VIEWKEEPER_KAFKA_SECURITY_PROTOCOL", "SSL")
    settings = read_settings(ApiSettings)
    assert (settings.kafka_bootstrap_servers, settings.kafka_options) == ("broker:9092", {"security.protocol": "SSL"})
    monkeypatch.delenv("VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS")
    assert read_settings(ApiSettings).kafka_bootstrap_servers == ""


def test_any_librdkafka_option_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hush")
    monkeypatch.setenv("VIEWKEEPER_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("VIEWKEEPER_KAFKA_SASL_PASSWORD_FILE", str(secret))
    options = read_settings(CdcSettings).kafka_options
    assert options == {"security.protocol": "SASL_SSL", "sasl.password": "hush"}


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(read_settings(CdcSettings))


@pytest.mark.parametrize("kind", [CdcSettings, ApiSettings])
def test_help_names_every_setting(kind: type[CdcSettings] | type[ApiSettings]) -> None:
    text = settings_help(kind)
    for name in kind.model_fields:
        if name != "kafka_options":
            assert f"VIEWKEEPER_{name.upper()}  " in text


def test_avro_needs_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_ENCODING", "avro")
    with pytest.raises(ConfigurationError) as raised:
        read_settings(CdcSettings)
    assert "VIEWKEEPER_SCHEMA_REGISTRY_URL is missing" in str(raised.value)
    assert "a Confluent-compatible registry's URL such as http://registry:8081" in str(raised.value)
    monkeypatch.setenv("VIEWKEEPER_SCHEMA_REGISTRY_URL", "http://registry:8081")
    assert read_settings(CdcSettings).encoding == "avro"


def test_an_encoding_that_there_is_not_is_named_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_ENCODING", "protobuf")
    with pytest.raises(ConfigurationError, match=r"VIEWKEEPER_ENCODING is wrong: .*; accepted: json or avro"):
        read_settings(CdcSettings)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("registry:8081", "not an http:// or https:// URL"), ("http://me:hush@registry:8081", "settings of their own")],
)
def test_a_wrong_registry_url_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str, complaint: str
) -> None:
    monkeypatch.setenv("VIEWKEEPER_SCHEMA_REGISTRY_URL", url)
    with pytest.raises(ConfigurationError, match=f"VIEWKEEPER_SCHEMA_REGISTRY_URL is wrong: .*{complaint}") as raised:
        read_settings(CdcSettings)
    assert "hush" not in str(raised.value)


def test_the_registrys_password_can_come_from_a_file_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("hush\n")
    monkeypatch.setenv("VIEWKEEPER_SCHEMA_REGISTRY_PASSWORD_FILE", str(secret))
    settings = read_settings(CdcSettings)
    assert settings.schema_registry_password == secret.read_text().strip()
    assert "hush" not in repr(settings)
