"""What the commands of all parts share: one place where errors become messages and exit codes."""

import math
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
import structlog

from runtime.errors import ViewkeeperError
from runtime.logs import configure_logs
from runtime.settings import LogSettingsT, Settings, read_settings, settings_help, unknown_variables

log = structlog.get_logger()


class _Seconds(click.FloatRange):
    """A time span that an option gives."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            # It is in every range, and no wait for it ends.
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return seconds


SECONDS = _Seconds(0, 86_400)


def settings_epilog(kind: type[Settings]) -> str:
    """Return the part of a command's `--help` that lists the settings it reads, as click keeps it: line by line."""
    return "\b\nSettings (environment):\n" + settings_help(kind)


def start(kind: type[LogSettingsT]) -> LogSettingsT:
    """Read a command's settings and set up its logs."""
    settings = read_settings(kind)
    configure_logs(settings)
    for name, meant in unknown_variables().items():
        log.warning("unknown_setting", name=name, **({"perhaps": meant} if meant else {}))
    return settings


def print_json(document: msgspec.Struct) -> None:
    """Print a command's result for programs: one JSON object, alone on standard output."""
    click.echo(msgspec.json.encode(document))


def run_command(group: Callable[..., object]) -> None:
    """Run a click group; end with the exit code of the error that it raised, its message on standard error.

    0 done, 1 failed, 2 wrong configuration or usage, 130 interrupted.
    """
    try:
        group(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except ViewkeeperError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
