"""The commands `viewkeeper-projector dead-letters`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
from psycopg import Connection
from rich.console import RenderableType

from cdc.decodings import open_decoding
from projector.daemon import SESSION_SETTINGS
from projector.dead_letters import Choice, count_letters, discard_letters, each_letter, read_letters
from projector.dead_letters_text import letter_list, list_text, whole_letter, whole_text
from projector.errors import ProjectorError
from projector.registry import demand_migrated
from projector.retrying import Outcome, Retried, Retrier
from runtime.cli import print_json, settings_epilog, start
from runtime.postgres import connect, describe, translated
from runtime.settings import ViewSettings, ViewStatusSettings
from runtime.terminal import plain_console, printable

VIEWS = """
SELECT DISTINCT view FROM projector.view_version ORDER BY view
"""

_view = click.argument("view", required=False)
_topic = click.option("--topic", help="Only those of this topic.")
_ID = click.IntRange(1, 2**63 - 1)
_id = click.option("--id", "letter_id", type=_ID, metavar="N", help="Only the one of this number.")


class Discarded(msgspec.Struct, frozen=True, kw_only=True):
    """What `discard` prints: how many dead letters it deleted."""

    discarded: int


@click.group("dead-letters")
def dead_letters() -> None:
    """See records that could not be applied, and try them again or drop them."""


@dead_letters.command("list", epilog=settings_epilog(ViewSettings))
@_view
@_topic
@click.option(
    "--limit",
    type=click.IntRange(0, 1_000_000),
    default=100,
    show_default=True,
    help="How many to show, those that came first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_letters(view: str | None, *, topic: str | None, limit: int, as_json: bool) -> None:
    """List the dead letters of VIEW, or of every view."""
    with _session(start(ViewSettings)) as connection:
        choice = _chosen(connection, view, topic, None)
        found = letter_list(read_letters(connection, choice, limit=limit), count_letters(connection, choice))
    if as_json:
        print_json(found)
    else:
        _print(list_text(found))


@dead_letters.command(epilog=settings_epilog(ViewSettings))
@click.option("--id", "letter_id", type=_ID, metavar="N", required=True, help="Its number.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(*, letter_id: int, as_json: bool) -> None:
    """Show all of a dead letter: where it was, why it is dead, its key and its value."""
    with _session(start(ViewSettings)) as connection:
        letters = read_letters(connection, Choice(id=letter_id))
    if not letters:
        raise _gone(letter_id)
    found = whole_letter(letters[0])
    if as_json:
        print_json(found)
    else:
        _print(whole_text(found))


@dead_letters.command(epilog=settings_epilog(ViewStatusSettings))
@_view
@_topic
@_id
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a letter: id, view, outcome, reason.")
def retry(view: str | None, *, topic: str | None, letter_id: int | None, as_json: bool) -> None:
    """Try dead letters again, all that are chosen, also while projectors run; exit code 1 if one is still dead.

    One that is applied is gone. A newer record of its key is never overwritten: that one has taken it away already.
    """
    settings = start(ViewStatusSettings)
    found = dead = False
    with _session(settings) as connection, open_decoding(settings) as decoding:
        retrier = Retrier(connection, settings.topic_prefix, decoding)
        for letter in each_letter(connection, _chosen(connection, view, topic, letter_id)):
            found = True
            retried = retrier.retry(letter)
            dead |= retried.outcome is Outcome.DEAD
            if as_json:
                print_json(retried)
            else:
                click.echo(_words(retried))
    if not found and not as_json:
        click.echo("No dead letters.")
    if dead:
        sys.exit(1)


@dead_letters.command(epilog=settings_epilog(ViewSettings))
@_view
@_topic
@_id
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; wants --yes.")
def discard(view: str | None, *, topic: str | None, letter_id: int | None, yes: bool, as_json: bool) -> None:
    """Delete dead letters, all that are chosen: what they said is in the view only when their row changes again."""
    if as_json and not yes:
        raise click.UsageError("--json asks nobody: say --yes, too")
    with _session(start(ViewSettings)) as connection:
        choice = _chosen(connection, view, topic, letter_id)
        total = count_letters(connection, choice)
        if total and not yes:
            click.confirm(f"Delete {total:,} dead letters? Their rows stay as they are", abort=True)
        discarded = Discarded(discarded=discard_letters(connection, choice))
    if as_json:
        print_json(discarded)
    else:
        click.echo(f"{discarded.discarded:,} dead letters deleted")


@contextmanager
def _session(settings: ViewSettings) -> Iterator[Connection]:
    where = describe(settings.view_url)
    with (
        connect(settings.view_url, name="viewkeeper-dead-letters", settings=SESSION_SETTINGS) as connection,
        translated(where),
    ):
        demand_migrated(connection, where=where)
        yield connection


def _chosen(connection: Connection, view: str | None, topic: str | None, letter_id: int | None) -> Choice:
    views = [name for (name,) in connection.execute(VIEWS)]
    if view is not None and view not in views:
        raise click.BadParameter(f"there is no view {view!r}; made are {', '.join(views)}", param_hint="VIEW")
    choice = Choice(view, topic, letter_id)
    if letter_id is not None and not count_letters(connection, choice):
        raise _gone(letter_id)
    return choice


def _gone(letter_id: int) -> ProjectorError:
    return ProjectorError(
        f"there is no dead letter {letter_id} among these: a newer record of its key has taken it away, or it was "
        "applied or discarded; viewkeeper-projector dead-letters list shows which there are"
    )


def _words(retried: Retried) -> str:
    reason = f": {printable(retried.reason)}" if retried.reason else ""
    return f"{retried.id} {retried.view}: {retried.outcome}{reason}"


def _print(text: RenderableType) -> None:
    plain_console().print(text)
