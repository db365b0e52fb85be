"""Positions in the WAL: numbers inside, texts as Postgres writes them (`0/16B3748`) in cursors and statements."""

_HALF_BITS = 32


def lsn_number(text: str) -> int:
    """Read a position's text."""
    high, low = text.split("/")
    return int(high, 16) << _HALF_BITS | int(low, 16)


def lsn_text(number: int) -> str:
    """Write a position."""
    return f"{number >> _HALF_BITS:X}/{number & (1 << _HALF_BITS) - 1:X}"
