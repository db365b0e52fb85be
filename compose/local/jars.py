"""Jars of Java programs: fetched by `jgo` once, then kept in the cache."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compose.local.errors import LocalSettingError, LocalStackError
from compose.local.folder import cache_dir, turn


@dataclass(frozen=True)
class JavaProgram:
    """A program as its Maven coordinates (joined by `+`), with the words that people are told about it.

    `otherwise` says what to do where its jars cannot be had, beside looking at the network.
    """

    name: str
    version: str
    coordinates: str
    megabytes: int
    otherwise: str

    def jars(self, progress: Callable[[str], object] | None = None) -> list[Path]:
        """Its jars and those it needs, from the cache; the first time they are fetched, and `progress` is told.

        `progress` takes one line; it writes to stderr if None. Raises LocalStackError if they cannot be had.
        """
        folder = cache_dir() / "jars"
        folder.mkdir(exist_ok=True)
        whole = folder / f"{self.name.lower()}-{self.version}.whole"
        with turn(folder / "lock"):
            if not whole.exists():
                (progress or _tell)(f"fetching {self.name} {self.version}, about {self.megabytes} MB, once")
            try:
                import jgo

                found = list(jgo.build(self.coordinates, cache_dir=folder).all_jars)
                if not whole.exists() or not all(jar.exists() for jar in found):
                    found = list(jgo.build(self.coordinates, cache_dir=folder, update=True).all_jars)
            except ModuleNotFoundError as error:
                raise LocalSettingError(
                    "the package jgo is not installed; pip install 'viewkeeper[local]' brings it"
                ) from error
            except (OSError, RuntimeError) as error:
                raise LocalStackError(
                    f"cannot fetch {self.name} {self.version} into {folder}: {error}; check the network (proxies are "
                    f"taken from HTTPS_PROXY), or {self.otherwise}"
                ) from error
            whole.touch()
        return found


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
