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
from msgspec.structs import replace

from cdc import statements, timestamp_sql
from cdc.change import Op, Page
from cdc.cursor import TableCursor
from cdc.fingerprints import Seen
from cdc.kafka_requests import RequestTopic
from cdc.look_back import Order, Walked
from cdc.polling import Intervals, Polling, Position
from cdc.rounds import NO_KEYS, CursorDrain, Drain, Found, Keys, Mark, Positions, Round
from cdc.source import Source, arrays, by_column
from cdc.table_options import Mode, TableOptions
from cdc.tables import CapturedTable, keys_of
from cdc.timestamp_sql import Lower
from cdc.timestamp_tables import PolledTable, looks, polled_table
from runtime.postgres import translated

log = structlog.get_logger()

SCANNED_ROWS = 20_000
"""A walk goes over so many rows at most in one query: polls of other tables wait for it."""


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
        self._asked: dict[int, int] = {}
        self._published: Mapping[str, TableCursor] = {}
        self._previous: Positions = {}
        # Of the newest snapshot.
        self._xmin = ""

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return the tables that VIEWKEEPER_CDC_TABLES names, and what they look like."""
        with translated(self._where), self._reading(()):
            tables = [
                polled_table(
                    self._connection, options, where=self._where, was_there=str(options.name) in self._published
                )
                for options in self._options
            ]
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
        """Take note of which tables there were, and which are complete."""
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
            self._previous = previous
            for table in readable:
                polling = self._pollings[table.attachment]
                polling.tell()
                position, is_behind = self._moved(round_, polling, previous.get(table.name), page_rows(table))
                if position is not None:
                    positions[table.attachment] = position.text()
                behind |= {table.attachment} if is_behind else set()
            round_.positions, round_.behind = positions, frozenset(behind)
            yield round_

    def begun_at(self, round_: Round, table: CapturedTable) -> str:
        """Return the place of the newest row that is there now: numbers may begin again, and zones may have changed."""
        polling = self._pollings[table.attachment]
        position = self._anew(round_, polling)
        polling.look_back.forget(position.newest, position.looked_xmin)
        return position.text()

    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables look like, and how they are polled."""
        return looks(self._connection, [self._pollings[table.attachment].polled for table in tables])

    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:
        """Keep the keys in a cursor of the session."""
        table = found.table
        # Were the pages too large again, late rows among them would be taken for published.
        self._forget(table, previous)
        cursor = self._connection.cursor(f"viewkeeper_keys_{table.attachment}", withhold=True)
        cursor.itersize = 1
        sql = self._render((table, "pages"), lambda: timestamp_sql.key_pages(table))
        cursor.execute(sql, {**arrays(found.keys.literals), "page_keys": page_keys})
        return CursorDrain(found, round_.position_of(table), cursor, where=self._where)

    def sat_out(self, round_: Round, tables: Sequence[CapturedTable]) -> None:  # noqa: ARG002 - the last one
        """Take what the round found of these tables for not published."""
        for table in tables:
            self._forget(table, self._previous)

    def ghosts(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> Page | None:
        """Return deletes of keys from the topic that have no row, and rows that may have come behind a pass."""
        entry = self._published.get(str(table.name))
        position = self._pollings[table.attachment].position(entry.position if entry else None)
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "swept"), lambda: timestamp_sql.swept(table))
            with keys_of(table):
                values = {**arrays(keys), "since": position.swept_xmin if position else None}
                rows = self._rows(sql, values) if keys else ()
            return self._page_of(table, rows, read_at_ms, Op.READ)

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Ask the capture for keys by the requests' topic."""
        self._asked[table.attachment] = self._requests.ask_for_keys(table.name, keys)

    def has_read_logged(self, table: CapturedTable, position: str) -> bool:
        """Return whether the newest request of this process is done: it is looked for less often than rows are."""
        found = self._pollings[table.attachment].position(position)
        return found is not None and found.keys_request >= self._asked.get(table.attachment, 0)

    def _items(self) -> list[tuple[int, Polling]]:
        return list(self._pollings.items())

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        row = self._connection.execute(timestamp_sql.HEAD, prepare=True).fetchone()
        assert row is not None  # noqa: S101 - a query without a table has one row
        began, is_replica, known_by, self._xmin = row
        return Round(
            time=began,
            known_by=known_by,
            position="",
            tokens=frozenset((self._token,)),
            tables=tables,
            # How far it has looked back, too, so that the next session goes on there.
            moves_on=True,
            is_estimate=True,
            # What a replica has not replayed yet was committed, and is nowhere to be seen.
            pass_began=None if is_replica else began,
        )

    def _moved(self, round_: Round, polling: Polling, text: str | None, most_rows: int) -> tuple[Position | None, bool]:
        """Add what a table has for this round; return how far it comes, None if nowhere, and whether there is more."""
        position, is_bulk = polling.position(text), polling.polled.mode is Mode.BULK
        if position is None:
            if text is not None:
                # One in another order: nobody knows which rows lie behind it.
                self._pass(round_, polling)
            return None, is_bulk
        if is_bulk:
            return self._passed(round_, polling, position), True
        return self._polled(round_, polling, position, most_rows)

    def _anew(self, round_: Round, polling: Polling) -> Position:
        """Return a table's position where all of its rows are to be read, which does what was asked for till now."""
        after = None if polling.polled.mode is Mode.BULK else self._newest(polling.polled)
        return Position(
            by=polling.by,
            after=after,
            swept_at=round_.time,
            swept_xmin=self._xmin,
            # What is there now is read with all rows.
            looked_xmin=self._xmin,
            keys_request=self._requests.newest_keys.get(str(polling.polled.table.name), 0),
        )

    def _passed(self, round_: Round, polling: Polling, position: Position) -> Position:
        """Have all rows read again when the time has come; return the table's position until then."""
        entry = self._published.get(str(polling.polled.table.name))
        # Whether the newest pass is at its end, Kafka tells: a pass begun too soon would never come there.
        is_over = entry is not None and entry.complete and entry.position == position.text()
        if not is_over or not position.is_due(round_.time, self._intervals.bulk_seconds):
            return position
        self._pass(round_, polling)
        return position

    def _pass(self, round_: Round, polling: Polling) -> None:
        round_.found.append(Found(polling.polled.table, 0, frozenset((Mark.PASS,)), NO_KEYS))

    def _polled(self, round_: Round, polling: Polling, position: Position, most_rows: int) -> tuple[Position, bool]:
        """Add a page at most of changed rows, late ones, and keys that were asked for."""
        table, places = polling.polled.table, timestamp_sql.key_places(polling.polled)
        look_back = polling.look_back
        look_back.resume(position.newest, position.looked_xmin)
        look_back.turn(position.after, self._xmin, time.monotonic())
        rows = self._beyond(polling, position.after, most_rows)
        is_behind = len(rows) == most_rows
        late = [] if is_behind else self._late(polling, most_rows - len(rows))
        moved = replace(
            position,
            after=rows[-1] if rows else position.after,
            looked_at=look_back.newest,
            looked_xmin=look_back.since,
        )
        keys = {tuple(row[place] for place in places) for row in (*rows, *late)}
        asked = None if is_behind else self._requests.next_keys(str(table.name), done=position.keys_request)
        if asked is not None:
            keys.update(self._texts(table, asked.keys))
            moved = replace(moved, keys_request=asked.number)
        marks = frozenset[Mark]()
        if self._is_sweep_due(round_, table, position):
            marks, moved = frozenset((Mark.SWEEP,)), replace(moved, swept_at=round_.time, swept_xmin=self._xmin)
        if keys or marks:
            literals = by_column(keys)
            round_.found.append(Found(table, len(keys), marks, Keys(len(keys), literals)))
        return moved, is_behind

    def _late(self, polling: Polling, most_rows: int) -> list[Order]:
        look_back = polling.look_back
        if look_back.until is None:
            return []
        values = {
            **_numbered("until", look_back.until),
            **_numbered("after", look_back.after or ()),
            "newest": look_back.newest,
            "window": self._intervals.look_back_seconds,
            "since": look_back.since,
            "begun": look_back.begun,
            "scanned_rows": SCANNED_ROWS,
            "most_rows": most_rows,
        }
        lower = Lower.AFTER if look_back.after else Lower.WINDOW if look_back.newest else Lower.NONE
        sql = self._render((polling.polled, "walked", lower), lambda: timestamp_sql.walked(polling.polled, lower))
        rows = [Walked(row[:-4], *row[-4:]) for row in self._connection.execute(sql, values, prepare=True)]
        is_last = len(rows) < most_rows and not (rows and rows[-1].is_cut)
        late = look_back.late(rows, is_last=is_last, now=time.monotonic())
        if late:
            log.info("found_late", table=str(polling.polled.table.name), rows=len(late))
        return late

    def _texts(self, table: CapturedTable, keys: Sequence[Order]) -> list[Order]:
        """Return keys from the topic as the texts of their columns' types."""
        sql = self._render((table, "texts"), lambda: statements.key_texts(table))
        with keys_of(table):
            found = self._connection.execute(sql, arrays(by_column(keys))).fetchone()
        return list(zip(*found or (), strict=True))

    def _is_sweep_due(self, round_: Round, table: CapturedTable, position: Position) -> bool:
        entry, seconds = self._published.get(str(table.name)), self._intervals.sweep_seconds
        return bool(seconds and entry is not None and entry.complete and position.is_due(round_.time, seconds))

    def _beyond(self, polling: Polling, after: Order | None, most_rows: int) -> list[Order]:
        """Read the rows behind a position, and note those that a walk would be asked for."""
        lower = Lower.NONE if after is None else Lower.AFTER
        sql = self._render((polling.polled, "beyond", lower), lambda: timestamp_sql.beyond(polling.polled, lower))
        values = {**_numbered("after", after or ()), "since": polling.look_back.open_since, "most_rows": most_rows}
        rows = self._connection.execute(sql, values, prepare=True).fetchall()
        polling.look_back.note({row[:-2]: row[-2] for row in rows if row[-1]})
        return [row[:-2] for row in rows]

    def _newest(self, polled: PolledTable) -> Order | None:
        sql = self._render((polled, "newest"), lambda: timestamp_sql.newest(polled))
        # Without parameters a % in a column's name, which is doubled, would stay so.
        return self._connection.execute(sql, {}, prepare=True).fetchone()

    def _forget(self, table: CapturedTable, previous: Positions) -> None:
        polling = self._pollings[table.attachment]
        position = polling.position(previous.get(table.name))
        if position is not None:
            polling.look_back.forget(position.newest, position.looked_xmin)


def _numbered(name: str, order: Order) -> dict[str, str]:
    return {f"{name}_{place}": text for place, text in enumerate(order)}
