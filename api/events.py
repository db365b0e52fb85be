"""The events of a row's stream, as `text/event-stream` has them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from api.conditional import entity_tag
from api.store import Reading
from projector.definition import View

GONE_TAG = b"gone"
GONE = b"event: gone\nid: gone\ndata: {}\n\n"
STILL_HERE = b": still here\n\n"
"""A comment: what can be said while there is nothing to say."""

Body = Callable[[Sequence[Any]], bytes]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a store knows of a key, as it is streamed: the event that shows it, of a kind, by its tag; and its as-of."""

    kind: str
    tag: bytes
    event: bytes
    as_of: str | None


def body_of(view: View) -> Body:
    """Return what makes a resource's JSON of its fields' values."""
    names = tuple(field.name for field in view.resource.fields)
    encode = msgspec.json.Encoder().encode
    return lambda values: encode(dict(zip(names, values, strict=True)))


def shown(reading: Reading, body: Body) -> Shown:
    """Return a reading as it is streamed."""
    if reading.values is None:
        return Shown("gone", GONE_TAG, GONE, reading.as_of)
    # One line: JSON has its line ends escaped.
    data = body(reading.values)
    tag = entity_tag(data).strip(b'"')
    return Shown("row", tag, b"event: row\nid: %s\ndata: %s\n\n" % (tag, data), reading.as_of)


def as_of_event(as_of: str | None) -> bytes:
    """Return the event that says what a stream reflects, null while that is unknown."""
    return b"event: as-of\ndata: %s\n\n" % msgspec.json.encode(as_of)
