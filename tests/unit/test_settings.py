"""Settings: what is accepted, and what a person is told when it is not."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.errors import ConfigurationError
from runtime.settings import ApiSettings, CdcSettings, read_settings, settings_help

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
    assert "accepted: triggers" in text


def test_a_secret_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://from-a-file/app\n")
    monkeypatch.delenv("VIEWKEEPER_SOURCE_URL")
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL_FILE", str(secret))
    assert read_settings(CdcSettings).source_url == "postgresql://from-a-file/app"
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", "postgresql://both/app")
    with pytest.raises(ConfigurationError, match="both set"):
        read_settings(CdcSettings)


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIEWKEEPER_SOURCE_URL")
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"VIEWKEEPER_SOURCE_URL_FILE: cannot read .*nowhere"):
        read_settings(CdcSettings)


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
