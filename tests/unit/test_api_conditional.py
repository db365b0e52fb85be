"""Entity tags and the as-of that a request asks for."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.conditional import MIN_AS_OF, entity_tag, header, least_as_of, matches

TAG = entity_tag(b"body")
TIMES = st.datetimes(
    datetime(1, 1, 3),
    datetime(9999, 12, 29),
    timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


def test_a_tag_is_of_the_bytes() -> None:
    assert entity_tag(b"body") == TAG
    assert entity_tag(b"body ") != TAG


@pytest.mark.parametrize("known", [TAG, b"W/" + TAG, b' "a" , ' + TAG, b"*", b'"a,b",' + TAG])
def test_a_tag_is_named_by_a_list_with_it(known: bytes) -> None:
    assert matches(known, TAG)


@pytest.mark.parametrize("known", [b"", b'""', b'"body"', TAG.strip(b'"'), b"**", b'"' + TAG])
def test_a_tag_is_not_named_by_anything_else(known: bytes) -> None:
    assert not matches(known, TAG)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"2026-11-22T19:40:43Z", "2026-11-22T19:40:43.000000Z"),
        (b" 2026-11-22t19:40:43.5z ", "2026-11-22T19:40:43.500000Z"),
        (b"2026-11-22T19:40:43.399031+01:30", "2026-11-22T18:10:43.399031Z"),
        (b"2026-11-22T19:40:43.399031000Z", "2026-11-22T19:40:43.399031Z"),
        (b"2026-11-22T19:40:43.399031001Z", "2026-11-22T19:40:43.399032Z"),
        (b"0044-03-15T00:00:00Z", "0044-03-15T00:00:00.000000Z"),
    ],
)
def test_a_time_is_written_as_as_of_times_are(text: bytes, time: str) -> None:
    assert least_as_of(text) == time


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"now",
        b"2026-11-22",
        b"2026-11-22T19:40:43",
        b"2026-11-22 19:40:43Z",
        b"2026-11-22T19:40:60Z",
        b"2026-11-22T19:40:43Z, 2026-11-22T19:40:43Z",
        b"9999-12-31T23:59:59.9999999Z",
        b"0001-01-01T00:00:00+00:01",
        "\uff12026-11-22T19:40:43Z".encode(),
    ],
)
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the caller's
        least_as_of(text)


@given(TIMES, TIMES)
def test_times_compare_as_their_texts(one: datetime, other: datetime) -> None:
    texts = [least_as_of(time.isoformat().encode()) for time in (one, other)]
    assert (texts[0] <= texts[1]) == (one <= other)


def test_a_header_that_is_repeated_is_a_list() -> None:
    headers = [(b"a", b"1"), (MIN_AS_OF, b"x"), (MIN_AS_OF, b"y")]
    assert header(headers, MIN_AS_OF) == b"x, y"
    assert header(headers, b"b") is None
