"""Where commands print: what is read by a program, or kept in a file, has each row in one line."""

from collections.abc import Mapping

import pytest
from rich.table import Table

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
