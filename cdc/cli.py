"""`viewkeeper-cdc`: run the capture, attach tables to it and detach them, ask for snapshots, show the status."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import click
import msgspec
import psycopg
from pydantic import ValidationError
from rich.console import Console

from cdc.attachment import attach, detach
from cdc.daemon import run_session
from cdc.requests import follow, request_snapshots
from cdc.snapshot_screen import show
from cdc.status import read_status
from cdc.status_source import STATUS_SESSION, StatusSource
from cdc.status_text import status_text
from cdc.table_options import Level, TableOptions, table_options
from cdc.tables import check_source
from cdc.triggers import SESSION
from cdc.watching import CursorTail, LeaderWatch
from cdc.wire import TableName
from runtime.cli import run_command, settings_epilog, start
from runtime.daemon import keep_running
from runtime.health import Health, health_listener
from runtime.kafka import admin
from runtime.postgres import connect, describe, translated
from runtime.settings import CaptureSettings, CdcSettings, StatusSettings
from runtime.stop import stop_on_signals


@click.group()
def commands() -> None:
    """Capture changes of Postgres tables into compacted Kafka topics."""


@commands.command(epilog=settings_epilog(CdcSettings))
def run() -> None:
    """Run the capture until SIGTERM or Ctrl-C; a second instance waits as its standby."""
    settings = start(CdcSettings)
    health = Health()
    with stop_on_signals() as stop, health_listener(settings.health_host, settings.cdc_health_port, health):
        keep_running(lambda: run_session(settings, stop, health), stop)


@commands.command("attach", epilog=settings_epilog(CaptureSettings))
@click.argument("tables", nargs=-1, metavar="[TABLE…]")
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    help="triggers fire once a statement (the default) or a row",
)
@click.option("--key", metavar="a,b", help="columns of a unique index; the primary key when left out")
@click.option("--columns", metavar="a,b", help="no other column leaves the database; all of them when left out")
@click.option("--masks", metavar="a,b", help="columns that leave it as a hash under VIEWKEEPER_CDC_MASK_KEY")
def attach_tables(
    tables: tuple[str, ...], *, level: str | None, key: str | None, columns: str | None, masks: str | None
) -> None:
    """Attach TABLEs (name or schema.name) to the capture: triggers log their changes from now on.

    Without TABLE, attach those that VIEWKEEPER_CDC_TABLES names, as its file says.
    """
    with _source() as (settings, connection, where):
        lists = {"key": key, "columns": columns, "masks": masks}
        for table in _wanted(settings, tables, level, lists):
            new = attach(
                connection,
                settings.cdc_name,
                table.name,
                where=where,
                level=table.level,
                key=table.key,
                columns=table.columns,
                masks=table.masks,
            )
            click.echo(f"{table.name}: {'attached' if new else 'was attached already'}")


def _wanted(
    settings: CaptureSettings, tables: tuple[str, ...], level: str | None, lists: Mapping[str, str | None]
) -> tuple[TableOptions, ...]:
    given = {name: names for name, names in lists.items() if names is not None}
    if tables:
        of_level = Level(level) if level else None
        columns = {name: tuple(column.strip() for column in names.split(",")) for name, names in given.items()}
        try:
            return tuple(TableOptions(name=TableName.parse(table), level=of_level, **columns) for table in tables)
        except ValidationError as error:
            wrong = str(error.errors()[0]["loc"][0])
            raise click.UsageError(
                f"--{wrong} {lists[wrong]} is wrong; accepted are column names, each once: a,b"
            ) from error
    if level or given:
        options = ", ".join(f"--{name}" for name in ("level", *lists))
        raise click.UsageError(f"{options} go with a TABLE; write them into the file for its tables")
    wanted = table_options(settings.cdc_tables)
    if not wanted:
        raise click.UsageError("name a TABLE, or set VIEWKEEPER_CDC_TABLES to tables or to a .toml file of them")
    return wanted


@commands.command("detach", epilog=settings_epilog(CaptureSettings))
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
def detach_tables(tables: tuple[str, ...]) -> None:
    """Detach TABLEs from the capture: their triggers and change logs go, their topics stay as they are."""
    with _source() as (settings, connection, where):
        for table in map(TableName.parse, tables):
            known = detach(connection, settings.cdc_name, table, where=where)
            click.echo(f"{table}: {'detached' if known else 'was not attached'}")


@contextmanager
def _source() -> Iterator[tuple[CaptureSettings, psycopg.Connection, str]]:
    settings = start(CaptureSettings)
    where = describe(settings.source_url)
    with closing(connect(settings.source_url, name="viewkeeper-cdc", settings=SESSION)) as connection:
        with translated(where):
            check_source(connection, where)
        yield settings, connection, where


@commands.command(epilog=settings_epilog(StatusSettings))
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Show the progress until all topics equal their tables; the default on a terminal.",
)
def snapshot(tables: tuple[str, ...], *, wait: bool | None) -> None:
    """Ask the running capture to read TABLEs anew, and to delete from their topics what is gone.

    Nothing is published by this command. A request stands until the capture begins with it, Ctrl-C or not.
    """
    settings = start(StatusSettings)
    names = [TableName.parse(table) for table in tables]
    where = describe(settings.source_url)
    with closing(connect(settings.source_url, name="viewkeeper-cdc snapshot", settings=STATUS_SESSION)) as connection:
        with translated(where):
            check_source(connection, where)
        requests = request_snapshots(connection, settings.cdc_name, names, where=where)
        for request in requests:
            click.echo(f"{request.table}: a snapshot is requested")
        if not (sys.stdout.isatty() if wait is None else wait):
            return
        source = StatusSource(connection, settings.cdc_name, where=where)
        leader = LeaderWatch(connection, settings.cdc_name, where=where)
        client = admin(settings, name="viewkeeper-cdc-snapshot")
        try:
            with CursorTail(client, settings, settings.cdc_name) as tail:
                show(follow(requests, source, leader, tail))
        except KeyboardInterrupt:
            click.echo("not waited for; the requests stand, see: viewkeeper-cdc status", err=True)
            raise click.Abort from None


@commands.command(epilog=settings_epilog(StatusSettings))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, as_json: bool) -> None:
    """Show tables, cursor, change logs and topics of the capture; exit code 1 if something needs a person.

    That is: no leader that is alive, a table that waits to be read anew, a topic that was deleted or is not compacted,
    rows held back, a change log that is half full, a watermark older than ten seconds, a source that is not the
    cursor's. Other roles' open transactions are seen with the rights of pg_read_all_stats only.
    """
    settings = start(StatusSettings)
    found = read_status(settings)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        Console(highlight=False, markup=False, emoji=False).print(status_text(found))
    if found.needs_a_person:
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    run_command(commands)


if __name__ == "__main__":
    main()
