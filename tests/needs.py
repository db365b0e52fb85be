"""`python -m tests.needs`: see that the servers the tests run on are there, and install what no wheel brings.

Ends with 0, or names what is missing and what to do about it and ends with 2.
"""

import os
import shutil
import subprocess

import click

from compose.local.jvm import java
from compose.local.unprivileged import needed_unprivileged
from runtime.cli import run_command
from tests.servers import DEBIAN_DIR, OLDER_VERSIONS, newest_server, older_binaries, older_missing, server_id

# Debian's package makes a cluster and starts it unless it is told otherwise; the word is taken back afterwards.
INSTALL = """
settings=/etc/postgresql-common/createcluster.d
mkdir -p "$settings"
trap 'rm -f "$settings/viewkeeper.conf"; rmdir --ignore-fail-on-non-empty "$settings"' EXIT
echo 'create_main_cluster = false' > "$settings/viewkeeper.conf"
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "$1"
"""


@click.command()
def check() -> None:
    """See that all servers of the tests are there; install an older Postgres where that may be."""
    java()
    needed_unprivileged()
    older = older_binaries()
    if older is None:
        _install_older()
        older = older_binaries()
    if older is None:
        raise older_missing(f"its package brought none to {DEBIAN_DIR}")
    for folder in (newest_server(), older):
        click.echo(f"tests run on {server_id(folder)}: {folder}")


def _install_older() -> None:
    """Install the first of the older servers that the distribution has; raises LocalSettingError where it cannot."""
    if shutil.which("apt-get") is None:
        raise older_missing("apt-get is not there to install it")
    become_root = _become_root()
    _run("apt-get update", [*become_root, "apt-get", "update", "--quiet"])
    packages = [f"postgresql-{version}" for version in OLDER_VERSIONS]
    package = next(filter(_is_offered, packages), None)
    if package is None:
        raise older_missing("the distribution offers none of these packages; PGDG has them")
    click.echo(f"installing {package}, without a cluster of its own")
    _run(f"apt-get install {package}", [*become_root, "sh", "-euc", INSTALL, "sh", package])


def _become_root() -> list[str]:
    """Words before a command that run it as root, without a question; raises LocalSettingError where there are none."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    raise older_missing("installing it takes root, or sudo without a password")


def _is_offered(package: str) -> bool:
    shown = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return shown.returncode == 0


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise older_missing(f"`{name}` failed with code {done.returncode}")


if __name__ == "__main__":
    run_command(check)
