"""The commands that change a view's versions: `rebuild`, `rollback`, `drop`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from projector.comparing import Comparison
from projector.definition import View
from projector.errors import Refused
from projector.filling import Progress
from projector.loading import load_views
from projector.meeting import Pair
from projector.rebuild import Stopped, Versions, open_versions
from projector.registry import State, ViewVersion
from projector.version_text import Done, comparison_lines, done_line, show_progress
from runtime.cli import SECONDS, print_json, settings_epilog, start
from runtime.settings import ProjectorSettings
from runtime.stop import interruptible, stop_on_signals

WAIT_SECONDS = click.option(
    "--wait-seconds",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="How long to try for a lock that long queries are in front of.",
)
T = TypeVar("T")

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command(epilog=settings_epilog(ProjectorSettings))
@click.argument("view")
@click.option(
    "--when",
    type=click.Choice(["ask", "ready"]),
    default="ask",
    show_default=True,
    help="Swap once the comparison was looked at, or at once.",
)
@WAIT_SECONDS
@AS_JSON
def rebuild(view: str, *, when: str, wait_seconds: float, as_json: bool) -> None:
    """Build VIEW anew, as it is declared, beside the version that readers see; compare both, and swap.

    The old version is kept and served meanwhile, and stays for `rollback` until it is dropped. Stopped or killed at
    any point, the command goes on where it was. Run it with the role that `run` has.
    """
    with _changing(view, wait_seconds) as (versions, declared):
        began = time.monotonic()
        version, records = _filled(versions, declared)
        pair = versions.pair(version)
        if pair is None:
            versions.show_first(version)
            _say(Done(view=view, version=version.version, state=State.ACTIVE, records=records), as_json=as_json)
            return
        comparison = _compared(versions, pair)
        for line in comparison_lines(comparison):
            click.echo(line, err=as_json)
        swaps = when == "ready" or _asked(pair)
        lock_seconds = _swapped(versions, pair) if swaps else None
        _say(
            Done(
                view=view,
                version=version.version,
                state=State.ACTIVE if swaps else State.READY,
                records=records,
                seconds=time.monotonic() - began,
                lock_seconds=lock_seconds,
                comparison=comparison,
            ),
            as_json=as_json,
        )


@click.command(epilog=settings_epilog(ProjectorSettings))
@click.argument("view")
@WAIT_SECONDS
@AS_JSON
def rollback(view: str, *, wait_seconds: float, as_json: bool) -> None:
    """Lead readers of VIEW back to the version that they saw before; a second rollback leads them forward again."""
    with _changing(view, wait_seconds) as (versions, _):
        began = time.monotonic()
        previous = versions.find(State.PREVIOUS)
        pair = versions.pair(previous) if previous else None
        if pair is None:
            raise Refused(f"view {view!r} has no former version that is kept: there is nothing to roll back to")
        lock_seconds = _swapped(versions, pair)
        done = Done(
            view=view,
            version=pair.new.version,
            state=State.ACTIVE,
            seconds=time.monotonic() - began,
            lock_seconds=lock_seconds,
        )
        _say(done, as_json=as_json)


@click.command(epilog=settings_epilog(ProjectorSettings))
@click.argument("view")
@click.option("--version", "number", type=int, help="Which one; the only one that readers do not see, when left out.")
@WAIT_SECONDS
@AS_JSON
def drop(view: str, *, number: int | None, wait_seconds: float, as_json: bool) -> None:
    """Drop a version of VIEW that readers do not see: the former one, or one that is being built.

    Of a view that VIEWKEEPER_VIEWS does not name any more each version can be dropped, with the active one the view
    itself.
    """
    with _opened(view, wait_seconds) as (versions, declared):
        if declared is not None:
            version = versions.unseen(number)
            versions.drop(version)
        else:
            one = versions.undeclared(number)
            version = one.kept
            versions.drop(version, is_shown=one.state is State.ACTIVE)
        _say(Done(view=view, version=version.version, state="dropped"), as_json=as_json)


def _filled(versions: Versions, declared: View) -> tuple[ViewVersion, int]:
    """Return a version that is filled, and how many records it took."""
    coming = versions.begin(declared)
    if coming.state is State.READY:
        return coming.kept, 0
    last = show_progress(versions.fill(coming.kept), f"filling version {coming.kept.version}")
    versions.make_ready(coming.kept)
    return coming.kept, last.records if isinstance(last, Progress) else 0


def _compared(versions: Versions, pair: Pair) -> Comparison:
    return _at_one_point(versions, pair, versions.compare)


def _swapped(versions: Versions, pair: Pair) -> float:
    return _at_one_point(versions, pair, versions.swap)


def _at_one_point(versions: Versions, pair: Pair, step: Callable[[Pair], T | None]) -> T:
    """Do what both versions have to stand at one point for; when they move apart before it, they meet again."""
    while True:
        show_progress(versions.meet(pair), f"versions {pair.old.version} and {pair.new.version}")
        done = step(pair)
        if done is not None:
            return done


@contextmanager
def _changing(name: str, wait_seconds: float) -> Iterator[tuple[Versions, View]]:
    """Open a declared view's versions until the command ends, or is asked to stop."""
    with _opened(name, wait_seconds) as (versions, declared):
        if declared is None:
            raise click.BadParameter(f"there is no view {name!r}; see VIEWKEEPER_VIEWS", param_hint="VIEW")
        yield versions, declared


@contextmanager
def _opened(name: str, wait_seconds: float) -> Iterator[tuple[Versions, View | None]]:
    """Open a view's versions, with its declaration if there is one, until the command ends, or is asked to stop."""
    settings = start(ProjectorSettings)
    declared = next((view for view in load_views(settings.views) if view.name == name), None)
    try:
        with stop_on_signals() as stop, open_versions(settings, name, stop, wait_seconds=wait_seconds) as versions:
            yield versions, declared
    except Stopped:
        click.echo("stopped; what is done is kept, and the same command goes on with it", err=True)
        raise click.Abort from None


def _asked(pair: Pair) -> bool:
    try:
        with interruptible():
            swaps = click.confirm(f"Swap version {pair.old.version} for {pair.new.version}?", err=True)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo("\nNobody answers on standard input; --when ready swaps without a question.", err=True)
        swaps = False
    if not swaps:
        click.echo(
            f"Version {pair.new.version} stays beside. To be asked again: viewkeeper-projector rebuild {pair.name}; to "
            f"give it up: viewkeeper-projector drop {pair.name} --version {pair.new.version}",
            err=True,
        )
    return swaps


def _say(done: Done, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        click.echo(done_line(done))
