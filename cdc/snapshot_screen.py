"""What the `snapshot` command shows while it waits: a live line a table on a terminal, else a line a change."""

from collections.abc import Iterable

import click
from rich.live import Live
from rich.table import Table

from cdc.progress import Phase
from cdc.requests import Look
from cdc.wire import TableName
from runtime.terminal import plain_console

NOT_RUNNING = "no capture is running; its start begins with the requests: viewkeeper-cdc run"


def show(looks: Iterable[Look], *, on_stderr: bool) -> None:
    """Show looks until they end, on standard error where standard output is a program's."""
    console = plain_console(stderr=on_stderr)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            for look in looks:
                live.update(live_table(look))
    else:
        _print_changes(looks, on_stderr=on_stderr)


def live_table(look: Look) -> Table:
    """Return a line a table, and one that says so if no capture is running."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for step in look.steps:
        table.add_row(str(step.table), step.words, style="green" if step.is_done else None)
    if look.is_running is False:
        table.add_row("", NOT_RUNNING, style="yellow")
    return table


def _print_changes(looks: Iterable[Look], *, on_stderr: bool) -> None:
    said: dict[TableName, Phase | None] = {}
    was_running: bool | None = None
    for look in looks:
        for step in look.steps:
            if said.get(step.table) != step.phase:
                click.echo(f"{step.table}: {step.words}", err=on_stderr)
                said[step.table] = step.phase
        if look.is_running is False and was_running is not False:
            click.echo(NOT_RUNNING, err=on_stderr)
        was_running = look.is_running
