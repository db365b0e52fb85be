"""What a request asks of a reply besides the row: that it is another one than it has, or that it is new enough."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

ACCEPT = b"accept"
LAST_EVENT_ID = b"last-event-id"
IF_NONE_MATCH = b"if-none-match"
MIN_AS_OF = b"viewkeeper-min-as-of"

_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,6})(\d*))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DIGEST_BYTES = 12


def entity_tag(body: bytes) -> bytes:
    """Return a strong entity tag (RFC 9110, 8.8.3): the same for the same bytes, whichever process sends them."""
    return b'"%s"' % blake2b(body, digest_size=_DIGEST_BYTES).hexdigest().encode()


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Return whether an If-None-Match names the tag, weakly compared (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == b"*" or tag in _TAG.findall(if_none_match)


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return a request's header by its lower-case name, several as the list that they are; None without it."""
    values = [value for key, value in headers if key == name]
    return b", ".join(values) if values else None


def least_as_of(text: bytes) -> str:
    """Return the time that a Viewkeeper-Min-As-Of asks for as as-of times are written: they compare as texts.

    Raises ValueError if it is no RFC 3339 time of the years 1 to 9999. Finer than microseconds is rounded up.
    """
    found = _TIME.fullmatch(text.decode("latin-1").strip())
    if found is None:
        raise ValueError("it is no RFC 3339 time")
    seconds, micros, finer, zone = found.groups()
    try:
        time = datetime.fromisoformat(f"{seconds.upper()}.{(micros or '0').ljust(6, '0')}{zone.upper()}")
        time = time.astimezone(UTC) + timedelta(microseconds=1 if finer and finer.strip("0") else 0)
    except OverflowError as error:
        raise ValueError("its year is not one of 1 to 9999") from error
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
