"""`viewkeeper-local`: real servers on this machine, for as long as the command runs."""

import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from compose.local.errors import LocalStackError
from compose.local.process import command_line
from compose.local.stack import Stack, stack
from runtime.cli import run_command

WATCH_SECONDS = 0.5


@click.group()
def commands() -> None:
    """Run real servers as local processes."""


@commands.command()
@click.option("--postgres", is_flag=True, help="Run Postgres.")
@click.option("--kafka", is_flag=True, help="Run a Kafka broker.")
@click.option("--registry", is_flag=True, help="Run a Schema Registry, for VIEWKEEPER_ENCODING=avro.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".viewkeeper/local"),
    show_default=True,
    help="Folder of the servers' data; it survives a restart.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the settings as one JSON object.")
def up(*, postgres: bool, kafka: bool, registry: bool, data: Path, as_json: bool) -> None:
    """Run Postgres and Kafka, or the servers named, until Ctrl-C.

    Once they are ready, prints their addresses as settings, one NAME=value a line.
    """
    if not (postgres or kafka or registry):
        postgres = kafka = True
    _interrupt_once()
    with suppress(KeyboardInterrupt), stack(data, postgres=postgres, kafka=kafka, registry=registry) as running:
        click.echo(_shown(running, as_json=as_json))
        ended = _wait_for_a_dead_server(running)
        raise LocalStackError(f"{ended} ended by itself; its log is in {data / ended.lower()}")


def _shown(running: Stack, *, as_json: bool) -> str:
    settings = running.settings()
    return json.dumps(settings) if as_json else "\n".join(f"{name}={value}" for name, value in settings.items())


def _interrupt_once() -> None:
    """Have the first SIGINT or SIGTERM interrupt us, wherever we are; the second one kills us, and so the servers."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _wait_for_a_dead_server(running: Stack) -> str:
    """Wait until a server is gone, and name it."""
    servers = {"Postgres": running.postgres, "Kafka": running.kafka, "Registry": running.registry}
    pids = {name: server.pid for name, server in servers.items() if server}
    while True:
        for name, pid in pids.items():
            if not command_line(pid):
                return name
        time.sleep(WATCH_SECONDS)


def main() -> None:
    """Run the command line and end with its exit code."""
    run_command(commands)


if __name__ == "__main__":
    main()
