"""A standby of a test's own primary, made as an operator makes one."""

import subprocess
from pathlib import Path

import psycopg

from compose.local.postgres import PostgresServer
from compose.local.unprivileged import needed_unprivileged
from tests.waiting import wait_until


def back_up(binaries: Path, primary: PostgresServer, folder: Path) -> None:
    """Make a standby's folder by pg_basebackup, as the user that runs the servers."""
    unprivileged = needed_unprivileged()
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    if unprivileged:
        unprivileged.own(data_dir)
    words = [str(binaries / "pg_basebackup"), "-D", str(data_dir), "-d", primary.url(), "-R", "--checkpoint=fast"]
    subprocess.run([*(unprivileged.prefix if unprivileged else ()), *words], check=True)


def wait_replayed(primary_url: str, standby_url: str) -> None:
    """Wait until a standby shows what its primary has committed by now."""
    with psycopg.connect(primary_url) as session:
        row = session.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
    assert row is not None

    def replayed() -> bool:
        with psycopg.connect(standby_url) as session:
            return session.execute("SELECT pg_last_wal_replay_lsn() >= %s", (row[0],)).fetchone() == (True,)

    wait_until(replayed, what="the standby to have replayed")
