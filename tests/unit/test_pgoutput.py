"""Messages of pgoutput, made by hand as the manual describes them: the keys that they name."""

from struct import pack

import pytest

from cdc import pgoutput
from cdc.lsn import lsn_number, lsn_text
from cdc.pgoutput import KeyColumns
from cdc.visibility import visibility

OID = 16_500
FIRST = KeyColumns((0,), is_sure=True)


def _row(*values: str | None) -> bytes:
    """Make a row; None is NULL, "unchanged" a value that is not sent."""
    parts = [pack(">H", len(values))]
    for value in values:
        if value in (None, "unchanged"):
            parts.append(b"n" if value is None else b"u")
        else:
            parts.append(b"t" + pack(">I", len(value.encode())) + value.encode())
    return b"".join(parts)


def _change(kind: bytes, *tuples: bytes) -> bytes:
    return kind + pack(">I", OID) + b"".join(tuples)


def _relation(*columns: tuple[str, int]) -> bytes:
    parts = [pack(">BB", flag, ord("x"))[:1] + name.encode() + b"\0" + pack(">Ii", 20, -1) for name, flag in columns]
    return b"R" + pack(">I", OID) + b"public\0t\0d" + pack(">H", len(columns)) + b"".join(parts)


@pytest.mark.parametrize(
    ("message", "columns", "expected"),
    [
        (_change(b"I", b"N", _row("7", "x")), FIRST, [("7",)]),
        (_change(b"I", b"N", _row("ä" * 300, "b", "c")), KeyColumns((2, 0), is_sure=True), [("c", "ä" * 300)]),
        (_change(b"I", b"N", _row(None, "unchanged", "8")), KeyColumns((2,), is_sure=True), [("8",)]),
        (_change(b"U", b"N", _row("7", "x")), FIRST, [("7",)]),
        (_change(b"U", b"K", _row("7", None), b"N", _row("8", "x")), FIRST, [("7",), ("8",)]),
        (_change(b"U", b"O", _row("7", "x"), b"N", _row("8", "x")), FIRST, [("7",), ("8",)]),
        (_change(b"U", b"K", _row("7", None), b"N", _row("unchanged", "x")), FIRST, [("7",), ("7",)]),
        (_change(b"U", b"N", _row("unchanged", "x")), FIRST, None),
        (_change(b"U", b"N", _row("7", "x")), KeyColumns((0,), is_sure=False), None),
        (_change(b"D", b"K", _row("7", None)), FIRST, [("7",)]),
        (_change(b"D", b"K", _row(None, "x")), FIRST, None),
    ],
)
def test_the_keys_that_a_change_names(
    message: bytes, columns: KeyColumns, expected: list[tuple[str, ...]] | None
) -> None:
    assert pgoutput.keys(message, columns) == expected
    assert pgoutput.relation_oid(message) == OID


def test_a_relations_key_is_found_by_name_and_is_sure_where_the_identity_has_it() -> None:
    relation = pgoutput.relation(_relation(("a", 1), ("b", 0), ("c", 1)))
    assert relation.oid == OID
    assert pgoutput.key_columns(relation, ("c", "a")) == KeyColumns((2, 0), is_sure=True)
    assert pgoutput.key_columns(relation, ("b",)) == KeyColumns((1,), is_sure=False)
    assert pgoutput.key_columns(relation, ("gone",)) is None


def test_what_frames_changes() -> None:
    assert pgoutput.begin(b"B" + pack(">qqI", 1000, 5, 4_294_967_295)) == pgoutput.Begin(1000, 4_294_967_295)
    assert pgoutput.commit(b"C\0" + pack(">qqq", 1000, 1040, 5)) == pgoutput.Commit(1040)
    assert pgoutput.truncate(b"T" + pack(">IB2I", 2, 1, 7, 8)) == pgoutput.Truncate((7, 8))
    told = b"M\1" + pack(">q", 9) + b"viewkeeper\0" + pack(">I", 2) + b"{}"
    assert pgoutput.message(told) == pgoutput.Message("viewkeeper", b"{}", is_transactional=True)


def test_a_position_in_the_wal_is_read_and_written() -> None:
    for text in ("0/0", "0/16B3748", "1A/FFFFFFFF"):
        assert lsn_text(lsn_number(text)) == text
    assert lsn_number("1/0") == 2**32


@pytest.mark.parametrize(
    ("snapshot", "xid", "expected"),
    [
        ("10:20:", 19, True),
        ("10:20:", 20, False),
        ("10:20:12,15", 15, False),
        ("10:20:12,15", 9, True),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 7, True),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 6, False),
        (f"{2**32 + 5}:{2**32 + 9}:", 2**32 - 1, True),
        (f"{2**32 - 5}:{2**32 - 2}:", 3, False),
    ],
)
def test_a_snapshot_sees_what_has_ended_also_where_xids_wrap(snapshot: str, xid: int, expected: object) -> None:
    assert visibility(snapshot).sees(xid) is expected


@pytest.mark.parametrize(
    ("snapshot", "before", "expected"),
    [("7:7:", 7, True), ("7:7:", 8, False), ("5:9:5,8", 5, True), ("5:9:5,8", 6, False)],
)
def test_transactions_before_an_xid_have_ended_if_the_oldest_open_one_is_not_before_it(
    snapshot: str, before: int, expected: bool
) -> None:
    assert visibility(snapshot).has_ended(before) is expected
