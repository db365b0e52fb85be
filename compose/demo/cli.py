"""The demo's command line: `run` and `clean`, which `make demo` and `make clean-demo` start."""

import sys
from pathlib import Path

import click
from rich.console import Console

from compose.demo.cleaning import clean_demo
from compose.demo.interrupts import handled_signals
from compose.demo.population import Sizes
from compose.demo.running import Wanted, run_demo
from compose.demo.screen import Screen
from compose.demo.servers import OwnServers, own_servers
from compose.local.errors import LocalStackError
from runtime.cli import run_command, settings_epilog

STORES = ("postgres",)

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".viewkeeper/demo"),
    show_default=True,
    help="Folder of the servers' data and the logs.",
)


@click.group()
def commands() -> None:
    """Run the whole pipeline on real servers with a realistic workload, and watch it."""


@commands.command(epilog=settings_epilog(OwnServers))
@data_dir_option
@click.option("--seconds", type=click.FloatRange(min=1), help="End by itself after so long; else Ctrl-C ends it.")
@click.option("--rate", type=click.FloatRange(0.1, 100_000), default=200.0, show_default=True, help="Changes a second.")
@click.option("--scale", type=click.FloatRange(0.001, 100), default=1.0, show_default=True, help="Of the population.")
@click.option("--store", default=STORES[0], show_default=True, help="Where the API reads from.")
def run(data_dir: Path, seconds: float | None, rate: float, scale: float, store: str) -> None:
    """Start servers, daemons and workload, show the figures, end with an audit.

    Exit code 0: not one row differs. 1: rows differ, or a part failed. 2: a setting or the machine is in the way. 130:
    interrupted before it could be audited.
    """
    if store not in STORES:
        raise click.BadParameter(f"{store!r} is no store; accepted: {', '.join(STORES)}", param_hint="STORE")
    screen = Screen(Console())
    wanted = Wanted(data_dir, own_servers(), Sizes().scaled(scale), rate, seconds, store)
    with handled_signals() as interrupts:
        try:
            verdict = run_demo(wanted, screen, interrupts)
        except KeyboardInterrupt:
            screen.say("interrupted before a last audit")
            sys.exit(130)
    sys.exit(0 if verdict.equal and verdict.undecided == 0 else 1)


@commands.command(epilog=settings_epilog(OwnServers))
@data_dir_option
def clean(data_dir: Path) -> None:
    """Remove the data folder, and on servers of yours the databases and topics that the demo made."""
    for removed in clean_demo(data_dir, own_servers()):
        click.echo(f"removed {removed}")


def main() -> None:
    """Run the command line."""
    try:
        run_command(commands)
    except LocalStackError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
