"""`viewkeeper-api`: serve the views over HTTP."""

import click

from api.server import serve
from projector.loading import load_views
from runtime.cli import run_command, settings_epilog, start
from runtime.settings import ApiSettings


@click.group()
def commands() -> None:
    """Serve single rows of views over HTTP."""


@commands.command(epilog=settings_epilog(ApiSettings))
def run() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = start(ApiSettings)
    serve(settings, load_views(settings.views))


def main() -> None:
    """Run `viewkeeper-api`."""
    run_command(commands)


if __name__ == "__main__":
    main()
