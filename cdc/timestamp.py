"""The timestamp source: which rows changed, asked of columns that their writers keep. It reads, and writes nothing.

A poll takes the rows behind a position in the order of a timestamp, of a number that grows, or of both, and of the key
last: equal timestamps lie on both sides of a page, or of a restart, without a gap. What such columns do not tell, no
poll finds: deletes, updates that leave them alone, rows that were committed late. Looking back, sweeps over the topic's
keys and passes over all rows find most of it: docs/timestamp.md has which and at what cost.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
import structlog
from psycopg.sql import Composed

from cdc import statements, timestamp_sql
from cdc.cursor import TableCursor
from cdc.fingerprints import Seen
from cdc.kafka_requests import RequestTopic
from cdc.look_back import Order
from cdc.polling import Intervals, Polling
from cdc.rounds import NO_KEYS, CursorDrain, Drain, Found, Keys, Mark, Positions, Round
from cdc.source import Source, arrays
from cdc.table_options import Mode, TableOptions
from cdc.tables import CapturedTable, keys_of
from cdc.timestamp_tables import PolledTable, looks, polled_table
from runtime.postgres import translated

log = structlog.get_logger()


class TimestampSource(Source):
    """Finds changed rows by their columns; a position is what orders the last one that was read.

    `token` is what tells this database from others. Keys that are to be read again come by the requests' topic.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        capture: str,
        *,
        where: str,
        token: str,
        options: Sequence[TableOptions],
        intervals: Intervals,
        requests: RequestTopic,
    ) -> None:
        super().__init__(connection, capture, where=where)
        self._token = token
        self._options = options
        self._intervals = intervals
        self._requests = requests
        self._pollings: dict[int, Polling] = {}
        self._published: Mapping[str, TableCursor] = {}

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return the tables that VIEWKEEPER_CDC_TABLES names, and what they look like."""
        with translated(self._where), self._reading(()):
            tables = [polled_table(self._connection, options, where=self._where) for options in self._options]
            seen = looks(self._connection, tables)
        before, self._pollings = self._pollings, {}
        for polled in tables:
            known = before.get(polled.table.attachment)
            if known is None or known.polled != polled:
                known = Polling(polled, self._intervals)
            self._pollings[polled.table.attachment] = known
        return tuple(polled.table for polled in tables), seen

    def requests(self) -> dict[int, int]:
        """Return the newest request for each table, and take note of the keys that are to be read again."""
        self._requests.read()
        return {number: self._requests.newest.get(str(one.polled.table.name), 0) for number, one in self._items()}

    def out_of_reach(self, positions: Mapping[int, str]) -> Mapping[int, str]:  # noqa: ARG002 - interface
        """Return nothing: a row's columns are asked, and they stay."""
        return {}

    def committed(self, published: Mapping[str, TableCursor]) -> None:
        """Take note of which tables are complete."""
        self._published = published

    def arm(self, table: CapturedTable) -> bool:  # noqa: ARG002 - interface
        """Return that nothing was added: a table lacks nothing."""
        return False

    def empty(self, table: CapturedTable) -> None:
        """Do nothing: no changes are kept anywhere."""

    def may_begin(self, table: CapturedTable) -> bool:  # noqa: ARG002 - interface
        """Return that any table can be read anew at any time."""
        return True

    @contextmanager
    def round(
        self, tables: Sequence[CapturedTable], previous: Positions, page_rows: Callable[[CapturedTable], int]
    ) -> Iterator[Round]:
        """Take the rows behind each position, late ones, and keys that are to be read again: a page at most."""
        with translated(self._where), self._reading(tables) as readable:
            round_ = self._head(readable)
            positions, behind = dict[int, str](), set[int]()
            for table in readable:
                polling, text = self._pollings[table.attachment], previous.get(table.name)
                polling.tell()
                if polling.polled.mode is Mode.BULK:
                    positions[table.attachment] = self._passed(round_, polling, text)
                    behind.add(table.attachment)
                elif (position := polling.position(text)) is None:
                    positions[table.attachment] = polling.text(self._newest(polling))
                else:
                    after, is_behind = self._polled(round_, polling, position.after, page_rows(table))
                    positions[table.attachment] = polling.text(after)
                    behind |= {table.attachment} if is_behind else set()
            round_.positions, round_.behind = positions, frozenset(behind)
            yield round_

    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables look like, and how they are polled."""
        return looks(self._connection, [self._pollings[table.attachment].polled for table in tables])

    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:  # noqa: ARG002
        """Keep the keys in a cursor of the session."""
        table = found.table
        # Were the pages too large again, late rows among them would be taken for seen.
        self._pollings[table.attachment].look_back.forget()
        cursor = self._connection.cursor(f"viewkeeper_keys_{table.attachment}", withhold=True)
        cursor.itersize = 1
        sql = self._render((table, "pages"), lambda: timestamp_sql.key_pages(table))
        cursor.execute(sql, {**arrays(found.keys.literals), "page_keys": page_keys})
        return CursorDrain(found, round_.position_of(table), cursor, where=self._where)

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Ask the capture for keys by the requests' topic."""
        self._requests.ask_for_keys(table.name, keys)

    def _items(self) -> list[tuple[int, Polling]]:
        return list(self._pollings.items())

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        row = self._connection.execute(timestamp_sql.HEAD, prepare=True).fetchone()
        assert row is not None  # noqa: S101 - a query without a table has one row
        began, is_replica, known_by = row
        return Round(
            time=began,
            known_by=known_by,
            position="",
            tokens=frozenset((self._token,)),
            tables=tables,
            is_estimate=True,
            # What a replica has not replayed yet was committed, and is nowhere to be seen.
            pass_began=None if is_replica else began,
        )

    def _passed(self, round_: Round, polling: Polling, text: str | None) -> str:
        """Begin with all rows again when the time has come; return the table's position."""
        entry, now = self._published.get(str(polling.polled.table.name)), time.monotonic()
        if text is not None and polling.position(text) is not None:
            # Whether the newest pass is at its end, Kafka tells: a pass begun too soon would never come there.
            is_over = entry is not None and entry.complete and entry.position == text
            if not is_over or now - polling.read_at < self._intervals.bulk_seconds:
                return text
            round_.found.append(Found(polling.polled.table, 0, frozenset((Mark.PASS,)), NO_KEYS))
        polling.read_at = now
        return polling.text((round_.time.isoformat(),))

    def _newest(self, polling: Polling) -> Order | None:
        rows = self._order("newest", polling, {"most_rows": 1})
        return rows[0] if rows else None

    def _polled(
        self, round_: Round, polling: Polling, after: Order | None, most_rows: int
    ) -> tuple[Order | None, bool]:
        """Add what a table has for this round; return how far it has come, and whether there is more."""
        rows = self._beyond(polling, after, most_rows)
        polling.look_back.note(rows)
        is_behind = len(rows) == most_rows
        late = [] if is_behind else self._late(polling, rows[-1] if rows else after, most_rows - len(rows))
        places = timestamp_sql.key_places(polling.polled)
        keys = {tuple(row[place] for place in places) for row in (*rows, *late)}
        if late:
            log.info("found_late", table=str(polling.polled.table.name), rows=len(late))
        keys.update(self._asked_for(polling, most_rows - len(keys)))
        marks = frozenset((Mark.SWEEP,)) if self._is_sweep_due(polling) else frozenset[Mark]()
        if keys or marks:
            literals = [list(texts) for texts in zip(*keys, strict=True)]
            round_.found.append(Found(polling.polled.table, len(keys), marks, Keys(len(keys), literals)))
        return rows[-1] if rows else after, is_behind

    def _late(self, polling: Polling, newest: Order | None, most_rows: int) -> list[Order]:
        look_back, now = polling.look_back, time.monotonic()
        if newest is None or not most_rows or not look_back.is_due(now):
            return []
        if look_back.after is None:
            values = {"newest": newest[0], "window": self._intervals.look_back_seconds, "most_rows": most_rows}
            rows = self._order("since", polling, values)
        else:
            rows = self._beyond(polling, look_back.after, most_rows)
        return look_back.late(rows, is_last=len(rows) < most_rows, now=now)

    def _asked_for(self, polling: Polling, most_keys: int) -> list[Order]:
        table = polling.polled.table
        asked = self._requests.take_keys(str(table.name), most_keys)
        if not asked:
            return []
        sql = self._render((table, "texts"), lambda: statements.key_texts(table))
        columns = [list(texts) for texts in zip(*asked, strict=True)]
        with keys_of(table):
            found = self._connection.execute(sql, arrays(columns)).fetchone()
        return list(zip(*found or (), strict=True))

    def _is_sweep_due(self, polling: Polling) -> bool:
        entry, now = self._published.get(str(polling.polled.table.name)), time.monotonic()
        seconds = self._intervals.sweep_seconds
        if not seconds or entry is None or not entry.complete or now - polling.swept_at < seconds:
            return False
        polling.swept_at = now
        return True

    def _beyond(self, polling: Polling, after: Order | None, most_rows: int) -> list[Order]:
        values = {f"after_{place}": text for place, text in enumerate(after or ())}
        return self._order("beyond" if after is None else "resumed", polling, {**values, "most_rows": most_rows})

    def _order(self, what: str, polling: Polling, values: Mapping[str, object]) -> list[Order]:
        polled = polling.polled
        build = _BUILDERS[what]
        sql = self._render((polled, what), lambda: build(polled))
        return self._connection.execute(sql, values, prepare=True).fetchall()


_BUILDERS: Mapping[str, Callable[[PolledTable], Composed]] = {
    "newest": timestamp_sql.newest,
    "since": timestamp_sql.since,
    "beyond": lambda polled: timestamp_sql.beyond(polled, resumed=False),
    "resumed": lambda polled: timestamp_sql.beyond(polled, resumed=True),
}
