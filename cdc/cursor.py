"""The cursor: how far each table of a capture has been published, and from when on that holds.

One record a capture in `<prefix>.cursor`, written last in the same Kafka transaction as the changes that it covers.
"""

from datetime import datetime

import msgspec

from cdc.errors import WireError


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """Every change of a table that was committed by `time` lies before `next_offsets`.

    "Committed by" means that COMMIT had returned by `time` on the source's clock. `next_offsets` has one entry a
    partition, in order. `uncertain` is set while the source's clock is behind an earlier watermark's time, and by a
    source that may not have seen every change: the time is an estimate then.
    """

    time: datetime
    next_offsets: tuple[int, ...]
    uncertain: bool = False


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How far a table's own snapshot has been published.

    `resume_after` is the key of the last row published, one text a key column, None before the first chunk; `rows` is
    their number since `began`.
    """

    began: datetime
    resume_after: tuple[str, ...] | None = None
    rows: int = 0


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """How far the keys that the topic held below `end_offsets` have been looked up: below `next_offsets`.

    `end_offsets` is empty at first, and while records of before are still on their way to the topic: where they end is
    not known yet.
    """

    next_offsets: tuple[int, ...]
    end_offsets: tuple[int, ...]


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What changes with a table when its rows change without a trigger that fires.

    `shape` stands for columns, partitions and triggers, `files` for the files that hold the rows.
    """

    shape: str
    files: str


class TableCursor(msgspec.Struct, frozen=True, kw_only=True):
    """One table's part of a cursor.

    `position` says up to where changes have been published, in words of the source: the `pg_snapshot` of a poll, a
    place in the WAL, or the last row polled; None while the table waits to be read anew. `attachment` numbers what it
    is a position in. `complete` says that the topic has equalled the table since its own snapshot: nothing is
    `reading` or to `sweep`. `next_offsets` is the next offset of each partition of `topic` as known by this capture.
    `key` names and types the key columns, `labels` has those of the enums among them. `request` is the newest request
    for a snapshot that was begun; `held_back` lists the keys (JSON) of rows that are too large. `encoding` is how the
    topic was written; with Avro each of its keys begins with the id `key_schema`. `pass_began` is there with sources
    that may miss changes: when the newest reading of all rows began, by whose end everything is published that was
    committed by then.
    """

    topic: str
    attachment: int
    position: str | None
    complete: bool
    next_offsets: tuple[int, ...]
    topic_id: str = ""
    key: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    fingerprint: Fingerprint | None = None
    reading: Reading | None = None
    sweep: Sweep | None = None
    watermark: Watermark | None = None
    request: int = 0
    held_back: tuple[str, ...] = ()
    encoding: str = "json"
    key_schema: int | None = None
    pass_began: datetime | None = None


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """A capture's position in its source. `token` is the random mark of the flush that it was published after."""

    capture: str
    token: str
    tables: dict[str, TableCursor]

    def encode(self) -> bytes:
        """Return the cursor record's value."""
        return _encoder.encode(self)


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(Cursor)


def decode_cursor(value: bytes, *, where: str) -> Cursor:
    """Read a cursor record's value; raise WireError that begins with `where` if it is none."""
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError as error:
        raise WireError(f"{where}: not a cursor record: {error}; is another program writing to this topic?") from error
