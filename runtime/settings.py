"""Every setting, read once from the environment into one frozen, typed object a process.

`VIEWKEEPER_<NAME>` is read as it is; `VIEWKEEPER_<NAME>_FILE` names a file that holds the value, for secrets.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.errors import ConfigurationError

PREFIX = "VIEWKEEPER_"
_KAFKA_PREFIX = f"{PREFIX}KAFKA_"
_LOCAL_PREFIX = f"{PREFIX}LOCAL_"
_FILE_SUFFIX = "_FILE"

SettingsT = TypeVar("SettingsT", bound="Settings")
LogSettingsT = TypeVar("LogSettingsT", bound="LogSettings")


def _postgres_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("not a postgresql:// URL")
    try:
        conninfo_to_dict(value)
    except ProgrammingError as error:
        raise ValueError("not a URL that libpq can read") from error
    return value


def _registry_url(value: str | None) -> str | None:
    if value is None:
        return None
    if not value.startswith(("http://", "https://")):
        raise ValueError("not an http:// or https:// URL")
    if "@" in value:
        raise ValueError("user and password have settings of their own, VIEWKEEPER_SCHEMA_REGISTRY_USER and …_PASSWORD")
    return value


@dataclass(frozen=True)
class Accepts:
    """What a setting accepts, in words, for errors and `--help`."""

    text: str


PostgresUrl = Annotated[
    str, AfterValidator(_postgres_url), Accepts("a Postgres URL such as postgresql://user@host:5432/database")
]
RegistryUrl = Annotated[
    str | None,
    AfterValidator(_registry_url),
    Accepts("a Confluent-compatible registry's URL such as http://registry:8081"),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100), Accepts("letters, digits, _ and -")]
Port = Annotated[int, Field(ge=0, le=65535), Accepts("a port from 0 (any free one) to 65535")]
Seconds = Annotated[float, Field(gt=0, le=86400), Accepts("a number of seconds above 0")]
OptionalSeconds = Annotated[float, Field(ge=0, le=86400), Accepts("a number of seconds, 0 to switch it off")]
Count = Annotated[int, Field(ge=1, le=10_000_000), Accepts("a whole number from 1 to 10000000")]


class _EnvironmentSource(PydanticBaseSettingsSource):
    """The process environment, with `*_FILE` resolved and librdkafka's options gathered."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - interface
        """Return one field's raw text."""
        return _read(variable(field_name), os.environ), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the raw text of every field that the environment sets."""
        fields = self.settings_cls.model_fields
        values: dict[str, Any] = {}
        for name, field in fields.items():
            text, _, _ = self.get_field_value(field, name)
            if text is not None:
                values[name] = text
        if "kafka_options" in fields:
            values["kafka_options"] = _kafka_options(os.environ)
        return values


class Settings(BaseSettings):
    """Settings of one process; `of()` reads them."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - interface
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - interface
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - interface
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read from our own source only."""
        return init_settings, _EnvironmentSource(settings_cls)


class LogSettings(Settings):
    """How a process logs."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: Literal["console", "json"] = Field("console", description="for people, or a JSON object a line")


class HealthSettings(LogSettings):
    """Where a daemon answers `/livez`, `/readyz` and `/metrics`."""

    health_host: str = Field("127.0.0.1", description="address that health and metrics listen on")


class KafkaSettings(LogSettings):
    """How to reach Kafka, and what its topics are called."""

    kafka_bootstrap_servers: str = Field(description="Kafka brokers, host:port[,host:port…]", min_length=1)
    kafka_options: Mapping[str, str] = Field(
        default_factory=dict,
        description="VIEWKEEPER_KAFKA_<OPTION_WITH_UNDERSCORES>: any librdkafka option that no guarantee rests on",
        repr=False,
    )
    topic_prefix: Name = Field("viewkeeper", description="first part of every topic's name")
    encoding: Literal["json", "avro"] = Field("json", description="encoding of keys and values")
    schema_registry_url: RegistryUrl = Field(
        None, description="the Schema Registry, for VIEWKEEPER_ENCODING=avro", validate_default=True
    )
    schema_registry_user: str | None = Field(None, description="user that the Schema Registry asks for")
    schema_registry_password: str | None = Field(None, description="and that user's password", repr=False)

    @field_validator("schema_registry_url")
    @classmethod
    def _demand_for_avro(cls, url: str | None, info: ValidationInfo) -> str | None:
        # Without any Kafka there is nothing to decode.
        is_off = info.data.get("kafka_bootstrap_servers") == ""
        if url is None and info.data.get("encoding") == "avro" and not is_off:
            raise PydanticCustomError("missing", "VIEWKEEPER_ENCODING=avro needs it")
        return url


class SourceSettings(LogSettings):
    """The source database."""

    source_url: PostgresUrl = Field(description="the source database", repr=False)


class DeclaredSettings(LogSettings):
    """The views that are declared."""

    views: str = Field("views.user_information", description="module or file that declares the views", min_length=1)


class ViewSettings(DeclaredSettings):
    """The view database and the views kept in it."""

    view_url: PostgresUrl = Field(description="the view database; may be the source's", repr=False)


class CaptureSettings(SourceSettings):
    """Settings of the `viewkeeper-cdc` commands that speak with the source only."""

    cdc_name: Name = Field("viewkeeper", description="the capture's name; one leader a name")
    cdc_source: Literal["triggers", "wal", "timestamp"] = Field("triggers", description="how changed keys are found")
    cdc_tables: str = Field(
        "", description="tables to capture, schema.table,… or a path that ends in .toml; what is attached when unset"
    )
    cdc_mask_key: str | None = Field(
        None, min_length=16, repr=False, description="the secret under which masked columns are hashed"
    )


class StatusSettings(KafkaSettings, CaptureSettings):
    """Settings of the `viewkeeper-cdc` commands that look at source and Kafka, and capture nothing."""


class PassSettings(LogSettings):
    """How often tables are read whole, which whoever waits for that has to know, too."""

    cdc_bulk_seconds: Seconds = Field(
        300.0, description="timestamp source, mode bulk: from one reading of all rows to the next"
    )


class ReconcileSettings(StatusSettings, PassSettings):
    """Settings of `viewkeeper-cdc reconcile`."""


class CdcSettings(HealthSettings, KafkaSettings, CaptureSettings, PassSettings):
    """Settings of `viewkeeper-cdc run`."""

    topic_partitions: Annotated[int, Field(ge=1, le=1000), Accepts("a whole number from 1 to 1000")] = Field(
        6, description="partitions of a new changelog topic"
    )
    topic_replication_factor: Annotated[int | None, Field(ge=1, le=100), Accepts("a whole number from 1 to 100")] = (
        Field(None, description="replicas of a new topic; the broker's default when unset")
    )
    cdc_poll_seconds: Seconds = Field(0.03, description="from the start of one poll to the start of the next")
    cdc_chunk_rows: Count = Field(20_000, description="rows a snapshot chunk and a Kafka transaction hold at most")
    cdc_log_limit_mb: Annotated[int, Field(ge=1, le=1_000_000), Accepts("megabytes, from 1 to 1000000")] = Field(
        1024, description="at this size of a table's change log, logging stops and the table is read anew later"
    )
    cdc_look_back_seconds: OptionalSeconds = Field(
        60.0, description="timestamp source: rows changed so long before the newest one are looked at again"
    )
    cdc_sweep_seconds: OptionalSeconds = Field(
        3600.0, description="timestamp source: so often the topics' keys are looked up, to find rows that are gone"
    )
    cdc_on_other_history: Literal["stop", "snapshot"] = Field(
        "stop", description="what a source or a Kafka that was set back does: stop, or read every table anew"
    )
    cdc_on_lost_slot: Literal["stop", "snapshot"] = Field(
        "stop", description="what a lost replication slot does: stop, or make a new one and read every table anew"
    )
    cdc_on_oversize_row: Literal["stop", "hold_back"] = Field(
        "stop", description="what a row does that is too large for Kafka: stop, or leave it out and list its key"
    )
    cdc_lease_seconds: Annotated[float, Field(ge=2, le=300), Accepts("a number of seconds from 2 to 300")] = Field(
        5.0, description="without a heartbeat for so long, the leader is taken to be gone"
    )
    cdc_health_port: Port = Field(8081, description="port of health and metrics")


class ProjectorSettings(HealthSettings, KafkaSettings, ViewSettings):
    """Settings of `viewkeeper-projector run`."""

    projector_group: str | None = Field(
        None, description="consumer group; derived from view database and views when unset"
    )
    projector_on_bad_record: Literal["stop", "dead_letter"] = Field(
        "stop", description="what a record does that cannot be applied: stop, or wait as a dead letter"
    )
    projector_dead_letter_limit: Count = Field(
        1_000, description="with more dead letters than this at a time in a view it stops"
    )
    projector_on_long_outage: Literal["stop", "go_on"] = Field(
        "stop", description="what it does after an outage that may have hidden deletes: stop, or go on"
    )
    projector_batch_records: Count = Field(20_000, description="records a transaction applies at most")
    projector_health_port: Port = Field(8082, description="port of health and metrics")


class ViewStatusSettings(KafkaSettings, ViewSettings):
    """Settings of commands that look at views and their topics, and keep nothing."""


class AuditSettings(SourceSettings, ViewSettings):
    """Settings of commands that compare the view with the source."""


class PreviewSettings(SourceSettings, DeclaredSettings):
    """Settings of commands that compute views from the source alone."""


class ApiSettings(KafkaSettings, ViewSettings):
    """Settings of `viewkeeper-api`; `kafka_bootstrap_servers` is empty where it is to know nothing of Kafka."""

    kafka_bootstrap_servers: str = Field(
        "",
        description="Kafka brokers, host:port[,host:port…]; without them there are no streams, and /live shows what "
        "the database alone tells",
    )
    api_host: str = Field("127.0.0.1", description="address that the API listens on")
    api_port: Port = Field(8080, description="port of the API, its health and its metrics")
    api_store: Literal["postgres"] = Field("postgres", description="where reads come from")
    api_queue_requests: Count = Field(2_000, description="requests that may wait for a look-up; one more gets 503")
    api_min_as_of_seconds: Seconds = Field(
        5.0, description="how long a request waits for the as-of that it asks for; then it gets 503"
    )
    api_streams: Count = Field(5_000, description="streams that may be open; one more gets 503")
    api_heartbeat_seconds: Seconds = Field(10.0, description="so often a stream says its as-of")
    api_stream_stall_seconds: Seconds = Field(
        10.0, description="a stream whose client takes nothing for so long is cut off"
    )


def variable(field_name: str) -> str:
    """Return the environment variable that sets a field."""
    return PREFIX + field_name.upper()


def option_variable(option: str) -> str:
    """Return the environment variable that sets one of librdkafka's options."""
    return _KAFKA_PREFIX + option.upper().replace(".", "_")


def read_settings(kind: type[SettingsT]) -> SettingsT:
    """Read a process's settings from the environment.

    Raises ConfigurationError that names each missing or wrong variable with what is accepted.
    """
    try:
        return kind()
    except ValidationError as error:
        lines = [_complaint(kind, detail) for detail in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(lines)) from None


def unknown_variables() -> dict[str, str | None]:
    """Return what the environment sets that no process of ours reads, each with the setting that may be meant."""
    known = {variable(name) for kind in _kinds(Settings) for name in kind.model_fields}
    passed = [
        name
        for name in os.environ
        if name.startswith(PREFIX) and not name.startswith((_KAFKA_PREFIX, _LOCAL_PREFIX))
        if name.removesuffix(_FILE_SUFFIX) not in known
    ]
    return {name: next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in sorted(passed)}


def _kinds(kind: type[Settings]) -> Iterator[type[Settings]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def settings_help(kind: type[Settings]) -> str:
    """Return a text that lists every setting of a process: variable, meaning, what is accepted, default."""
    lines = []
    for name, field in kind.model_fields.items():
        if name == "kafka_options":
            lines.append(
                f"{_KAFKA_PREFIX}<OPTION>  any other librdkafka option that no guarantee rests on, dots as underscores"
            )
            continue
        default = "required" if field.is_required() else f"default: {_shown(field.default)}"
        lines.append(f"{variable(name)}  {field.description} ({_accepted(field)}; {default})")
    return "\n".join([*lines, "Each can come from a file: append _FILE to its name."])


def _read(name: str, environment: Mapping[str, str]) -> str | None:
    file_name = environment.get(name + _FILE_SUFFIX)
    # Set to nothing is not set: that is what a variable that is passed on becomes where there is none.
    if not file_name:
        return environment.get(name) or None
    if environment.get(name):
        raise ConfigurationError(f"{name} and {name}{_FILE_SUFFIX} are both set: unset one of them")
    try:
        return Path(file_name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}{_FILE_SUFFIX}: cannot read {file_name!r}: {error}") from error


def _kafka_options(environment: Mapping[str, str]) -> dict[str, str]:
    own = {variable(name) for name in KafkaSettings.model_fields}
    options = {}
    for name in environment:
        bare = name.removesuffix(_FILE_SUFFIX)
        if not name.startswith(_KAFKA_PREFIX) or bare in own:
            continue
        value = _read(bare, environment)
        if value is not None:
            options[bare.removeprefix(_KAFKA_PREFIX).lower().replace("_", ".")] = value
    return options


def _complaint(kind: type[Settings], detail: ErrorDetails) -> str:
    name = str(detail["loc"][0])
    field = kind.model_fields[name]
    if detail["type"] == "missing":
        return f"{variable(name)} is missing: {field.description}; accepted: {_accepted(field)}"
    return f"{variable(name)} is wrong: {detail['msg']}; accepted: {_accepted(field)}"


def _accepted(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(str, get_args(field.annotation)))
    return next((marker.text for marker in field.metadata if isinstance(marker, Accepts)), "text")


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)
