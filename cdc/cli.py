"""`viewkeeper-cdc`: run the capture, attach and detach tables, ask for snapshots, compare topics, show the status."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

import click
import psycopg
from confluent_kafka.admin import AdminClient
from pydantic import ValidationError

from cdc.attachment import attach, detach, how_attached
from cdc.daemon import run_session
from cdc.documents import Attachment, Attachments, RequestedSnapshot, RequestedSnapshots
from cdc.errors import WireError
from cdc.outside import Outside, outside
from cdc.reconcile import reconcile
from cdc.reconcile_report import Shown, conclusion, counts_and_keys, json_pieces, progress, shown
from cdc.requests import SnapshotRequest, follow
from cdc.session import SESSION
from cdc.snapshot_screen import show
from cdc.status import read_status
from cdc.status_text import status_text
from cdc.table_options import Level, TableOptions, table_options
from cdc.tables import SourceKind, check_source
from cdc.watching import CursorTail
from cdc.wire import TableName
from runtime.cli import print_json, run_command, settings_epilog, start
from runtime.daemon import keep_running
from runtime.errors import ConfigurationError
from runtime.health import Health, health_listener
from runtime.kafka import admin
from runtime.postgres import connect, describe, translated
from runtime.settings import CaptureSettings, CdcSettings, ReconcileSettings, StatusSettings
from runtime.stop import stop_on_signals
from runtime.terminal import plain_console

_UNSEEN = (
    "{view}: a view has no triggers: a change of its rows is published only once whoever makes it calls "
    "SELECT cdc.log_changes('{view}', '{{keys}}') in its transaction; see docs/design.md, Views"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def commands() -> None:
    """Capture changes of Postgres tables into compacted Kafka topics."""


class _Table(click.ParamType[TableName]):
    """A table's name, with its schema or in public."""

    name = "table"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> TableName:
        try:
            return TableName.parse(str(value))
        except WireError as error:
            self.fail(str(error), param, ctx)


@commands.command(epilog=settings_epilog(CdcSettings))
def run() -> None:
    """Run the capture until SIGTERM or Ctrl-C; a second instance waits as its standby."""
    settings = start(CdcSettings)
    health = Health()
    with stop_on_signals() as stop, health_listener(settings.health_host, settings.cdc_health_port, health):
        keep_running(lambda: run_session(settings, stop, health), stop)


@commands.command("attach", epilog=settings_epilog(CaptureSettings))
@click.argument("tables", type=_Table(), nargs=-1, metavar="[TABLE…]")
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    help="triggers fire once a statement (the default) or a row",
)
@click.option("--key", metavar="a,b", help="columns of a unique index; the primary key when left out")
@click.option("--columns", metavar="a,b", help="no other column leaves the database; all of them when left out")
@click.option("--masks", metavar="a,b", help="columns that leave it as a hash under VIEWKEEPER_CDC_MASK_KEY")
@_json_option
def attach_tables(
    tables: tuple[TableName, ...],
    *,
    level: str | None,
    key: str | None,
    columns: str | None,
    masks: str | None,
    as_json: bool,
) -> None:
    """Attach TABLEs (name or schema.name) to the capture: its source finds their changes from now on.

    Without TABLE, attach those that VIEWKEEPER_CDC_TABLES names, as its file says.
    """
    with _source() as (settings, connection, where):
        done = []
        for table in _wanted(settings, tables, level, {"key": key, "columns": columns, "masks": masks}):
            new = attach(
                connection,
                settings.cdc_name,
                table.name,
                where=where,
                source=SourceKind(settings.cdc_source),
                level=table.level,
                key=table.key,
                columns=table.columns,
                masks=table.masks,
            )
            moving, is_unseen = how_attached(connection, settings.cdc_name, table.name, where=where)
            done.append(Attachment(table=str(table.name), was_attached=not new or moving is not None, moving_to=moving))
            if not as_json:
                click.echo(f"{table.name}: {_attached_words(new=new, moving=moving)}")
            if is_unseen:
                click.echo(_UNSEEN.format(view=table.name), err=True)
        if as_json:
            print_json(Attachments(capture=settings.cdc_name, tables=tuple(done)))


def _attached_words(*, new: bool, moving: SourceKind | None) -> str:
    if moving is not None:
        return f"moves when viewkeeper-cdc run is started anew with VIEWKEEPER_CDC_SOURCE={moving}"
    return "attached" if new else "was attached already"


def _wanted(
    settings: CaptureSettings, tables: tuple[TableName, ...], level: str | None, lists: Mapping[str, str | None]
) -> tuple[TableOptions, ...]:
    given = {name: names for name, names in lists.items() if names is not None}
    if tables:
        of_level = Level(level) if level else None
        columns = {name: tuple(column.strip() for column in names.split(",")) for name, names in given.items()}
        said = {"level": of_level, **columns}
        try:
            return tuple(TableOptions.model_validate({"name": table, **said}) for table in tables)
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
@click.argument("tables", type=_Table(), nargs=-1, required=True, metavar="TABLE…")
@_json_option
def detach_tables(tables: tuple[TableName, ...], *, as_json: bool) -> None:
    """Detach TABLEs from the capture: what was made for them goes, their topics stay as they are."""
    with _source() as (settings, connection, where):
        done = []
        for table in tables:
            known = detach(connection, settings.cdc_name, table, where=where)
            done.append(Attachment(table=str(table), was_attached=known))
            if not as_json:
                click.echo(f"{table}: {'detached' if known else 'was not attached'}")
        if as_json:
            print_json(Attachments(capture=settings.cdc_name, tables=tuple(done)))


@contextmanager
def _source() -> Iterator[tuple[CaptureSettings, psycopg.Connection, str]]:
    settings = start(CaptureSettings)
    where = describe(settings.source_url)
    if settings.cdc_source == "timestamp":
        raise ConfigurationError(
            "VIEWKEEPER_CDC_SOURCE=timestamp writes nothing into a database, so that nothing is attached to it: tables "
            "are named in VIEWKEEPER_CDC_TABLES, a .toml file with the mode of each"
        )
    with closing(connect(settings.source_url, name="viewkeeper-cdc", settings=SESSION)) as connection:
        with translated(where):
            check_source(connection, where)
        yield settings, connection, where


@commands.command(epilog=settings_epilog(StatusSettings))
@click.argument("tables", type=_Table(), nargs=-1, required=True, metavar="TABLE…")
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Show the progress until all topics equal their tables; the default on a terminal.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, after the wait if there is one; progress goes to standard error then.",
)
def snapshot(tables: tuple[TableName, ...], *, wait: bool | None, as_json: bool) -> None:
    """Ask the running capture to read TABLEs anew, and to delete from their topics what is gone.

    Nothing is published by this command. A request stands until the capture begins with it, Ctrl-C or not.
    """
    settings = start(StatusSettings)
    wait = sys.stdout.isatty() if wait is None else wait
    client = admin(settings, name="viewkeeper-cdc-snapshot")
    with outside(settings, client, name="viewkeeper-cdc snapshot") as capture:
        requests = capture.request(tables)
        for request in requests:
            click.echo(f"{request.table}: a snapshot is requested", err=as_json)
        if wait:
            _wait_for(requests, settings, client, capture, on_stderr=as_json)
    if as_json:
        requested = tuple(RequestedSnapshot(id=request.id, table=str(request.table)) for request in requests)
        print_json(RequestedSnapshots(capture=settings.cdc_name, requests=requested, complete=wait))


def _wait_for(
    requests: Sequence[SnapshotRequest],
    settings: StatusSettings,
    client: AdminClient,
    capture: Outside,
    *,
    on_stderr: bool,
) -> None:
    try:
        with CursorTail(client, settings, settings.cdc_name) as tail:
            show(follow(requests, capture.status, capture.leader, tail), on_stderr=on_stderr)
    except KeyboardInterrupt:
        click.echo("not waited for; the requests stand, see: viewkeeper-cdc status", err=True)
        raise click.Abort from None


@commands.command("reconcile", epilog=settings_epilog(ReconcileSettings))
@click.argument("tables", type=_Table(), nargs=-1, metavar="[TABLE…]")
@click.option("--dry-run", is_flag=True, help="Only say what differs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a table, with all keys that differ.")
@click.option(
    "--wait-seconds",
    default=60.0,
    show_default=True,
    help="How long the capture may take to reach the source's time; in mode bulk, how long a pass may take.",
)
def reconcile_tables(tables: tuple[TableName, ...], *, dry_run: bool, as_json: bool, wait_seconds: float) -> None:
    """Compare the topics of TABLEs, or of all that are captured, with their tables, while both keep changing.

    A key is missing (its row is not in the topic), stale (the topic has another row), a ghost (the topic has a row that
    the table has not) or foreign (of a form that the capture never writes, or in a partition where it writes no such
    key). It differs if that is seen five times while its row stood still; one that never does is undecided, and no
    difference. Rows that are held back for their size are counted apart.

    The running capture publishes the keys that differ, then they are compared once more; nothing is published by this
    command. The topic's keys are kept meanwhile in a temporary file, where TMPDIR says. Exit code 1 if keys differ:
    all that were found in a dry run, otherwise those that are left.
    """
    settings = start(ReconcileSettings)
    console = plain_console()
    found: list[Shown] = []
    try:
        with (
            progress() as say,
            closing(reconcile(settings, tables, repair=not dry_run, wait_seconds=wait_seconds, say=say)) as results,
        ):
            for one in results:
                found.append(shown(one))
                if as_json:
                    _echo_all(json_pieces(one))
    except KeyboardInterrupt:
        click.echo("not compared to the end; what was handed to the capture is published all the same", err=True)
        raise click.Abort from None
    finally:
        if found and not as_json:
            console.print(counts_and_keys(found))
    if not as_json:
        console.print(conclusion(found, dry_run=dry_run))
    if any(one.report.left for one in found):
        sys.exit(1)


def _echo_all(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)


@commands.command(epilog=settings_epilog(StatusSettings))
@_json_option
def status(*, as_json: bool) -> None:
    """Show tables, cursor, change logs and topics of the capture; exit code 1 if something needs a person.

    That is: no leader that is alive, a table that waits to be read anew, a topic that was deleted or is not compacted,
    rows held back, a change log that is half full, a watermark older than ten seconds, a source that is not the
    cursor's. Other roles' open transactions are seen with the rights of pg_read_all_stats only.
    """
    settings = start(StatusSettings)
    found = read_status(settings)
    if as_json:
        print_json(found)
    else:
        plain_console().print(status_text(found))
    if found.needs_a_person:
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    run_command(commands)


if __name__ == "__main__":
    main()
