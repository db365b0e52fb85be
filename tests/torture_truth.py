"""What a reader of topics may rely on, held against what was committed, and by when."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from confluent_kafka import Message

from cdc.cursor import Watermark, decode_cursor
from tests.topic_reader import Changelog
from tests.torture_transactions import Change, Key, Note


class Truth:
    """All that was committed: a key's versions, in their order."""

    def __init__(self, notes: Iterable[Note]) -> None:
        self._notes = sorted(notes, key=lambda note: note.committed_by)
        self._alive: dict[tuple[str, Key], set[int]] = defaultdict(set)
        self._last_delete: dict[tuple[str, Key], int] = {}
        for change in (change for note in self._notes for change in note.changes):
            where = change.relation, change.key
            if change.alive:
                self._alive[where].add(change.version)
            else:
                self._last_delete[where] = max(change.version, self._last_delete.get(where, 0))

    def changes(self, relation: str) -> list[tuple[datetime, Change]]:
        """Return a table's changes with their times, in the order of these."""
        return [(n.committed_by, change) for n in self._notes for change in n.changes if change.relation == relation]

    def was_committed(self, relation: str, key: Key, version: int) -> bool:
        """Return whether a key had a row of this version."""
        return version in self._alive[relation, key]

    def is_as_new_as(self, found: int | None, change: Change) -> bool:
        """Return whether a row's version, None for no row, is what a change left or what came after it."""
        if found is not None:
            return found >= change.version
        return self._last_delete.get((change.relation, change.key), 0) >= change.version


@dataclass
class Reader:
    """A consumer of one table's topic that has applied exactly the records before some offsets."""

    truth: Truth
    relation: str
    records: Mapping[int, list[Message]]
    versions: dict[Key, int] = field(default_factory=dict)
    watermarks: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._applied = dict.fromkeys(self.records, 0)
        self._to_come = iter([*self.truth.changes(self.relation), None])
        self._next = next(self._to_come)
        self._newest: dict[Key, Change] = {}

    @property
    def records_again(self) -> int:
        """The number of records of keys that had one before."""
        keys = [record.key() for records in self.records.values() for record in records]
        return len(keys) - len(set(keys))

    def reach(self, watermark: Watermark) -> None:
        """Apply the records before a watermark's offsets, and see that all that it speaks of is there."""
        self.watermarks += 1
        touched = self._apply(watermark.next_offsets)
        while self._next is not None and self._next[0] <= watermark.time:
            change = self._next[1]
            newest = self._newest.get(change.key)
            if newest is None or newest.version < change.version:
                self._newest[change.key] = change
            touched.add(change.key)
            self._next = next(self._to_come)
        for key in touched & self._newest.keys():
            if not self.truth.is_as_new_as(self.versions.get(key), self._newest[key]):
                self.wrong.append(
                    f"watermark {watermark.time} of {self.relation}: {self._newest[key]} was committed by then, "
                    f"and its reader has version {self.versions.get(key)}"
                )

    def _apply(self, next_offsets: tuple[int, ...]) -> set[Key]:
        touched = set()
        for number, records in self.records.items():
            while self._applied[number] < len(records):
                record = records[self._applied[number]]
                if (record.offset() or 0) >= next_offsets[number]:
                    break
                self._applied[number] += 1
                touched.add(self._take(record))
        return touched

    def _take(self, record: Message) -> Key:
        raw_key, value = record.key(), record.value()
        assert isinstance(raw_key, bytes)
        key = tuple(json.loads(raw_key).values())
        if not isinstance(value, bytes):
            self.versions.pop(key, None)
            return key
        self.versions[key] = version = json.loads(value)["version"]
        if not self.truth.was_committed(self.relation, key, version):
            self.wrong.append(f"offset {record.offset()} of {self.relation}: {key} never had the version {version}")
        return key


def read_along(
    cursors: Changelog, topics: Mapping[str, Changelog], truth: Truth, *, certain_only: bool = False
) -> dict[str, Reader]:
    """Read topics (by `schema.name`) watermark by watermark; return the readers, with what they found wrong.

    With `certain_only` they rely on no watermark that says of itself that it is uncertain.
    """
    readers = {name: Reader(truth, name.partition(".")[2], _by_partition(topic)) for name, topic in topics.items()}
    for record in cursors.records:
        value = record.value()
        assert isinstance(value, bytes)
        tables = decode_cursor(value, where="cursor topic").tables
        for name, watermark in ((name, table.watermark) for name, table in tables.items() if name in readers):
            if watermark is not None and not (certain_only and watermark.uncertain):
                readers[name].reach(watermark)
    return readers


def _by_partition(topic: Changelog) -> dict[int, list[Message]]:
    records: dict[int, list[Message]] = defaultdict(list)
    for record in topic.records:
        records[record.partition() or 0].append(record)
    return dict(records)
