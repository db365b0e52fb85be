"""Taking tables up: their topics, and whether what a cursor says still belongs to them."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from cdc.cursor import Cursor, Sweep, TableCursor
from cdc.decoding import shown
from cdc.encoding import Encoding, Form
from cdc.errors import CaptureError
from cdc.sweep import MOST_SHOWN, KeyReader
from cdc.tables import CapturedTable, SourceKind
from cdc.topics import CHANGELOG_CONFIG, Topic, end_offsets, ensure_topic, topic_identities
from cdc.wire import topic_name
from runtime.settings import CdcSettings

CHECK_SECONDS = 5.0
"""So often topics are asked whether they are still the same."""

_LIBRDKAFKA_MOST_BYTES = 1_000_000
# Of a record and its batch beside the row: key, headers, framing.
_RECORD_OVERHEAD_BYTES = 2_048
_SAMPLE_RECORDS = 100

_ANEW = (
    "run: viewkeeper-cdc snapshot {table}; it is read anew then, and the views that read it are to be rebuilt from the "
    "topic's beginning"
)
_OTHER_LABELS = (
    "undo that, and run: viewkeeper-cdc snapshot {table}; or delete topic {topic}, run: viewkeeper-cdc snapshot "
    "{table}, and rebuild the views that read it"
)
_OTHER_KEYS = (
    "undo that; or delete topic {topic}, run: viewkeeper-cdc snapshot {table}, and rebuild the views that read it"
)
_OTHER_KEYS_ATTACHED = (
    "detach {table}, delete topic {topic}, attach it anew, run: viewkeeper-cdc snapshot {table}, and rebuild the views "
    "that read it"
)


class TakingUp:
    """Makes and checks the topics of a capture's tables.

    `cursors` reads all captures' newest cursors, since another one may have begun with a table just now. `limits` has
    the largest row, in bytes, that each topic takes for sure.
    """

    def __init__(
        self,
        settings: CdcSettings,
        admin: AdminClient,
        encoding: Encoding,
        cursors: Callable[[], Mapping[str, Cursor]],
    ) -> None:
        self.encoding = encoding
        self._settings = settings
        self._admin = admin
        self._cursors = cursors
        self._most_bytes = int(settings.kafka_options.get("message.max.bytes", _LIBRDKAFKA_MOST_BYTES))
        self._checked_at = time.monotonic()
        self.limits: dict[str, int] = {}

    def entry(self, table: CapturedTable, known: TableCursor | None, *, requested: bool) -> TableCursor:
        """Return a table's part of the cursor: the `known` one, if it belongs to the table and the topic as they are.

        If there is none, or a snapshot was `requested` and the topic is another one by now, it is a new part, waiting.
        Raises CaptureError, with what to do, where going on would leave the topic different from the table, and what
        the encoding raises for a table that cannot be written as it is now.
        """
        name = topic_name(self._settings.topic_prefix, table.name)
        form = self.encoding.form(name, table)
        partitions = self._settings.topic_partitions
        topic = ensure_topic(self._admin, self._settings, name, partitions=partitions, config=CHANGELOG_CONFIG)
        self.limits[topic.name] = min(topic.max_message_bytes, self._most_bytes) - _RECORD_OVERHEAD_BYTES
        ends = end_offsets(self._admin, topic.name, topic.partitions, isolation=IsolationLevel.READ_UNCOMMITTED)
        same = known is not None and known.topic == topic.name and known.topic_id in ("", topic.topic_id)
        if known is not None and any(ends) and known.topic == topic.name and known.key not in ((), key_of(table)):
            advice = _OTHER_KEYS if table.source is SourceKind.TIMESTAMP else _OTHER_KEYS_ATTACHED
            raise CaptureError(
                f"{table.name} has the key ({', '.join(key_of(table))}), and topic {topic.name} was written with "
                f"({', '.join(known.key)}): {advice.format(table=table.name, topic=topic.name)}"
            )
        if known is not None and any(ends) and known.topic == topic.name:
            labelled(table, known)
            _demand_same_form(table, known, form)
        if known is not None and same and known.attachment == table.attachment:
            _demand_same_log(table, known, topic, ends)
            return replace(known, encoding=form.encoding, key_schema=form.key_schema)
        if known is not None and not same and known.attachment == table.attachment and not requested:
            raise CaptureError(
                f"topic {topic.name} was deleted and made anew: what was published is gone; "
                f"{_ANEW.format(table=table.name)}"
            )
        self._demand_sole_writer(table, topic)
        if known is None and any(ends) and requested:
            self._demand_readable(table, topic.name, ends)
        if any(ends) and not requested:
            raise CaptureError(
                f"topic {topic.name} has records, but the cursor knows nothing of this attachment of {table.name}: "
                f"rows deleted meanwhile would stay in it for ever; {_ANEW.format(table=table.name)}"
            )
        return TableCursor(
            topic=topic.name,
            topic_id=topic.topic_id,
            attachment=table.attachment,
            key=key_of(table),
            labels=table.labels,
            position=None,
            complete=False,
            next_offsets=ends,
            encoding=form.encoding,
            key_schema=form.key_schema,
        )

    def ends(self, entry: TableCursor) -> tuple[int, ...]:
        """Return the end offsets of a table's topic, what is being published included."""
        count = len(entry.next_offsets)
        return end_offsets(self._admin, entry.topic, count, isolation=IsolationLevel.READ_UNCOMMITTED)

    def check(self, entries: Iterable[TableCursor]) -> None:
        """Now and then, raise CaptureError if a topic is another one than it was, or has other partitions."""
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return
        known = {entry.topic: entry for entry in entries}
        found = topic_identities(self._admin, known)
        self._checked_at = time.monotonic()
        for name, entry in known.items():
            topic_id, partitions = found.get(name, ("", 0))
            table = name.removeprefix(f"{self._settings.topic_prefix}.")
            if entry.topic_id and topic_id != entry.topic_id:
                raise CaptureError(f"topic {name} was deleted, or made anew: {_ANEW.format(table=table)}")
            if partitions != len(entry.next_offsets):
                raise CaptureError(_repartitioned(name, table, partitions, len(entry.next_offsets)))

    def _demand_readable(self, table: CapturedTable, topic: str, ends: tuple[int, ...]) -> None:
        """Raise CaptureError if a topic that no cursor tells of begins with keys that are none of the table's."""
        begin = Sweep(next_offsets=(0,) * len(ends), end_offsets=ends)
        with closing(KeyReader(self._settings, self.encoding.decoding, table, topic, begin)) as reader:
            sample = reader.batch(_SAMPLE_RECORDS)
        # Beside keys of ours they are another program's.
        if sample.foreign and not sample.keys:
            first = shown(self.encoding.decoding, sample.foreign[0])[:MOST_SHOWN]
            raise CaptureError(
                f"topic {topic}: it has keys that are none of {table.name}, as VIEWKEEPER_ENCODING="
                f"{self._settings.encoding} writes them, {first} for instance; set "
                f"VIEWKEEPER_ENCODING as it was, or delete topic {topic}, then {_ANEW.format(table=table.name)}"
            )

    def _demand_sole_writer(self, table: CapturedTable, topic: Topic) -> None:
        for name, cursor in self._cursors().items():
            if name != self._settings.cdc_name and any(entry.topic == topic.name for entry in cursor.tables.values()):
                raise CaptureError(
                    f"topic {topic.name} is written by capture {name}: detach {table.name} from one of them, or take "
                    "it out of VIEWKEEPER_CDC_TABLES of one that polls"
                )


def key_of(table: CapturedTable) -> tuple[str, ...]:
    """Return names and types of a table's key columns, as far as they show in the topic's keys."""
    alike = {"smallint": "integer", "bigint": "integer", "character varying": "text"}
    return tuple(f"{column.name} {alike.get(column.type, column.type)}" for column in table.key)


def labelled(table: CapturedTable, entry: TableCursor) -> TableCursor:
    """Return a table's part of the cursor with the labels that the enums in its key have now; more are no harm.

    Raises CaptureError, with what to do, if one was renamed: the topic has keys with its old name.
    """
    renamed = sorted(set(entry.labels) - set(table.labels))
    if renamed:
        label = renamed[0].split(" ", 1)[1]
        raise CaptureError(
            f"{table.name}: label {label} of an enum in its key was renamed, and topic {entry.topic} was written with "
            f"it: {_OTHER_LABELS.format(table=table.name, topic=entry.topic)}"
        )
    return replace(entry, labels=table.labels)


def _demand_same_form(table: CapturedTable, known: TableCursor, form: Form) -> None:
    """Raise CaptureError if keys would be other bytes than those in the topic, and lie in other partitions."""
    before = Form(known.encoding, known.key_schema)
    if before != form:
        raise CaptureError(
            f"topic {known.topic} was written with {before}, and would be written with {form} now: a key's old and new "
            f"rows would be different keys; set it back, or delete topic {known.topic}, then "
            f"{_ANEW.format(table=table.name)}"
        )


def _demand_same_log(table: CapturedTable, known: TableCursor, topic: Topic, ends: tuple[int, ...]) -> None:
    if len(known.next_offsets) != topic.partitions:
        raise CaptureError(_repartitioned(topic.name, str(table.name), topic.partitions, len(known.next_offsets)))
    if any(end < next_offset for end, next_offset in zip(ends, known.next_offsets, strict=True)):
        raise CaptureError(
            f"topic {topic.name} holds less than was published to it: Kafka lost records; delete it, then "
            f"{_ANEW.format(table=table.name)}"
        )


def _repartitioned(topic: str, table: str, now: int, before: int) -> str:
    return (
        f"topic {topic} has {now} partitions, and had {before}: a key's old and new rows would lie in different "
        f"ones; delete it, then {_ANEW.format(table=table)}"
    )
