"""What a topic holds, a digest a key, in a temporary file: memory stays bounded however large the topic, disk grows."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager

from cdc.judging import Digest, Kind

_CACHE_KIB = 16 * 1024

_SETUP = f"""
-- Nothing in it outlives the process, and nothing is rolled back.
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KIB};
-- digest: what the topic shows, NULL for nothing. kind: how the key differs, NULL until that is known.
CREATE TABLE image (
    key blob PRIMARY KEY,
    digest blob,
    kind text,
    repaired integer NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_TAKE = "INSERT INTO image (key, digest) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET digest = excluded.digest"
_FORGET = "DELETE FROM image WHERE key = ?"
_FORGET_EQUAL = "DELETE FROM image WHERE key = ? AND digest = ?"
_MISS = "INSERT OR IGNORE INTO image (key) VALUES (?)"
_RENEW = "UPDATE image SET digest = ? WHERE key = ?"
_COUNT = "SELECT count(*) FROM image"
_SHOWN = "SELECT digest FROM image WHERE key = ?"
_MARK = "UPDATE image SET kind = ? WHERE key = ?"
_REPAIRED = "UPDATE image SET repaired = 1 WHERE key = ?"
_PAGE = "SELECT key FROM image WHERE key > ? ORDER BY key LIMIT ?"
_REPAIRABLE_PAGE = "SELECT key FROM image WHERE key > ? AND kind <> 'foreign' ORDER BY key LIMIT ?"
_DIFFERENCES = "SELECT key, repaired FROM image WHERE kind = ? ORDER BY key LIMIT ?"
_NO_LIMIT = -1


class Images:
    """The images of a topic's keys, of which those are left that differ.

    First `take` all that the topic holds, then `compare` it with all rows: what is left are the keys that are unequal,
    or that no row had. From then on `renew` follows the topic, and keys are forgotten or marked as they are judged.
    """

    def __init__(self, file: sqlite3.Connection) -> None:
        self._file = file
        file.executescript(_SETUP)

    def take(self, images: Mapping[bytes, Digest | None]) -> None:
        """Put in the newest images of keys, None for a tombstone."""
        # In key order, which is the file's.
        living = sorted((key, image) for key, image in images.items() if image is not None)
        with self._transaction():
            self._file.executemany(_TAKE, living)
            self._file.executemany(_FORGET, [(key,) for key, image in images.items() if image is None])

    def compare(self, rows: Iterable[tuple[bytes, Digest]]) -> int:
        """Forget the keys whose image equals their row, put in those that have none; return how many are unequal."""
        with self._transaction():
            execute = self._file.execute
            unequal = [(key,) for key, row in rows if execute(_FORGET_EQUAL, (key, row)).rowcount == 0]
            self._file.executemany(_MISS, unequal)
        return len(unequal)

    def count(self) -> int:
        """Return how many keys are left."""
        (count,) = self._file.execute(_COUNT).fetchone()
        return int(count)

    def pages(self, most_keys: int, *, repairable: bool = False) -> Iterator[list[bytes]]:
        """Yield the keys that are left, or those that are known to differ and can be repaired, page by page.

        Keys may be forgotten and marked meanwhile.
        """
        # Numbers sort before all blobs.
        after: bytes | int = 0
        statement = _REPAIRABLE_PAGE if repairable else _PAGE
        while keys := [key for (key,) in self._file.execute(statement, (after, most_keys))]:
            yield keys
            after = keys[-1]

    def renew(self, images: Mapping[bytes, Digest | None]) -> None:
        """Put in newer images of those keys that are left."""
        with self._transaction():
            self._file.executemany(_RENEW, [(image, key) for key, image in images.items()])

    def shown(self, keys: Iterable[bytes]) -> dict[bytes, Digest | None]:
        """Return the images of keys that are left."""
        return {key: self._file.execute(_SHOWN, (key,)).fetchone()[0] for key in keys}

    def forget(self, keys: Iterable[bytes]) -> None:
        """Forget keys that do not differ."""
        with self._transaction():
            self._file.executemany(_FORGET, [(key,) for key in keys])

    def mark(self, kinds: Mapping[bytes, Kind]) -> None:
        """Note how keys differ."""
        with self._transaction():
            self._file.executemany(_MARK, [(kind, key) for key, kind in kinds.items()])

    def repaired(self, keys: Iterable[bytes]) -> None:
        """Note that keys differ no longer."""
        with self._transaction():
            self._file.executemany(_REPAIRED, [(key,) for key in keys])

    def differences(self, kind: Kind, most_keys: int | None = None) -> Iterator[tuple[bytes, bool]]:
        """Yield the keys that differ in that way, and whether they have been repaired, in the order of their bytes."""
        limit = _NO_LIMIT if most_keys is None else most_keys
        for key, repaired in self._file.execute(_DIFFERENCES, (kind, limit)):
            yield key, bool(repaired)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN")
        yield
        self._file.execute("COMMIT")


@contextmanager
def open_images() -> Iterator[Images]:
    """Open an empty file; it is gone whatever ends the process, and lies where TMPDIR says."""
    # An empty name is SQLite's for a file that has none from the moment on that it is there.
    with closing(sqlite3.connect("", isolation_level=None)) as file:
        yield Images(file)
