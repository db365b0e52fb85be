"""What has to be there before the daemons start: databases, migrations, the start population, attached tables."""

import os
from importlib.resources import files

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from compose.demo.population import Sizes, load_population
from compose.demo.processes import run_once
from compose.demo.screen import Screen
from compose.demo.servers import Servers, make_databases
from runtime.errors import ConfigurationError
from runtime.postgres import connect, describe, translated

TABLES = ("users", "tweets", "follows", "likes")
VIEW = "public.user_information"
_CONFIG = str(files("migrations") / "alembic.ini")


def prepare_databases(servers: Servers, screen: Screen) -> None:
    """Make the databases and run all three sections' migrations.

    Raises ConfigurationError without the right to, for tables that the demo did not make, and for a database of
    another version of Viewkeeper.
    """
    with screen.step("migrating the databases", "databases made and migrated: alembic -n demo | source | view"):
        make_databases(servers)
        for section in ("demo", "source", "view"):
            _migrate(section)
        # The view is captured as well, and its database has what a capture needs.
        words = ["alembic", "-c", _CONFIG, "-n", "source", "upgrade", "head"]
        run_once("alembic -n source, for the view database", words, environment=servers.view_capture())


def populate(servers: Servers, sizes: Sizes, screen: Screen) -> None:
    """Load the start population into empty tables; leave others as they are."""
    with connect(servers.source_url, name="viewkeeper-demo") as connection, translated(describe(servers.source_url)):
        if _has_users(connection):
            screen.say("✓ population: there from an earlier run")
            return
        with screen.counted_step("loading rows", f"population loaded: {sizes.total} rows", total=sizes.total) as bar:
            done_rows = 0

            def progress(_table: str, rows: int) -> None:
                nonlocal done_rows
                done_rows += rows
                bar.reach(done_rows)

            load_population(connection, sizes, progress=progress)


def attach_all(servers: Servers, screen: Screen) -> None:
    """Attach the demo's tables to the capture, and the view to its own.

    Raises DemoError with the command's message when that fails.
    """
    with screen.step("attaching tables", f"attached: viewkeeper-cdc attach {' '.join(TABLES)}, and {VIEW} to its own"):
        for attached, environment in ((TABLES, os.environ), ((VIEW,), servers.view_capture())):
            run_once("viewkeeper-cdc attach", ["cdc.cli", "attach", *attached], environment=environment)


def _migrate(section: str) -> None:
    config = Config(_CONFIG, ini_section=section)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"alembic -n {section}: {error}; a demo of another version made this database: make clean-demo"
        ) from error


def _has_users(connection: psycopg.Connection) -> bool:
    ((has_users,),) = connection.execute("SELECT EXISTS (SELECT FROM public.users)")
    return bool(has_users)
