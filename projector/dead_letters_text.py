"""Dead letters for programs and for a terminal."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from projector.dead_letters import DeadLetter
from runtime.terminal import printable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LetterLine(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter in a list. `key` is text, with escapes for bytes that are none; null where the record has none."""

    id: int
    view: str
    version: int
    topic: str
    partition: int
    offset: int
    key: str | None
    reason: str
    dead_since: datetime


class LetterList(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters that were asked for, of `total` that there are."""

    total: int
    dead_letters: tuple[LetterLine, ...]


class WholeLetter(LetterLine, frozen=True, kw_only=True):
    """A dead letter with all that its record held; `value` as `key`, null for a tombstone; times null if unknown."""

    value: str | None
    key_base64: str | None
    value_base64: str | None
    written_at: datetime | None


def letter_list(letters: Sequence[DeadLetter], total: int) -> LetterList:
    """Return a list of dead letters, without their values."""
    lines = [
        LetterLine(
            id=letter.id,
            view=letter.view,
            version=letter.version,
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            key=_text(letter.key),
            reason=letter.reason,
            dead_since=letter.dead_since,
        )
        for letter in letters
    ]
    return LetterList(total=total, dead_letters=tuple(lines))


def whole_letter(letter: DeadLetter) -> WholeLetter:
    """Return a dead letter with all that it holds."""
    (line,) = letter_list([letter], 1).dead_letters
    return WholeLetter(
        **msgspec.structs.asdict(line),
        value=_text(letter.value),
        key_base64=_base64(letter.key),
        value_base64=_base64(letter.value),
        written_at=_time(letter.timestamp_ms),
    )


def list_text(found: LetterList) -> RenderableType:
    """Return a table of dead letters."""
    if not found.total:
        return Text("No dead letters.", style="green")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("id", "view", "topic, partition, offset", "key", "since", "reason"):
        table.add_column(column, overflow="fold")
    for one in found.dead_letters:
        place = f"{one.topic} {one.partition} {one.offset:,}"
        since = one.dead_since.isoformat(timespec="seconds")
        key, reason = _shown(one.key, "none"), printable(one.reason)
        table.add_row(str(one.id), f"{one.view} v{one.version}", place, key, since, reason)
    more = found.total - len(found.dead_letters)
    return Group(table, Text(f"and {more:,} more: --limit {found.total}")) if more else table


def whole_text(one: WholeLetter) -> RenderableType:
    """Return a dead letter, a line a field."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("id", str(one.id))
    table.add_row("view", f"{one.view}, version {one.version}")
    table.add_row("record", f"topic {one.topic} partition {one.partition} offset {one.offset:,}")
    table.add_row("written at", one.written_at.isoformat() if one.written_at else "not known")
    table.add_row("dead since", one.dead_since.isoformat())
    table.add_row("reason", printable(one.reason))
    table.add_row("key", _shown(one.key, "none"))
    table.add_row("value", _shown(one.value, "none: a tombstone"))
    return table


def _shown(text: str | None, nothing: str) -> str:
    return nothing if text is None else printable(text)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()


def _time(milliseconds: int | None) -> datetime | None:
    try:
        return None if milliseconds is None else _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
