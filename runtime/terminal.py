"""Where commands print for people."""

import os

from rich.console import Console

_UNBOUNDED = 10_000
"""So wide is what is no terminal, in columns: a table in a pipe or a file has each row in one line."""


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is, in the terminal's width; elsewhere in that of COLUMNS, or in any."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _UNBOUNDED
    return console
