"""The ghost sweep: the keys that a topic holds, so that those without a row can be found and deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from confluent_kafka import Message

from cdc.cursor import Sweep
from cdc.decoding import Decoding
from cdc.errors import WireError
from cdc.records import RecordReader
from runtime.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys that a topic holds, as one list of texts a key column, and the offsets before which all were read.

    `next_offsets` is None with the last batch.
    """

    keys: Sequence[Sequence[str]]
    next_offsets: tuple[int, ...] | None


class KeyReader:
    """Reads the keys of a topic's records that are no tombstones, from where a sweep has come to its end.

    A key may come more than once, or after its tombstone: whoever looks it up publishes its row or a tombstone, and
    either is right.
    """

    def __init__(self, settings: KafkaSettings, decoding: Decoding, topic: str, sweep: Sweep) -> None:
        self._decoding = decoding
        self._topic = topic
        self._ends = sweep.end_offsets
        self._reader = RecordReader(settings, topic, sweep.next_offsets, name="sweep")

    def batch(self, most_records: int) -> Batch:
        """Read so many records at most; raise RetryableError if none comes for long."""
        keys: set[bytes] = set()
        read = 0
        while read < most_records and self._reader.is_behind(self._ends):
            records = self._reader.read(most_records - read)
            read += len(records)
            keys.update(filter(None, map(_living_key, records)))
        next_offsets = self._reader.next_offsets if self._reader.is_behind(self._ends) else None
        return Batch(key_columns(self._topic, self._plain(keys)), next_offsets)

    def _plain(self, keys: set[bytes]) -> set[bytes]:
        """Return keys as their JSON."""
        try:
            return set(self._decoding.keys_json(list(keys)))
        except ValueError as error:
            raise WireError(f"topic {self._topic}: a key cannot be read: {error}") from error

    def close(self) -> None:
        """Close the consumer."""
        self._reader.close()


def _living_key(record: Message) -> bytes | None:
    """Return a record's key, None for a tombstone."""
    key = record.key()
    return key if record.value() is not None and isinstance(key, bytes) else None


def key_columns(topic: str, keys: set[bytes]) -> list[list[str]]:
    """Return a topic's keys as one list of texts a key column; raise WireError if one is no key of the contract."""
    try:
        decoded = [msgspec.json.decode(key, type=dict[str, str | int | bool]).values() for key in keys]
        # str(True) is no text that Postgres would write, though one that it reads.
        return [[str(value) for value in column] for column in zip(*decoded, strict=True)]
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"topic {topic}: a key is no JSON object of the key's columns: {error}") from error
