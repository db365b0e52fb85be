"""Writers and trouble let loose on a captured source, all at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from random import Random

from tests.torture import Torture
from tests.torture_captures import Captures
from tests.torture_source import CATCH_UP_SECONDS, CapturedSource
from tests.torture_transactions import Note
from tests.torture_writers import Owner, Writer
from tests.waiting import wait_until

WRITERS = 10
TROUBLES = 5
PATIENCE_SECONDS = 10.0

NewWriter = Callable[[str, int, Random, threading.Event], Writer]
"""Makes a writer of the source's URL, its number, its own stream of random numbers, and what ends it."""


def write_and_trouble(
    source: CapturedSource,
    captures: Captures,
    torture: Torture,
    writer: NewWriter,
    *,
    troubles: int = TROUBLES,
    after: Callable[[int], None] = lambda _number: None,
    at_last: Callable[[], None] = lambda: None,
) -> list[Note]:
    """Let writers and so many troubles a round loose on the source; return what was committed.

    `after` is called after each trouble, with its number, `at_last` after all of them, while writers still write.
    """
    with let_loose(source.url, torture.random, writer) as written:
        for number in range(troubles * torture.rounds):
            let_publish(source, torture.random.randint(2, 30))
            captures.trouble()
            after(number)
        let_publish(source, 2)
        at_last()
    return written


@contextmanager
def let_loose(url: str, random: Random, writer: NewWriter) -> Iterator[list[Note]]:
    """Let ten writers and an owner loose on a source; what they have committed is in the list at the end."""
    over = threading.Event()
    randoms = [Random(random.getrandbits(64)) for _ in range(WRITERS + 1)]  # noqa: S311 - no secret
    notes: list[Note] = []
    writers = [writer(url, number, its_random, over) for number, its_random in enumerate(randoms[1:])]
    with ThreadPoolExecutor(WRITERS + 1) as executor:
        try:
            writing = [executor.submit(one.write) for one in writers]
            writing.append(executor.submit(Owner(url, randoms[0], over).write))
            yield notes
        finally:
            over.set()
    notes += [note for written in writing for note in written.result()]


def let_pass(source: CapturedSource, table: str, watermarks: int) -> None:
    """Wait until a table (`schema.name`) was seen with so many watermarks."""
    seen: set[datetime] = set()

    def passed() -> bool:
        cursor = source.cursor()
        entry = cursor.tables.get(table) if cursor else None
        if entry is not None and entry.watermark is not None:
            seen.add(entry.watermark.time)
        return len(seen) >= watermarks

    wait_until(passed, timeout_seconds=CATCH_UP_SECONDS, what=f"{watermarks} watermarks of {table}")


def let_publish(source: CapturedSource, cursors: int) -> None:
    """Wait for so many cursor records and transaction markers, or the end of patience."""
    until, end = time.monotonic() + PATIENCE_SECONDS, source.cursor_end() + cursors
    wait_until(lambda: source.cursor_end() >= end or time.monotonic() > until, what="cursors")
