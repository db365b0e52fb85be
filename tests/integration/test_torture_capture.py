"""The capture beside writers that do everything at once, killed and begun again at random."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest

from cdc.tables import SourceKind
from compose.local.kafka import KafkaBroker
from tests.daemons import Daemon, Daemons
from tests.torture import Torture
from tests.torture_captures import Captures
from tests.torture_loose import let_loose, let_pass, let_publish, write_and_trouble
from tests.torture_source import CapturedSource
from tests.torture_transactions import AT_FIRST, KEYS, Note
from tests.torture_truth import Truth, read_along
from tests.torture_writers import Writer, fill

MOVES = 3
LEAST_WATERMARKS = 5
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
    notes += write_and_trouble(
        source,
        captures,
        torture,
        Writer,
        after=lambda number: _attach_late(source, number),
        at_last=lambda: _let_pass(source),
    )
    captures.settle()
    _assert_exact(source, captures, notes, torture)


@pytest.mark.torture
@pytest.mark.newest_postgres
@pytest.mark.usefixtures("wal")
def test_topics_equal_tables_that_move_between_sources(
    source_url: str, kafka: KafkaBroker, topic_prefix: str, daemon: Daemons, torture: Torture
) -> None:
    kinds = cycle([SourceKind.WAL, SourceKind.TRIGGERS])
    source = CapturedSource(source_url, kafka.bootstrap_servers, topic_prefix)
    notes = fill(source_url)
    source.attach(*AT_FIRST, "late")
    started: list[Daemon] = []

    def start(kind: SourceKind) -> Daemon:
        started.append(daemon("cdc", "run", settings={**SETTINGS, "VIEWKEEPER_CDC_SOURCE": kind}))
        return started[-1]

    captures = Captures(lambda: start(SourceKind.TRIGGERS), torture.random)
    with let_loose(source_url, torture.random, Writer) as written:
        for kind, _ in zip(kinds, range(MOVES * torture.rounds), strict=False):
            let_publish(source, torture.random.randint(2, 30))
            # A move that is not over is given up by the next one, which the capture that runs would not stand.
            if source.is_moving():
                captures.kill()
            source.move(kind, *AT_FIRST, "late")
            let_publish(source, torture.random.randint(0, 5))
            captures.kill()
            captures = Captures(partial(start, kind), torture.random)
            captures.trouble()
        _let_pass(source)
    captures.settle()
    _assert_exact(replace(source, kind=kind), captures, [*notes, *written], torture)
    # Some handovers were cut off, or led to a snapshot, since tables were altered meanwhile: not all.
    assert any(instance.logged("taken_over") for instance in started)


def _assert_exact(source: CapturedSource, captures: Captures, notes: Sequence[Note], torture: Torture) -> None:
    names = [f"public.{table}" for table in KEYS]
    source.wait_published(names)
    captures.assert_running()
    source.assert_topics_equal_tables()
    readers = read_along(source.cursors(), {name: source.topic(name) for name in names}, Truth(notes))
    assert [wrong for reader in readers.values() for wrong in reader.wrong] == []
    # It was no test if all was published at the end only. Tables that are emptied or altered all the time have few.
    assert sum(reader.watermarks for reader in readers.values()) > 30 * torture.rounds
    assert readers["public.plain"].watermarks > LEAST_WATERMARKS
    assert sum(reader.records_again for reader in readers.values()) > 500 * torture.rounds


def _let_pass(source: CapturedSource) -> None:
    # However slow the machine: troubles and moves take most of the time that they are given.
    let_pass(source, "public.plain", LEAST_WATERMARKS + 1)


def _attach_late(source: CapturedSource, number: int) -> None:
    if number == 1:
        source.attach("late")
