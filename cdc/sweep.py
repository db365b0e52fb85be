"""The ghost sweep: the keys that a topic holds, so that those without a row can be found and deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from confluent_kafka import Message

from cdc.cursor import Sweep
from cdc.decoding import Decoding, shown
from cdc.errors import WireError
from cdc.records import RecordReader
from cdc.tables import CapturedTable
from runtime.settings import KafkaSettings

log = structlog.get_logger()


MOST_SHOWN = 200
"""So many characters of a key that may be any bytes are shown."""

_columns = msgspec.json.Decoder(dict[str, str | int | bool]).decode


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys that a topic holds, each with the texts of its columns, and the offsets before which all were read.

    `foreign` are those that are no object of the table's key columns, or not in the encoding. `next_offsets` is None
    with the last batch.
    """

    keys: Mapping[bytes, Sequence[str]]
    foreign: Sequence[bytes]
    next_offsets: tuple[int, ...] | None


class KeyReader:
    """Reads the keys of a topic's records that are no tombstones, from where a sweep has come to its end.

    A key may come more than once, or after its tombstone: whoever looks it up publishes its row or a tombstone, and
    either is right. Keys that another program wrote are passed over: nothing of ours could delete them, and they are
    there until the topic is compacted, whatever tombstone they got.
    """

    def __init__(
        self, settings: KafkaSettings, decoding: Decoding, table: CapturedTable, topic: str, sweep: Sweep
    ) -> None:
        self._decoding = decoding
        self._table = table
        self._names = tuple(column.name for column in table.key)
        self._foreign = 0
        self._first_foreign = b""
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
        texts = {key: self._texts(key) for key in keys}
        return Batch(
            keys={key: found for key, found in texts.items() if found is not None},
            foreign=[key for key, found in texts.items() if found is None],
            next_offsets=next_offsets,
        )

    def pass_over(self, keys: Sequence[bytes]) -> None:
        """Note keys that are none of the table's."""
        self._foreign += len(keys)
        self._first_foreign = self._first_foreign or next(iter(keys), b"")

    def tell(self) -> None:
        """Warn of what was passed over."""
        if self._foreign:
            log.warning(
                "foreign_keys",
                table=str(self._table.name),
                keys=self._foreign,
                first=shown(self._decoding, self._first_foreign)[:MOST_SHOWN],
                reason="another program wrote records to the topic whose keys are none of the table's: they stay",
                advice="viewkeeper-cdc reconcile names them, docs/reconcile.md says how to get rid of them",
            )

    def close(self) -> None:
        """Close the consumer."""
        self._reader.close()

    def _texts(self, key: bytes) -> tuple[str, ...] | None:
        """Return the texts of a key's columns, None if it is none of the table's."""
        try:
            (plain,) = self._decoding.keys_json([key])
            columns = _columns(plain)
        except ValueError:  # msgspec's errors are ValueErrors, too
            return None
        # str(True) is no text that Postgres would write, though one that it reads.
        return tuple(map(str, columns.values())) if tuple(columns) == self._names else None


def _living_key(record: Message) -> bytes | None:
    """Return a record's key, None for a tombstone."""
    key = record.key()
    return key if record.value() is not None and isinstance(key, bytes) else None


def key_columns(topic: str, keys: set[bytes]) -> list[list[str]]:
    """Return a topic's keys as one list of texts a key column; raise WireError if one is no key of the contract."""
    try:
        decoded = [_columns(key).values() for key in keys]
        return [[str(value) for value in column] for column in zip(*decoded, strict=True)]
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"topic {topic}: a key is no JSON object of the key's columns: {error}") from error
