"""Java programs: fetched by `jgo` once, then kept in the cache."""

import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
                (progress or _tell)(_fetching(self))
            with _translated(self, folder):
                import jgo

                found = list(jgo.build(self.coordinates, cache_dir=folder).all_jars)
                if not whole.exists() or not all(jar.exists() for jar in found):
                    found = list(jgo.build(self.coordinates, cache_dir=folder, update=True).all_jars)
            whole.touch()
        return found


@dataclass(frozen=True)
class JavaDistribution:
    """A program that is one tar.gz with all that it needs, by its Maven coordinates and classifier; else as above."""

    name: str
    version: str
    group: str
    artifact: str
    classifier: str
    megabytes: int
    otherwise: str

    def folder(self, progress: Callable[[str], object] | None = None) -> Path:
        """Its unpacked files, from the cache; the first time they are fetched. Tells and raises as `jars` does."""
        cache = cache_dir() / "programs"
        cache.mkdir(exist_ok=True)
        unpacked = cache / f"{self.artifact}-{self.version}"
        with turn(cache / "lock"):
            if not unpacked.exists():
                (progress or _tell)(_fetching(self))
                with _translated(self, cache):
                    self._unpack(cache / "fetched", unpacked)
        return unpacked

    def _unpack(self, fetched: Path, unpacked: Path) -> None:
        from jgo.maven import MavenContext

        project = MavenContext(repo_cache=fetched).project(self.group, self.artifact).at_version(self.version)
        unfinished = unpacked.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(project.artifact(classifier=self.classifier, packaging="tar.gz").resolve()) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(unpacked)
        shutil.rmtree(fetched)


@contextmanager
def _translated(program: JavaProgram | JavaDistribution, folder: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise LocalSettingError(
            "the package jgo is not installed; pip install 'viewkeeper[local]' brings it"
        ) from error
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise LocalStackError(
            f"cannot fetch {program.name} {program.version} into {folder}: {error}; check the network (proxies are "
            f"taken from HTTPS_PROXY), or {program.otherwise}"
        ) from error


def _fetching(program: JavaProgram | JavaDistribution) -> str:
    return f"fetching {program.name} {program.version}, about {program.megabytes} MB, once"


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
