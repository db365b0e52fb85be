"""Where commands print for people."""

import os
import re

from rich.console import Console

_UNBOUNDED = 10_000
"""So wide is what is no terminal, in columns: a table in a pipe or a file has each row in one line."""

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is, in the terminal's width; elsewhere in that of COLUMNS, or in any."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _UNBOUNDED
    return console


def printable(text: str) -> str:
    """Return a text of a record or a row with escapes for what a terminal would obey instead of showing it."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
