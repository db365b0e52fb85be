"""Values of Avro's logical types: the numbers that they are, from the texts that JSON has for them, and back.

Infinite times are the largest and the smallest number, as Postgres itself stores them.
"""

import re
from base64 import b64encode
from datetime import UTC, date, datetime, timedelta

_EPOCH, _EPOCH_WITHOUT_ZONE = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY_MICROS = 24 * 60 * 60 * 1_000_000
_FIRST_DAY, _LAST_DAY = date.min.toordinal() - _EPOCH_DAY, date.max.toordinal() - _EPOCH_DAY
_LONG_INFINITY, _INT_INFINITY = 2**63 - 1, 2**31 - 1

_DATE = re.compile(r"(?P<year>\d{4,})-(?P<month>\d\d)-(?P<day>\d\d)(?P<bc> BC)?")
_TIMESTAMP = re.compile(
    r"(?P<year>\d{4,})-(?P<month>\d\d)-(?P<day>\d\d) (?P<time>\d\d:\d\d:\d\d(?:\.\d+)?)(?:\+00)?(?P<bc> BC)?"
)


def timestamp_micros(text: str) -> int:
    """Return the microseconds since 1970 of a timestamp in UTC, or without a zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return _far_micros(text)
    since = found - (_EPOCH_WITHOUT_ZONE if found.tzinfo is None else _EPOCH)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def timestamp_text(micros: int, *, zone: bool) -> str:
    """Return the wire's text of a timestamp, with a zone (UTC) or without."""
    if micros in (_LONG_INFINITY, -_LONG_INFINITY - 1):
        return "infinity" if micros > 0 else "-infinity"
    day, rest = divmod(micros, _DAY_MICROS)
    if _FIRST_DAY <= day <= _LAST_DAY:
        found = (_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=None)
        return found.isoformat(timespec="microseconds") + ("Z" if zone else "")
    era, year_to_day = _calendar(day)
    return f"{year_to_day} {time_text(rest)}{'+00' if zone else ''}{era}"


def date_days(text: str) -> int:
    """Return the days since 1970 of a date."""
    if text.endswith("infinity"):
        return _infinity(text, _INT_INFINITY)
    parts = _DATE.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text!r} is no date")
    return _days(parts)


def date_text(days: int) -> str:
    """Return the wire's text of a date."""
    if days in (_INT_INFINITY, -_INT_INFINITY - 1):
        return "infinity" if days > 0 else "-infinity"
    era, year_to_day = _calendar(days)
    return f"{year_to_day}{era}"


def time_micros(text: str) -> int:
    """Return the microseconds since midnight of a time; 24:00:00 is a whole day."""
    hours, minutes, seconds = text.split(":")
    whole, _, fraction = seconds.partition(".")
    return ((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * 1_000_000 + int(fraction.ljust(6, "0"))


def time_text(micros: int) -> str:
    """Return the wire's text of a time, without trailing zeros."""
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}".rstrip("0") if fraction else text


def decimal_bytes(text: str) -> bytes:
    """Return the unscaled number of a numeric, whose text has as many digits behind the point as the type."""
    if text == "NaN":
        raise ValueError("a decimal cannot be NaN")
    unscaled = int(text.replace(".", ""))
    return unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)


def decimal_text(unscaled: bytes, scale: int) -> str:
    """Return the wire's text of a decimal."""
    number = int.from_bytes(unscaled, "big", signed=True)
    digits = str(abs(number)).rjust(scale + 1, "0")
    text = f"{digits[:-scale]}.{digits[-scale:]}" if scale else digits
    return f"-{text}" if number < 0 else text


def float_of(json: bytes) -> float | None:
    """Return a float of its JSON, which is a text where JSON has no number; None of null."""
    # Not msgspec's number: it takes -0 for an integer.
    return None if json == b"null" else float(json.strip(b'"'))


def float_json(value: float) -> float | str:
    """Return what JSON has for a float."""
    if value - value == 0:
        return value
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]


def bytes_text(value: bytes) -> str:
    """Return the wire's text of bytes."""
    return b64encode(value).decode()


def _far_micros(text: str) -> int:
    """Return the microseconds of a timestamp that is infinite, or of a year that ISO 8601 has no four digits for."""
    if text.endswith("infinity"):
        return _infinity(text, _LONG_INFINITY)
    parts = _TIMESTAMP.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text!r} is no timestamp")
    micros = _days(parts) * _DAY_MICROS + time_micros(parts["time"])
    if micros >= _LONG_INFINITY:
        raise ValueError(f"{text!r} is more microseconds than 64 bits hold")
    return micros


def _infinity(text: str, largest: int) -> int:
    return -largest - 1 if text.startswith("-") else largest


def _days(parts: re.Match[str]) -> int:
    """Return the days since 1970: in the Gregorian calendar each 400 years are alike, so any year can be a near one."""
    year = 1 - int(parts["year"]) if parts["bc"] else int(parts["year"])
    cycles, near = divmod(year, 400)
    return date(near + 400, int(parts["month"]), int(parts["day"])).toordinal() - _EPOCH_DAY + (cycles - 1) * 146_097


def _calendar(days: int) -> tuple[str, str]:
    """Return a day's era, empty or that before Christ, and its year, month and day."""
    cycles, near = divmod(days + _EPOCH_DAY - 1, 146_097)
    found = date.fromordinal(near + 1)
    year = found.year + cycles * 400
    return (" BC", f"{1 - year:04}-{found:%m-%d}") if year < 1 else ("", f"{year:04}-{found:%m-%d}")
