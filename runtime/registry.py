"""The thin edge to a Confluent-compatible Schema Registry: its client, and its errors translated once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from runtime.errors import ConfigurationError, RetryableError, ViewkeeperError
from runtime.settings import KafkaSettings

REQUEST_SECONDS = 10
UNKNOWN_SECONDS = 60.0
"""So long a schema that the registry did not know is not asked for again: thousands of records may name it."""

_LOGIN_REFUSED = (401, 403)
_PASSING = (408, 429)
_SERVER_ERROR = 500
_NOT_FOUND = 404
_SCHEMA_UNKNOWN = 40403
"""The registry's own code: a gateway that has lost its way answers 404 too, and would make good records unreadable."""

_NO_ANSWER_OF_A_REGISTRY = (ValueError, KeyError, TypeError, AttributeError)
"""What the client raises of an answer that it takes for a registry's: of HTML, of JSON of another shape, of none."""

_MOST_SHOWN = 300

# What can follow nothing that has fields, whatever is demanded of a new version.
_NO_RECORD = Schema('"string"', "AVRO")


class RegistryUnavailable(RetryableError):  # noqa: N818 - the state, as the log reads it
    """The registry cannot be reached, answered with an error that may pass, or something else answers in its place."""


class RegistryRefused(ViewkeeperError):  # noqa: N818 - the state, as the log reads it
    """The registry refused a schema; its own words are in the message."""


class Registry:
    """Registers schemas and finds them again, each asked for once; to be closed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._where = f"Schema Registry {settings.schema_registry_url}"
        # Who uses it begins again after any error: no retries of its own.
        options = {"url": settings.schema_registry_url, "timeout": REQUEST_SECONDS, "max.retries": 0}
        if settings.schema_registry_user is not None:
            user = f"{settings.schema_registry_user}:{settings.schema_registry_password or ''}"
            options["basic.auth.user.info"] = user
        self.client = SchemaRegistryClient(options)
        self._unknown_since: dict[int, float] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of a schema, which becomes the subject's newest version if it is none of them.

        Raises RegistryRefused if it is not compatible with the earlier ones as the subject's level demands.
        """
        with self._translated(f"subject {subject}"):
            number = self.client.register_schema(subject, schema)
            if not isinstance(number, int):
                raise TypeError(f"an answer without the schema's id: {number!r}")
            return number

    def compares(self, subject: str) -> bool:
        """Return whether a subject's new versions are held against its earlier ones, records; true if that is not told.

        It is seen by what would be accepted: the level itself, which may be the registry's own, is told in as many ways
        as there are registries.
        """
        with self._translated(f"subject {subject}"):
            try:
                return not self.client.test_compatibility(subject, _NO_RECORD)
            except SchemaRegistryError as error:
                if _may_pass(error.http_status_code) or _is_page_not_found(error):
                    raise
                return True

    def schema(self, number: int) -> str:
        """Return the schema with this id; raise ValueError if there is none, or was none a minute ago.

        Raises RegistryUnavailable if what answers is no registry: it does not say that there is no such schema.
        """
        if time.monotonic() - self._unknown_since.get(number, -UNKNOWN_SECONDS) < UNKNOWN_SECONDS:
            raise self._unknown(number)
        with self._translated(f"schema {number}"):
            found = self._found(number)
        # Beyond what translates: there a ValueError is one that the client raised.
        if found is None:
            self._unknown_since[number] = time.monotonic()
            raise self._unknown(number)
        return found

    def _found(self, number: int) -> str | None:
        try:
            found = self.client.get_schema(number).schema_str
        except SchemaRegistryError as error:
            if error.error_code != _SCHEMA_UNKNOWN:
                raise
            return None
        if not isinstance(found, str):
            raise TypeError(f"an answer without a schema: {found!r}")
        return found

    def _unknown(self, number: int) -> ValueError:
        return ValueError(f"{self._where} does not know its schema {number}")

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            raise RegistryUnavailable(f"{self._where}: {type(error).__name__} {error}") from error
        except SchemaRegistryError as error:
            raise _refusal(error, self._where, what) from error
        except _NO_ANSWER_OF_A_REGISTRY as error:
            # The client keeps what it took for an answer.
            self.client.clear_caches()
            raise _no_registry(f"{type(error).__name__} {error}", self._where, what) from error


def _refusal(error: SchemaRegistryError, where: str, what: str) -> ViewkeeperError:
    status = error.http_status_code
    if status in _LOGIN_REFUSED:
        return ConfigurationError(
            f"{where}: {what}: access refused: {error}; set VIEWKEEPER_SCHEMA_REGISTRY_USER and _PASSWORD"
        )
    if status == _NOT_FOUND:
        return _no_registry(str(error), where, what)
    if _may_pass(status):
        return RegistryUnavailable(f"{where}: {what}: {error}")
    return RegistryRefused(f"{where}: {what}: refused: {error}")


def _no_registry(answer: str, where: str, what: str) -> RegistryUnavailable:
    """Return the error for what no registry answers: of a wrong URL, or of a gateway while the registry is away."""
    return RegistryUnavailable(
        f"{where}: {what}: what answers there is no Schema Registry: {answer[:_MOST_SHOWN]}; "
        "if it stays so, correct VIEWKEEPER_SCHEMA_REGISTRY_URL"
    )


def _is_page_not_found(error: SchemaRegistryError) -> bool:
    """Return whether it is a 404 without a registry's code, which begins with the status."""
    return error.http_status_code == _NOT_FOUND and not str(error.error_code).startswith(str(_NOT_FOUND))


def _may_pass(status: int) -> bool:
    return status in _PASSING or status >= _SERVER_ERROR
