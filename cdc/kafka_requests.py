"""Requests to a capture whose source must not be written to: records of `<prefix>.requests`, which its leader reads."""

import secrets
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import structlog
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient

from cdc.look_back import Order
from cdc.records import RecordReader
from cdc.topics import end_offsets
from cdc.wire import TableName, requests_topic_name
from runtime.errors import ConfigurationError
from runtime.kafka import REQUEST_SECONDS, producer, translated
from runtime.settings import KafkaSettings

log = structlog.get_logger()

REQUESTS_CONFIG = {"cleanup.policy": "delete", "retention.ms": str(7 * 24 * 3600 * 1000)}
_MOST_RECORDS = 1_000
# Brokers and producers take a megabyte a record unless they are told otherwise; long keys come to more.
_MOST_KEY_BYTES = 256 * 1024
_INIT_SECONDS = 30.0


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A table that is to be read anew, or some `keys` of it, each with one text a key column as its JSON has them."""

    table: str
    keys: tuple[Order, ...] | None = None


class KeysRequest(NamedTuple):
    """Keys of a table that are to be read again."""

    number: int
    keys: tuple[Order, ...]


class RequestTopic:
    """Writes a capture's requests, and reads them; a request's number is its offset and one.

    `newest` has the newest request for a snapshot of each table, by the table's name, and `asked_at` its time;
    `newest_keys` has the newest one for keys.
    """

    def __init__(self, settings: KafkaSettings, client: AdminClient, capture: str) -> None:
        self._settings = settings
        self._client = client
        self._capture = capture
        self._topic = requests_topic_name(settings.topic_prefix)
        self._reader: RecordReader | None = None
        self._keys: dict[str, deque[KeysRequest]] = defaultdict(deque)
        self.newest: dict[str, int] = {}
        self.newest_keys: dict[str, int] = {}
        self.asked_at: dict[str, datetime] = {}

    def read(self) -> None:
        """Read what was asked for up to now; from the topic's beginning at first: the cursor knows what is done."""
        end = end_offsets(self._client, self._topic, 1, isolation=IsolationLevel.READ_COMMITTED)
        if self._reader is None:
            self._reader = RecordReader(self._settings, self._topic, (0,), name="requests")
        while self._reader.is_behind(end):
            for record in self._reader.read(_MOST_RECORDS):
                key, value, offset = record.key(), record.value(), record.offset() or 0
                if key == self._capture.encode() and isinstance(value, bytes):
                    request = self._decoded(value, record.partition(), offset)
                    if request is not None:
                        self._take(request, offset, record.timestamp()[1])

    def next_keys(self, table: str, *, done: int) -> KeysRequest | None:
        """Return the oldest request for keys of a table that is newer than `done`; what is older is forgotten."""
        waiting = self._keys[table]
        while waiting and waiting[0].number <= done:
            waiting.popleft()
        return waiting[0] if waiting else None

    def ask_for_snapshots(self, tables: Sequence[TableName]) -> tuple[int, ...]:
        """Ask for snapshots of all tables or none; return the requests' numbers."""
        return self._send([Request(table=str(table)) for table in tables])

    def ask_for_keys(self, table: TableName, keys: Sequence[Sequence[str]]) -> int:
        """Ask for keys from the topic, a list a key column, to be read and published; return the last request's number.

        They are done in the order of their numbers.
        """
        return self._send([Request(table=str(table), keys=some) for some in _split(zip(*keys, strict=True))])[-1]

    def close(self) -> None:
        """Close the reader."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _decoded(self, value: bytes, partition: int | None, offset: int) -> Request | None:
        try:
            return msgspec.json.decode(value, type=Request)
        except ValueError as error:  # msgspec's errors are ValueErrors, too
            # Nothing that was published hangs on a request, and the record stays until the topic's retention is over.
            log.warning(
                "no_request",
                topic=self._topic,
                partition=partition,
                offset=offset,
                reason=f"{error}: it is passed over; is another program writing to this topic?",
                advice="if somebody has asked for a snapshot there, ask for it by: viewkeeper-cdc snapshot TABLE",
            )
            return None

    def _take(self, request: Request, offset: int, asked_at_ms: int) -> None:
        if request.keys is None:
            self.newest[request.table] = offset + 1
            self.asked_at[request.table] = datetime.fromtimestamp(asked_at_ms / 1000, UTC)
        elif request.keys:
            self._keys[request.table].append(KeysRequest(offset + 1, request.keys))
            self.newest_keys[request.table] = offset + 1

    def _send(self, requests: Sequence[Request]) -> tuple[int, ...]:
        with translated(f"topic {self._topic}"):
            if self._topic not in self._client.list_topics(timeout=REQUEST_SECONDS).topics:
                raise ConfigurationError(
                    f"topic {self._topic} is not there: the capture makes it when it starts; run: viewkeeper-cdc run"
                )
            # In a transaction, so that all or none are asked for.
            name = f"viewkeeper-cdc-requests-{secrets.token_hex(8)}"
            sender = producer(self._settings, transactional_id=name, name="viewkeeper-cdc-requests")
            sender.init_transactions(_INIT_SECONDS)
            sender.begin_transaction()
            offsets: list[int] = []
            for request in requests:
                sender.produce(
                    self._topic,
                    msgspec.json.encode(request),
                    self._capture,
                    on_delivery=lambda _error, message: offsets.append(message.offset() or 0),
                )
            sender.commit_transaction(_INIT_SECONDS)
        return tuple(offset + 1 for offset in sorted(offsets))


def _split(keys: Iterable[Order]) -> Iterator[tuple[Order, ...]]:
    """Yield keys in parts that a record has room for, by the bytes of their JSON."""
    some, size = list[Order](), 0
    for key in keys:
        key_bytes = len(msgspec.json.encode(key)) + 1
        if some and size + key_bytes > _MOST_KEY_BYTES:
            yield tuple(some)
            some, size = [], 0
        some.append(key)
        size += key_bytes
    yield tuple(some)
