"""`python -m tests.needs`: see that what the tests run on is there, and install what no wheel brings.

Ends with 0, or names what is missing and what to do about it and ends with 2.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

import click

from compose.local.errors import LocalSettingError
from compose.local.jvm import java
from compose.local.unprivileged import needed_unprivileged
from runtime.cli import run_command
from tests.browser import PACKAGE, browser_missing, found_browser
from tests.servers import DEBIAN_DIR, OLDER_VERSIONS, newest_server, older_binaries, older_missing, server_id

INSTALL = """
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "$1"
"""
# Debian's package makes a cluster and starts it unless it is told otherwise; the word is taken back afterwards.
INSTALL_POSTGRES = f"""
settings=/etc/postgresql-common/createcluster.d
mkdir -p "$settings"
trap 'rm -f "$settings/viewkeeper.conf"; rmdir --ignore-fail-on-non-empty "$settings"' EXIT
echo 'create_main_cluster = false' > "$settings/viewkeeper.conf"
{INSTALL}"""

Missing = Callable[[str], LocalSettingError]
"""Makes the error that says what is missing, of why it is not installed."""


@click.command()
def check() -> None:
    """See that all servers of the tests and the browser are there; install what is missing where that may be."""
    java()
    needed_unprivileged()
    older = older_binaries()
    if older is None:
        packages = [f"postgresql-{version}" for version in OLDER_VERSIONS]
        _install(packages, INSTALL_POSTGRES, older_missing, elsewhere="; PGDG has them")
        older = older_binaries()
    if older is None:
        raise older_missing(f"its package brought none to {DEBIAN_DIR}")
    browser = found_browser()
    if browser is None:
        _install([PACKAGE], INSTALL, browser_missing)
        browser = found_browser()
    if browser is None:
        raise browser_missing("its package brought none to the path")
    for folder in (newest_server(), older):
        click.echo(f"tests run on {server_id(folder)}: {folder}")
    click.echo(f"pages are tested in {browser}")


def _install(packages: Sequence[str], script: str, missing: Missing, *, elsewhere: str = "") -> None:
    """Install the first of these packages that the distribution has; raises `missing` where that cannot be done."""
    if shutil.which("apt-get") is None:
        raise missing("apt-get is not there to install it")
    become_root = _become_root(missing)
    _run("apt-get update", [*become_root, "apt-get", "update", "--quiet"], missing)
    package = next(filter(_is_offered, packages), None)
    if package is None:
        raise missing(f"the distribution offers none of these packages{elsewhere}")
    click.echo(f"installing {package}")
    _run(f"apt-get install {package}", [*become_root, "sh", "-euc", script, "sh", package], missing)


def _become_root(missing: Missing) -> list[str]:
    """Words before a command that run it as root, without a question; raises `missing` where there are none."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    raise missing("installing it takes root, or sudo without a password")


def _is_offered(package: str) -> bool:
    shown = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return shown.returncode == 0


def _run(name: str, command: list[str], missing: Missing) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise missing(f"`{name}` failed with code {done.returncode}")


if __name__ == "__main__":
    run_command(check)
