"""The command `viewkeeper-projector`."""

import click

from projector.daemon import Projector
from projector.loading import load_views
from runtime.cli import run_command, settings_epilog, start
from runtime.daemon import keep_running
from runtime.health import Health, health_listener
from runtime.settings import ProjectorSettings
from runtime.stop import stop_on_signals


@click.group()
def projector() -> None:
    """Keep views in step with their changelog topics."""


@projector.command(epilog=settings_epilog(ProjectorSettings))
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


def main() -> None:
    """Run the command."""
    run_command(projector)


if __name__ == "__main__":
    main()
