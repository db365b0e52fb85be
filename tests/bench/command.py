"""What the benchmarks' command lines share: SCALE and RATE, progress lines, and an end that leaves nothing running."""

import signal
from collections.abc import Callable

import click

from compose.local.errors import LocalStackError
from runtime.cli import run_command
from tests.bench.errors import BenchError

scale_option = click.option(
    "--scale",
    envvar="SCALE",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.001, 100),
    help="Shrinks rows and seconds, never rates.",
)


def rate_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that picks changes a second."""
    return click.option(
        "--rate",
        envvar="RATE",
        default=default,
        show_default=True,
        type=click.IntRange(1, 100_000),
        help="Changes a second.",
    )


def say(line: str) -> None:
    """Print a line of progress on standard error; standard output is the figures' alone."""
    click.echo(line, err=True)


def run_bench(command: click.Command) -> None:
    """Run a benchmark's command. SIGTERM ends it as Ctrl-C does: everything that it started is stopped first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def run(*, standalone_mode: bool) -> object:
        try:
            return command.main(standalone_mode=standalone_mode)
        except LocalStackError as error:
            raise BenchError(f"the benchmark's own servers: {error}") from error

    run_command(run)
