import pytest

from api.keys import array_literals, canonical_key
from projector.definition import ColumnType

NOT_CANONICAL = {
    ColumnType.BIGINT: [
        b"", b"007", b"00", b"-0", b"+1", b"1e3", b"1.0", b"0x1", b"1_000", b" 1", b"1%20", b"%201", b"1%0A", b"%00",
        b"1%00", b"--1", b"-", b"abc", b"\xef\xbc\x91", b"%EF%BC%91", b"%D9%A1", b"%FF", b"%", b"%zz",
        b"9223372036854775808", b"-9223372036854775809", b"12345678901234567890", b"1" * 5000,
    ],
    ColumnType.INTEGER: [b"2147483648", b"-2147483649", b"01"],
    ColumnType.UUID: [
        b"", b"0F5E9C1A-2B3C-4D5E-8F90-A1B2C3D4E5F6", b"0f5e9c1a2b3c4d5e8f90a1b2c3d4e5f6",
        b"{0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6}", b"0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6%0A",
    ],
    ColumnType.TEXT: [b"%", b"a%2", b"%zz", b"a%00b", b"%C3%28", b"%ED%A0%80", b"\xff"],
}  # fmt: skip

CANONICAL = {
    ColumnType.BIGINT: {
        b"0": "0", b"7": "7", b"-1": "-1", b"9223372036854775807": "9223372036854775807",
        b"-9223372036854775808": "-9223372036854775808", b"%31%32": "12",
    },
    ColumnType.INTEGER: {b"2147483647": "2147483647", b"-2147483648": "-2147483648"},
    ColumnType.UUID: {b"0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6": "0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6"},
    ColumnType.TEXT: {
        b"007": "007", b"a+b": "a+b", b"a%2Fb": "a/b", b"%2541": "%41", b"%20": " ", b"caf%C3%A9": "café",
        b"%F0%9F%98%80": "😀", b'a"\\{},': 'a"\\{},',
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("column_type", "segment"), [(kind, segment) for kind, segments in NOT_CANONICAL.items() for segment in segments]
)
def test_other_spellings_are_no_key(column_type: ColumnType, segment: bytes) -> None:
    assert canonical_key(column_type, segment) is None


@pytest.mark.parametrize(
    ("column_type", "segment", "key"),
    [(kind, segment, key) for kind, spellings in CANONICAL.items() for segment, key in spellings.items()],
)
def test_the_canonical_spelling_is_the_key(column_type: ColumnType, segment: bytes, key: str) -> None:
    assert canonical_key(column_type, segment) == key


def test_keys_travel_as_array_literals() -> None:
    assert array_literals([], columns=2) == [b"{}", b"{}"]
    assert array_literals([("7",), ("-1",)], columns=1) == [b'{"7","-1"}']
    keys = [('a"\\{},', "1"), ("", "2"), ("NULL", "3"), ("é", "4")]
    assert array_literals(keys, columns=2) == ['{"a\\"\\\\{},","","NULL","é"}'.encode(), b'{"1","2","3","4"}']
