"""Applies the records of a batch one by one where they cannot be applied together: what is refused becomes a letter."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Inexact

import structlog
from psycopg import Cursor, DataError
from psycopg.errors import ProgramLimitExceeded

from projector.changes import Changes, Record, Refused
from projector.dead_letters import DeadLetters
from projector.decoding import NO_KEY, Decoder, reason_of
from projector.errors import BadRecord, TooManyDeadLetters
from projector.metrics import DEAD_LETTERS
from projector.registry import ViewVersion, rebuild_command
from projector.tables_as_made import demand_as_made
from projector.writer import Writer
from runtime.settings import ProjectorSettings, variable

log = structlog.get_logger()

REFUSALS = (DataError, ProgramLimitExceeded, Inexact)
"""What writing a record's values can end with: one out of range, too long for an index, or that has no exact sum."""

Name = tuple[str, bytes | None]
"""Topic and raw key: what records of one row have in common."""


@dataclass(frozen=True, slots=True)
class Leniency:
    """What a view may go on after: so many dead letters at a time, 0 for none, and an outage that was too long."""

    dead_letters: int = 0
    long_outages: bool = False


class LenientWriter:
    """Applies records to one version of a view, and keeps its dead letters, in the caller's transaction."""

    def __init__(self, version: ViewVersion, decoder: Decoder, limit: int) -> None:
        self._version = version
        self._decoder = decoder
        self._limit = limit
        self._writer = Writer(version.view, version.version)
        self._letters = DeadLetters(version.view.name, version.version)

    def apply(self, cursor: Cursor, changes: Changes, newest: Mapping[str, Mapping[bytes | None, Record]]) -> None:
        """Apply what the newest records of a batch say, none of which was refused; raises REFUSALS."""
        self._writer.apply(cursor, changes)
        if self._letters.any(cursor):
            self._letters.supersede(cursor, newest)

    def apply_each(self, cursor: Cursor, history: Iterable[Record]) -> Sequence[Refused]:
        """Apply the newest record of each key that can be applied; letter the newest of those that cannot.

        So a batch leaves the same behind wherever it is cut. Returns the letters. Raises BadRecord for the first
        where none are allowed, TooManyDeadLetters for too many, and ProjectorError where the tables are to blame.
        """
        records = list(history)
        refused = self._refused(cursor, records)
        if refused:
            demand_as_made(cursor, self._version.view, self._version.version)
            self.demand_few(refused)
        self._letters.supersede(cursor, by_topic(records))
        self._letters.add(cursor, refused)
        self._demand_room(self._letters.count(cursor), refused)
        return refused

    def demand_few(self, refused: Sequence[Refused]) -> None:
        """Raise BadRecord for the first where no letters are allowed, TooManyDeadLetters where these are too many."""
        if refused and not self._limit:
            first = min(refused, key=lambda one: (one.record.topic(), one.record.partition(), one.record.offset()))
            raise bad_record(first, self._version)
        self._demand_room(len(refused), refused)

    def _refused(self, cursor: Cursor, records: Sequence[Record]) -> list[Refused]:
        refused = [Refused(record, NO_KEY) for record in records if record.key() is None]
        histories: dict[Name, list[Record]] = defaultdict(list)
        for record in records:
            if record.key() is not None:
                histories[_name(record)].append(record)
        newest: dict[Name, Refused] = {}
        # More than are allowed stop it in any case: the others need not be looked for.
        while histories and len(newest) <= self._limit:
            tried = [history.pop() for history in histories.values()]
            bad = {_name(one.record): one for one in self._try(tried, cursor)}
            newest = bad | newest
            histories = {name: histories[name] for name in bad if histories[name]}
        return [*refused, *newest.values()]

    def _try(self, records: Sequence[Record], cursor: Cursor) -> list[Refused]:
        """Apply those records of different keys that can be applied; return the others."""
        unreadable = self._decoder.decode(by_topic(records), limit=self._limit).refused
        if len(unreadable) > self._limit:
            return unreadable
        names = {_name(one.record) for one in unreadable}
        return unreadable + self._halve([record for record in records if _name(record) not in names], cursor)

    def _halve(self, records: Sequence[Record], cursor: Cursor) -> list[Refused]:
        try:
            with cursor.connection.transaction():
                self._writer.apply(cursor, self._decoder.decode(by_topic(records)))
        except REFUSALS as error:
            if len(records) == 1:
                return [Refused(records[0], reason_of(error))]
            middle = len(records) // 2
            refused = self._halve(records[:middle], cursor)
            return refused if len(refused) > self._limit else refused + self._halve(records[middle:], cursor)
        return []

    def _demand_room(self, letters: int, refused: Sequence[Refused]) -> None:
        if refused and letters > self._limit:
            raise TooManyDeadLetters(
                f"view {self._version.view.name!r} would have {letters} dead letters or more, and "
                f"{variable('projector_dead_letter_limit')} is {self._limit}: that many are no strays; nothing of this "
                f"batch was applied. One of them: {_words(refused[0])}. {_altered_advice(self._version)}",
                view=self._version.view.name,
                version=self._version.version,
            )


def note_letters(view: str, refused: Sequence[Refused]) -> None:
    """Log and count letters that were committed."""
    if refused:
        DEAD_LETTERS.labels(view).inc(len(refused))
        advice = f"the view lacks them: viewkeeper-projector dead-letters list {view}"
        log.warning("dead_letters", view=view, records=len(refused), first=_words(refused[0]), advice=advice)


def bad_record(refused: Refused, version: ViewVersion) -> BadRecord:
    """Return the error of a record that stops the projector, since it cannot be applied to this version of a view."""
    return BadRecord(
        f"{_words(refused)}; nothing after it was applied to version {version.version} of view "
        f"{version.view.name!r}. Is its definition right, and does only the capture write to this topic, with the same "
        f"VIEWKEEPER_ENCODING? {_altered_advice(version)} {variable('projector_on_bad_record')}=dead_letter leaves "
        "such records out, and keeps them until newer ones of their keys come",
        view=version.view.name,
        version=version.version,
    )


def _altered_advice(version: ViewVersion) -> str:
    name = version.view.name
    return (
        f"If its table was altered: {rebuild_command(name)} goes on with the view as it is declared for the new table, "
        f"and viewkeeper-projector drop {name} removes a version that readers do not see (docs/views.md, Where a table "
        "is altered)."
    )


def by_topic(records: Iterable[Record]) -> dict[str, dict[bytes | None, Record]]:
    """Return the last of the records of each key, by topic."""
    newest: dict[str, dict[bytes | None, Record]] = {}
    for record in records:
        newest.setdefault(record.topic(), {})[record.key()] = record
    return newest


def _name(record: Record) -> Name:
    return record.topic(), record.key()


def _words(refused: Refused) -> str:
    record = refused.record
    return (
        f"topic {record.topic()} partition {record.partition()} offset {record.offset()} key {record.key()!r}: "
        f"cannot apply this record: {refused.reason}"
    )


def leniency(settings: ProjectorSettings) -> Leniency:
    """Return what the settings let the views go on after."""
    letters = settings.projector_dead_letter_limit if settings.projector_on_bad_record == "dead_letter" else 0
    return Leniency(dead_letters=letters, long_outages=settings.projector_on_long_outage == "go_on")
