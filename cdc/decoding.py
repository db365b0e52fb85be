"""From records back to keys and rows: the one seam behind which the encodings of a topic are read."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec


class Decoding(Protocol):
    """Reads keys and rows; both raise ValueError for bytes that are not of the encoding."""

    nul: bytes
    """What a record's bytes hold if one of its texts has a NUL character."""

    def keys_json(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return the JSON of records' keys: the same bytes for the same key, whatever the encoding."""

    def reader(self, struct: type[msgspec.Struct]) -> Callable[[bytes], Any]:
        """Return a function that reads a key's or a row's columns into a struct with fields of their names."""


def shown(decoding: Decoding, key: bytes) -> str:
    """Return a key's JSON, or what can be shown of one that is none of the encoding."""
    with suppress(ValueError):
        (key,) = decoding.keys_json([key])
    return key.decode(errors="replace")


class JsonDecoding:
    """Keys and rows in JSON, which are read as they are."""

    nul = b"\\u0000"

    def keys_json(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return the keys."""
        return keys

    def reader(self, struct: type[msgspec.Struct]) -> Callable[[bytes], Any]:
        """Return msgspec's decoder."""
        return msgspec.json.Decoder(struct).decode
