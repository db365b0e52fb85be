"""A registry that asks for a user, behind a proxy that cannot reach it, or none at all: what a person is told."""

import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from confluent_kafka.schema_registry import Schema

from cdc.avro_decoding import AvroDecoding
from compose.local.process import free_port
from compose.local.registry import SchemaRegistry
from runtime.errors import ConfigurationError
from runtime.registry import Registry, RegistryRefused, RegistryUnavailable
from runtime.settings import CdcSettings
from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets

SCHEMA = Schema('{"type": "record", "name": "Row", "fields": [{"name": "id", "type": "long"}]}', "AVRO")
HTML = b"<html><body>The page that you look for is not here.</body></html>"
UNKNOWN = b'{"error_code": 40403, "message": "Schema not found"}'
USER = {"schema_registry_user": "ann", "schema_registry_password": "opens"}


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, or answers them itself."""

    def pass_on(self, url: str) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {"Content-Type": self.headers["Content-Type"]}
        try:
            with urlopen(Request(url + self.path, data=body, headers=headers)) as answer:  # noqa: S310 - ours
                self.answer(answer.status, answer.read())
        except HTTPError as error:
            with error:
                self.answer(error.code, error.read())
        except URLError:
            self.answer(502, b"bad gateway")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def guarded(url: str) -> Iterator[str]:
    """Give the URL of a proxy that passes on what ann asks, with her password."""
    wanted = f"Basic {b64encode(b'ann:opens').decode()}"

    class Guard(Proxy):
        def do_POST(self) -> None:
            if self.headers["Authorization"] != wanted:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(401, b'{"error_code": 40101, "message": "who are you?"}')
                return
            self.pass_on(url)

    with serving(Guard) as guard:
        yield guard


@contextmanager
def behind(url: str) -> Iterator[str]:
    """Give the URL of an instance of the registry that has others register, and has heard of no schema yet."""

    class Behind(Proxy):
        def do_POST(self) -> None:
            self.pass_on(url)

        def do_GET(self) -> None:
            self.answer(404, UNKNOWN)

    with serving(Behind) as instance:
        yield instance


@contextmanager
def gateway(*answers: tuple[int, bytes]) -> Iterator[str]:
    """Give the URL of a server that answers whatever it is asked, in turn; its last answer over and over."""
    left = list(answers)

    class Gateway(Proxy):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.answer(*(left.pop(0) if len(left) > 1 else left[0]))

    with serving(Gateway) as url:
        yield url


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def registry(url: str, **settings: Any) -> closing[Registry]:
    return closing(Registry(CdcSettings.model_construct(schema_registry_url=url, **settings)))


def test_the_user_and_password_of_the_settings_are_given(schema_registry: SchemaRegistry, topic_prefix: str) -> None:
    subject = f"{topic_prefix}-guarded"
    with guarded(schema_registry.url) as url:
        with registry(url) as nobody, pytest.raises(ConfigurationError, match="who are you") as refused:
            nobody.register(subject, SCHEMA)
        assert "set VIEWKEEPER_SCHEMA_REGISTRY_USER and _PASSWORD" in str(refused.value)
        assert f"Schema Registry {url}: subject {subject}" in str(refused.value)
        with registry(url, **USER) as known:
            number = known.register(subject, SCHEMA)
    with registry(schema_registry.url) as direct:
        assert direct.register(subject, SCHEMA) == number
        assert "Row" in direct.schema(number)


def test_a_gateway_that_does_not_reach_it_and_a_closed_port_are_waited_for() -> None:
    with (
        guarded(f"http://127.0.0.1:{free_port()}") as url,
        registry(url, **USER) as behind,
        pytest.raises(RegistryUnavailable, match="502"),
    ):
        behind.register("rows", SCHEMA)
    with registry(f"http://127.0.0.1:{free_port()}") as nowhere, pytest.raises(RegistryUnavailable, match="refused"):
        nowhere.register("rows", SCHEMA)


def test_what_is_no_schema_is_refused_in_its_words(schema_registry: SchemaRegistry, topic_prefix: str) -> None:
    with registry(schema_registry.url) as known:
        with pytest.raises(RegistryRefused, match=f"subject {topic_prefix}: refused: .*422"):
            known.register(topic_prefix, Schema('{"type": "nothing that there is"}', "AVRO"))
        with pytest.raises(ValueError, match="does not know its schema 99999999"):
            known.schema(99_999_999)
        known.close()
        # It is not asked again at once.
        with pytest.raises(ValueError, match="does not know its schema 99999999"):
            known.schema(99_999_999)


@pytest.mark.parametrize(
    "answer",
    [
        (404, HTML),
        (200, HTML),
        (200, b"{}"),
        (200, b"[]"),
        (200, b""),
        (404, b'{"message": "no such page"}'),
    ],
    ids=["404 HTML", "HTML", "{}", "[]", "nothing", "404 JSON"],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda known: known.register("rows", SCHEMA),
        lambda known: known.compares("rows"),
        lambda known: known.schema(7),
    ],
    ids=["register", "compares", "schema"],
)
def test_what_is_no_registry_is_told_so_and_waited_for(
    ask: Callable[[Registry], object], answer: tuple[int, bytes]
) -> None:
    with gateway(answer) as url, registry(url) as known:
        # Asked again, what it answered at first is not taken from the client's memory.
        for _ in range(2):
            with pytest.raises(RegistryUnavailable, match="is no Schema Registry: ") as refused:
                ask(known)
            assert f"Schema Registry {url}: " in str(refused.value)
            assert "correct VIEWKEEPER_SCHEMA_REGISTRY_URL" in str(refused.value)


@pytest.mark.parametrize("body", [b'{"error_code": 404, "message": "HTTP 404 Not Found"}', b'{"error_code": 40401}'])
def test_a_404_of_another_code_does_not_make_a_schema_unknown(body: bytes) -> None:
    with gateway((404, body)) as url, registry(url) as known:
        with pytest.raises(RegistryUnavailable, match="is no Schema Registry: "):
            known.schema(7)
        # Of registries that do not tell how they compare there are many: the rows are published.
        assert known.compares("rows")


def test_an_id_that_is_no_number_is_no_id() -> None:
    with gateway((200, b'{"id": "seven"}')) as url, registry(url) as known:
        for _ in range(2):
            with pytest.raises(RegistryUnavailable, match="without the schema's id: 'seven'"):
                known.register("rows", SCHEMA)


def test_a_schema_is_found_when_the_gateway_reaches_the_registry_again() -> None:
    with (
        gateway((404, HTML), (200, b"{}"), (200, b'{"schema": "\\"long\\""}')) as url,
        registry(url) as known,
    ):
        for _ in range(2):
            with pytest.raises(RegistryUnavailable):
                known.schema(7)
        assert known.schema(7) == '"long"'


@pytest.mark.parametrize("level", ["BACKWARD", "FORWARD_TRANSITIVE", "FULL", "NONE"])
def test_a_subject_is_compared_unless_its_level_is_none(
    level: str, schema_registry: SchemaRegistry, topic_prefix: str
) -> None:
    with registry(schema_registry.url) as known:
        known.register(topic_prefix, SCHEMA)
        known.client.set_compatibility(topic_prefix, level)
        assert known.compares(topic_prefix) == (level != "NONE")


def test_who_may_not_ask_whether_a_subject_is_compared_is_told_nothing(schema_registry: SchemaRegistry) -> None:
    with guarded(schema_registry.url) as url, registry(url) as nobody:
        assert nobody.compares("rows")
    with registry(f"http://127.0.0.1:{free_port()}") as nowhere, pytest.raises(RegistryUnavailable, match="refused"):
        nowhere.compares("rows")


@pytest.mark.newest_postgres
def test_a_wrong_password_ends_the_capture_as_a_wrong_setting_does(
    source: Source, daemon: Daemons, schema_registry: SchemaRegistry
) -> None:
    source.attach("tweets")
    with guarded(schema_registry.url) as url:
        settings = {"VIEWKEEPER_ENCODING": "avro", "VIEWKEEPER_SCHEMA_REGISTRY_URL": url}
        settings |= {"VIEWKEEPER_SCHEMA_REGISTRY_USER": "ann", "VIEWKEEPER_SCHEMA_REGISTRY_PASSWORD": "guessed"}
        capture = daemon("cdc", "run", settings=settings)
        assert capture.wait(60) == 2
    assert "access refused: who are you?" in capture.log_text()


@pytest.mark.newest_postgres
def test_a_captures_own_keys_are_its_own_where_the_registry_does_not_know_their_schema(
    source: Source, daemon: Daemons, schema_registry: SchemaRegistry
) -> None:
    """They would stay in the topic, taken for another program's."""
    source.run(insert_tweets(1, 10))
    source.attach("tweets")
    with behind(schema_registry.url) as url, registry(schema_registry.url) as known:
        source.as_json = AvroDecoding(known).json
        settings = {"VIEWKEEPER_ENCODING": "avro", "VIEWKEEPER_SCHEMA_REGISTRY_URL": url}
        capture = daemon("cdc", "run", settings=settings)
        source.wait_exact("tweets")
        source.run("TRUNCATE tweets")
        source.wait_exact("tweets")
        assert not capture.logged("foreign_keys")
        assert capture.terminate() == 0
