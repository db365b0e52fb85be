"""Tries dead letters again, beside projectors that run: rows change, offsets do not."""

from enum import StrEnum
from typing import cast

import msgspec
from confluent_kafka import Message
from psycopg import Connection, Cursor

from cdc.decoding import Decoding
from projector.changes import Record
from projector.dead_letters import DeadLetter, reason_text
from projector.decoding import Decoder, reason_of
from projector.definition import View
from projector.kept import untied
from projector.lenient import REFUSALS
from projector.offsets import Offsets
from projector.writer import Writer
from runtime.errors import ConfigurationError
from runtime.settings import variable

DEFINITION = """
SELECT definition FROM projector.view_version WHERE view = %s AND version = %s
"""

# Gone is one that was superseded, discarded or applied since it was read.
LOCK_LETTER = """
SELECT FROM projector.dead_letter WHERE id = %s FOR UPDATE
"""

NEW_REASON = """
UPDATE projector.dead_letter SET reason = %s WHERE id = %s
"""

DELETE_LETTER = """
DELETE FROM projector.dead_letter WHERE id = %s
"""


class Outcome(StrEnum):
    """What became of a dead letter that was tried again."""

    APPLIED = "applied"
    DEAD = "still dead"
    GONE = "gone"


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter that was tried again; with a reason if it is still dead."""

    id: int
    view: str
    outcome: Outcome
    reason: str | None = None


class Retrier:
    """Applies dead letters by the definitions that their versions were made from."""

    def __init__(self, connection: Connection, topic_prefix: str, decoding: Decoding) -> None:
        self._connection = connection
        self._topic_prefix = topic_prefix
        self._decoding = decoding
        self._parts: dict[tuple[str, int], tuple[Decoder, Writer]] = {}

    def retry(self, letter: DeadLetter) -> Retried:
        """Apply a letter and delete it, or store why it is still dead.

        A newer record of its key is never overwritten: it took the letter away in its own transaction, and the lock
        on the partition's offset puts the two in an order. Raises ConfigurationError for a topic of another prefix.
        """
        return untied(lambda: self._retry(letter))

    def _retry(self, letter: DeadLetter) -> Retried:
        place = letter.topic, letter.partition
        with self._connection.transaction(), self._connection.cursor() as cursor:
            next_offset = Offsets(letter.view, letter.version).lock(cursor, [place]).get(place, 0)
            if cursor.execute(LOCK_LETTER, [letter.id]).fetchone() is None:
                return Retried(id=letter.id, view=letter.view, outcome=Outcome.GONE)
            if next_offset <= letter.offset:
                # Older records of its key are to come again, and would overwrite it.
                reason = f"its partition was set back and is at {next_offset} again: it comes again by itself"
                return Retried(id=letter.id, view=letter.view, outcome=Outcome.DEAD, reason=reason)
            refused = self._apply(cursor, letter)
            if refused is not None:
                cursor.execute(NEW_REASON, [refused, letter.id])
                return Retried(id=letter.id, view=letter.view, outcome=Outcome.DEAD, reason=refused)
            cursor.execute(DELETE_LETTER, [letter.id])
            return Retried(id=letter.id, view=letter.view, outcome=Outcome.APPLIED)

    def _apply(self, cursor: Cursor, letter: DeadLetter) -> str | None:
        """Apply a letter; return why it cannot be."""
        decoder, writer = self._parts_of(letter)
        changes = decoder.decode({letter.topic: {letter.key: _record(letter)}})
        if changes.refused:
            return reason_text(changes.refused[0].reason)
        try:
            with self._connection.transaction():
                writer.apply(cursor, changes)
        except REFUSALS as error:
            return reason_text(reason_of(error))
        return None

    def _parts_of(self, letter: DeadLetter) -> tuple[Decoder, Writer]:
        version = letter.view, letter.version
        if version not in self._parts:
            (definition,) = self._connection.execute(DEFINITION, version).fetchone() or (None,)
            view = msgspec.convert(definition, View)
            self._parts[version] = Decoder(view, self._topic_prefix, self._decoding), Writer(view, letter.version)
        decoder, writer = self._parts[version]
        if letter.topic not in decoder.topics:
            raise ConfigurationError(
                f"dead letter {letter.id} is of topic {letter.topic}, and view {letter.view!r} is kept from "
                f"{', '.join(sorted(decoder.topics))}: set {variable('topic_prefix')} as the projector has it"
            )
        return decoder, writer


def _record(letter: DeadLetter) -> Record:
    message = Message(
        topic=letter.topic, partition=letter.partition, offset=letter.offset, key=letter.key, value=letter.value
    )
    return cast(Record, message)
