"""The cursor: how far each table of a capture has been published, and from when on that holds.

One record a capture in `<prefix>.cursor`, written last in the same Kafka transaction as the changes that it covers.
"""

from datetime import datetime

import msgspec

from cdc.errors import WireError


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """Every change of a table that was committed by `time` lies before `next_offsets`.

    "Committed by" means that COMMIT had returned by `time` on the source's clock. `next_offsets` has one entry a
    partition, in order. `uncertain` is set while the source's clock is behind an earlier watermark's time.
    """

    time: datetime
    next_offsets: tuple[int, ...]
    uncertain: bool = False


class TableCursor(msgspec.Struct, frozen=True, kw_only=True):
    """One table's part of a cursor.

    `attachment` numbers the change log that `snapshot` is a position in: the `pg_snapshot` up to which changes have
    been published. `resume_after` is the key (as text, one entry a key column) of the last row that the table's own
    snapshot has published, while `complete` is false. `next_offsets` is the next offset of each partition of `topic`
    as known by this capture's delivery reports.
    """

    topic: str
    attachment: int
    snapshot: str
    complete: bool
    next_offsets: tuple[int, ...]
    resume_after: tuple[str, ...] | None = None
    watermark: Watermark | None = None


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
