"""Folders of the local servers: where the cache lies, and who may use a data folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose.local.errors import LocalSettingError

CACHE_DIR_SETTING = "VIEWKEEPER_LOCAL_CACHE_DIR"


def cache_dir() -> Path:
    """Folder of what is fetched once and shared by demo, tests and benchmarks; made if it is missing.

    Raises LocalSettingError where it cannot be made.
    """
    chosen = Path(os.environ.get(CACHE_DIR_SETTING) or ".viewkeeper/cache")
    return made(chosen, hint=f"set {CACHE_DIR_SETTING} to a folder that can be written")


def made(folder: Path, *, hint: str = "choose another data folder") -> Path:
    """Make a folder that can be written and return its absolute path, or raise LocalSettingError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalSettingError(f"cannot make the folder {folder}: {error.strerror}; {hint}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LocalSettingError(f"the folder {folder} cannot be written; {hint}")
    return folder.resolve()


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Make a data folder and keep it for this process alone; yields its absolute path.

    The lock goes with the process, however that ends. Raises LocalSettingError, naming the holder, while another
    process has it.
    """
    folder = made(folder)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise LocalSettingError(
                f"the data folder {folder} is in use by process {lock.read().strip() or 'unknown'}; "
                "stop that one, or choose another data folder"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield folder


@contextmanager
def turn(lock_path: Path) -> Iterator[None]:
    """Wait for one's turn among processes that fill the same cache."""
    with lock_path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
