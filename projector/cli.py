"""The command `viewkeeper-projector`."""

import sys
from datetime import datetime

import click
import msgspec

from projector.audit import AuditResult, audit_view
from projector.daemon import Projector
from projector.dead_letters_cli import dead_letters
from projector.definition import View
from projector.explaining import explain
from projector.explaining_text import explained_text
from projector.keys import key_text
from projector.loading import load_views
from projector.preview import preview_json, preview_text, preview_view
from projector.reaching import left_out, wait_until_reached
from projector.registry import active_versions
from projector.status import read_status
from projector.status_text import status_text
from projector.version_commands import drop, rebuild, rollback
from runtime.cli import SECONDS, print_json, run_command, settings_epilog, start
from runtime.daemon import keep_running
from runtime.health import Health, health_listener
from runtime.postgres import connect, describe, translated
from runtime.settings import AuditSettings, PreviewSettings, ProjectorSettings, ViewSettings, ViewStatusSettings
from runtime.stop import stop_on_signals
from runtime.terminal import plain_console


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What `wait` prints of a view: the time that it reflects, and the flags beside it."""

    view: str
    as_of: datetime
    flags: tuple[str, ...]


@click.group()
def commands() -> None:
    """Keep views in step with their changelog topics."""


for command in (rebuild, rollback, drop):
    commands.add_command(command)


@commands.command(epilog=settings_epilog(ProjectorSettings))
def run() -> None:
    """Apply records to the views until SIGTERM."""
    settings = start(ProjectorSettings)
    views = load_views(settings.views)
    health = Health()
    with (
        stop_on_signals() as stop,
        health_listener(settings.health_host, settings.projector_health_port, health),
    ):
        keep_running(Projector(settings, views, health, stop).session, stop)


@commands.command(epilog=settings_epilog(AuditSettings))
@click.argument("view", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a view.")
@click.option(
    "--wait-seconds",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="How long the view may take to reach the source.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Only N random keys of the source and N of the view."
)
def audit(view: str | None, *, as_json: bool, wait_seconds: float, sample: int | None) -> None:
    """Compare VIEW, or every view, with SQL over the source; exit code 1 if a row differs."""
    settings = start(AuditSettings)
    differ = False
    for declared in _chosen(load_views(settings.views), view):
        result = audit_view(
            declared,
            source_url=settings.source_url,
            view_url=settings.view_url,
            wait_seconds=wait_seconds,
            sample=sample,
        )
        differ |= result.differing_rows > 0
        click.echo(_as_json(result) if as_json else _as_text(result))
    if differ:
        sys.exit(1)


@commands.command(epilog=settings_epilog(PreviewSettings))
@click.argument("view", required=True)
@click.argument("key", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: view, sql, rows.")
def preview(view: str, key: str | None, *, as_json: bool) -> None:
    """Show VIEW as it would be: its SQL, and ten rows or that of KEY, computed from the source without Kafka.

    A KEY of several columns is written as in a path: a/b, with a slash in a value as %2F. What the declaration says of
    tables, columns and types is compared with the source first.
    """
    settings = start(PreviewSettings)
    (declared,) = _chosen(load_views(settings.views), view)
    found = preview_view(declared, source_url=settings.source_url, key=key)
    if as_json:
        click.echo(preview_json(found))
    else:
        plain_console().print(preview_text(declared, found))


@commands.command(epilog=settings_epilog(ViewSettings))
@click.argument("view", required=False)
@click.option(
    "--until",
    required=True,
    metavar="TIME",
    help="A time of the source, as 2026-01-31T12:00:00Z; RFC 3339 with a zone.",
)
@click.option("--wait-seconds", type=SECONDS, default=60.0, show_default=True, help="How long to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a view: view, as_of, flags.")
def wait(view: str | None, *, until: str, wait_seconds: float, as_json: bool) -> None:
    """Return once VIEW, or every view, holds all that was committed in its source by TIME: read your own writes.

    Take TIME from the source's clock after the COMMIT (SELECT clock_timestamp()). Exit code 1 if it is not reached. A
    view that lacks rows whatever its time is, since they were too large or became dead letters, is named on standard
    error: a write of yours may be among them.
    """
    settings = start(ViewSettings)
    time = _time(until)
    where = describe(settings.view_url)
    with connect(settings.view_url, name="viewkeeper-wait") as connection, translated(where):
        chosen = _chosen(load_views(settings.views), view)
        # One that has no version is not worth a wait.
        active_versions(connection, chosen, where=where)
        for declared in chosen:
            as_of = wait_until_reached(connection, declared.name, time, wait_seconds=wait_seconds)
            reached = Reached(view=declared.name, as_of=as_of.time, flags=as_of.flags)
            for words in left_out(declared.name, as_of.flags):
                click.echo(f"warning: view {declared.name!r} lacks rows: {words}", err=True)
            if as_json:
                print_json(reached)
            else:
                click.echo(f"{reached.view}: as of {reached.as_of.isoformat()}")


@commands.command(epilog=settings_epilog(ViewStatusSettings))
@click.option(
    "--seconds",
    type=SECONDS,
    default=1.0,
    show_default=True,
    help="How far apart the two looks are that give the rate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, seconds: float, as_json: bool) -> None:
    """Show as-of, lag, rate and time to catch up of each view; exit code 1 if something needs a person.

    That is: a topic that is missing, was made anew or lost records, records that wait while none is applied, an as-of
    that is not known or, unless it is an estimate, older than ten seconds, a broker that does not answer.
    """
    found = read_status(start(ViewStatusSettings), seconds=seconds)
    if as_json:
        print_json(found)
    else:
        plain_console().print(status_text(found))
    if found.broker_trouble or any(view.needs_a_person for view in found.views):
        sys.exit(1)


@commands.command("explain", epilog=settings_epilog(ViewSettings))
@click.argument("view", required=True)
@click.argument("key", required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain_key(view: str, key: str, *, as_json: bool) -> None:
    """Show why the row of KEY in VIEW is as it is: its measures, and the source rows that they are made of.

    A KEY of several columns is written as in a path: a/b, with a slash in a value as %2F. Exit code 1 if a measure is
    not what its contributions give.
    """
    settings = start(ViewSettings)
    (declared,) = _chosen(load_views(settings.views), view)
    with connect(settings.view_url, name="viewkeeper-explain", settings={"TimeZone": "UTC"}) as connection:
        where = describe(settings.view_url)
        found = explain(connection, declared, key, where=where)
    if as_json:
        print_json(found)
    else:
        plain_console().print(explained_text(found))
    if found.disagreeing:
        sys.exit(1)


commands.add_command(dead_letters)


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time; write it as 2026-01-31T12:00:00Z", param_hint="--until"
        ) from error
    if time.tzinfo is None:
        # As it was read: a date alone is its midnight.
        accepted = f"{time.isoformat()}Z"
        raise click.BadParameter(f"{text!r} has no zone; write it as {accepted} if it is UTC", param_hint="--until")
    return time


def _chosen(views: tuple[View, ...], name: str | None) -> tuple[View, ...]:
    chosen = tuple(view for view in views if name in (None, view.name))
    if not chosen:
        declared = ", ".join(view.name for view in views)
        raise click.BadParameter(f"there is no view {name!r}; declared are {declared}", param_hint="VIEW")
    return chosen


def _as_text(result: AuditResult) -> str:
    fields = [f"  {name}: {rows} rows" for name, rows in sorted(result.differing_fields.items())]
    examples = [
        f"  key {key_text(example.key)}: source {example.in_source or 'none'}, view {example.in_view or 'none'}"
        for example in result.examples
    ]
    return "\n".join([*fields, *examples, result.line()])


def _as_json(result: AuditResult) -> str:
    return msgspec.json.encode(result).decode()


def main() -> None:
    """Run the command."""
    run_command(commands)


if __name__ == "__main__":
    main()
