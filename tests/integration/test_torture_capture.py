"""The capture beside writers that do everything at once, killed and begun again at random."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from cdc.tables import SourceKind
from compose.local.kafka import KafkaBroker
from tests.daemons import Daemons
from tests.torture import Torture
from tests.torture_captures import Captures
from tests.torture_source import CapturedSource
from tests.torture_transactions import AT_FIRST, KEYS, Note
from tests.torture_truth import Truth, read_along
from tests.torture_writers import Owner, Writer, fill
from tests.waiting import wait_until

WRITERS = 10
TROUBLES = 5
PATIENCE_SECONDS = 10.0
SETTINGS = {
    "VIEWKEEPER_CDC_LEASE_SECONDS": "2",
    # A COPY is more than a page, a table several chunks.
    "VIEWKEEPER_CDC_CHUNK_ROWS": "300",
}


@pytest.mark.torture
@pytest.mark.usefixtures("wal")
@pytest.mark.parametrize("kind", [SourceKind.TRIGGERS, SourceKind.WAL])
def test_topics_equal_tables_and_no_watermark_is_ahead_of_the_truth(
    source_url: str, kafka: KafkaBroker, topic_prefix: str, daemon: Daemons, torture: Torture, kind: SourceKind
) -> None:
    source = CapturedSource(source_url, kafka.bootstrap_servers, topic_prefix, kind)
    notes = fill(source_url)
    source.attach(*AT_FIRST)
    settings = {**SETTINGS, "VIEWKEEPER_CDC_SOURCE": kind}
    captures = Captures(lambda: daemon("cdc", "run", settings=settings), torture.random)
    notes += _write_and_trouble(source, captures, torture)
    captures.settle()
    names = [f"public.{table}" for table in KEYS]
    source.wait_published(names)
    captures.assert_running()
    source.assert_topics_equal_tables()
    readers = read_along(source.cursors(), {name: source.topic(name) for name in names}, Truth(notes))
    assert [wrong for reader in readers.values() for wrong in reader.wrong] == []
    # It was no test if all was published at the end only.
    assert all(reader.watermarks > 5 for reader in readers.values())
    assert sum(reader.records_again for reader in readers.values()) > 500 * torture.rounds


def _write_and_trouble(source: CapturedSource, captures: Captures, torture: Torture) -> list[Note]:
    """Let all loose on the source; return what was committed."""
    over = threading.Event()
    randoms = [Random(torture.random.getrandbits(64)) for _ in range(WRITERS + 1)]  # noqa: S311 - no secret
    writers = [Writer(source.url, number, random, over) for number, random in enumerate(randoms[1:])]
    with ThreadPoolExecutor(WRITERS + 1) as executor:
        try:
            writing = [executor.submit(writer.write) for writer in writers]
            writing.append(executor.submit(Owner(source.url, randoms[0], over).write))
            for number in range(TROUBLES * torture.rounds):
                _let_publish(source, torture.random.randint(2, 30))
                captures.trouble()
                if number == 1:
                    source.attach("late")
            _let_publish(source, 2)
        finally:
            over.set()
    return [note for written in writing for note in written.result()]


def _let_publish(source: CapturedSource, cursors: int) -> None:
    """Wait for so many cursor records and transaction markers, or the end of patience."""
    until, end = time.monotonic() + PATIENCE_SECONDS, source.cursor_end() + cursors
    wait_until(lambda: source.cursor_end() >= end or time.monotonic() > until, what="cursors")
