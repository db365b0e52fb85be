"""The command `viewkeeper-projector`."""

import sys

import click
import msgspec

from projector.audit import AuditResult, audit_view
from projector.daemon import Projector
from projector.definition import View
from projector.loading import load_views
from runtime.cli import run_command, settings_epilog, start
from runtime.daemon import keep_running
from runtime.health import Health, health_listener
from runtime.settings import AuditSettings, ProjectorSettings
from runtime.stop import stop_on_signals


@click.group()
def commands() -> None:
    """Keep views in step with their changelog topics."""


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
@click.option("--wait-seconds", default=60.0, show_default=True, help="How long the view may take to reach the source.")
def audit(view: str | None, *, as_json: bool, wait_seconds: float) -> None:
    """Compare VIEW, or every view, with SQL over the source; exit code 1 if a row differs."""
    settings = start(AuditSettings)
    differ = False
    for declared in _chosen(load_views(settings.views), view):
        result = audit_view(
            declared, source_url=settings.source_url, view_url=settings.view_url, wait_seconds=wait_seconds
        )
        differ |= result.differing_rows > 0
        click.echo(_as_json(result) if as_json else _as_text(result))
    if differ:
        sys.exit(1)


def _chosen(views: tuple[View, ...], name: str | None) -> tuple[View, ...]:
    chosen = tuple(view for view in views if name in (None, view.name))
    if not chosen:
        declared = ", ".join(view.name for view in views)
        raise click.BadParameter(f"there is no view {name!r}; declared are {declared}", param_hint="VIEW")
    return chosen


def _as_text(result: AuditResult) -> str:
    fields = [f"  {name}: {rows} rows" for name, rows in sorted(result.differing_fields.items())]
    examples = [
        f"  key {example.key}: source {example.in_source or 'none'}, view {example.in_view or 'none'}"
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
