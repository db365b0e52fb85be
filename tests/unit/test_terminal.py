"""Where commands print: what is read by a program, or kept in a file, has each row in one line."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from rich.table import Table

from projector.dead_letters import DeadLetter
from projector.dead_letters_text import letter_list, list_text, whole_letter, whole_text
from runtime.terminal import plain_console


@pytest.mark.parametrize(("environment", "lines"), [({}, 1), ({"COLUMNS": "100"}, 3)])
def test_a_wide_row_stays_one_line_where_there_is_no_terminal(
    environment: Mapping[str, str], lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    table = Table(box=None, show_header=False)
    table.add_column(overflow="fold")
    table.add_row("x" * 250)
    plain_console().print(table)
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_what_a_terminal_would_obey_in_a_bad_record_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    letter = DeadLetter(
        id=1,
        view="any",
        version=1,
        topic="any",
        partition=0,
        offset=0,
        key=b"\x1b]0;title\x07",
        value=b"{\n\x1b[2J\xc2\x9b31m\r\xc3\xa9}",
        timestamp_ms=None,
        reason="no time: \x1b[31m",
        dead_since=datetime(2026, 1, 31, tzinfo=UTC),
    )
    console = plain_console()
    console.print(list_text(letter_list([letter], 1)))
    console.print(whole_text(whole_letter(letter)))
    shown = capsys.readouterr().out
    assert all(text in shown for text in (r"\x1b]0;title\x07", r"\x1b[2J\x9b31m\ré}", r"no time: \x1b[31m"))
    assert not any(control in shown for control in "\x1b\x07\x9b\r")
