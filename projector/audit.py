"""The audit: whether the view is what SQL over the source gives.

Source and view are live and never at the same moment, so rows that differ at first are looked at again: see `settle`.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
from psycopg import Connection, ServerCursor
from psycopg.rows import scalar_row

from projector.audit_sql import AuditStatements, as_key, build_audit_statements, key_and_row, key_parameters
from projector.changes import Key
from projector.definition import View
from projector.errors import DefinitionError, Refused
from projector.reaching import wait_until_reached
from projector.registry import active_versions
from projector.source_check import padded_columns, padding_complaints
from runtime.postgres import connect, describe, translated

CLIENT_NAME = "viewkeeper-audit"
FETCH_ROWS = 5_000
SETTLE_ROWS = 5_000

TRIES = 10
CONFIRMATIONS = 5
"""So often must the same row of the view be seen beside the same row of the source, unequal to it: a source that goes
there and back between two looks can fool one of them."""

EXAMPLES = 10
GHOST, MISSING = "(ghost)", "(missing)"

# The same text for the same row on both sides; rows that a policy hides would look deleted, so that it is an error.
SESSION_SETTINGS = {
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
    "row_security": "off",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    # The whole result is read: without this a server cursor is planned for its first rows.
    "cursor_tuple_fraction": "1",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs, as JSON text; None where there is no such row."""

    key: Key
    in_source: str | None
    in_view: str | None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that differ, `(ghost)` for a row that only the view has, `(missing)` for the reverse."""
        if self.in_source is None or self.in_view is None:
            return (GHOST if self.in_source is None else MISSING,)
        source, view = (
            msgspec.json.decode(text, type=dict[str, msgspec.Raw]) for text in (self.in_source, self.in_view)
        )
        return tuple(name for name in source if source[name] != view[name])


@dataclass(slots=True)
class AuditResult:
    """What an audit of a view found.

    `compared_rows` counts keys of either side; `differing_rows` those that differ for sure, `differing_fields` how
    often each field does, `examples` the first of them; `undecided_rows` changed too fast to be judged.
    """

    view: str
    compared_rows: int = 0
    differing_rows: int = 0
    undecided_rows: int = 0
    differing_fields: Counter[str] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, difference: Difference) -> None:
        """Note a row that differs for sure."""
        self.differing_rows += 1
        self.differing_fields.update(difference.fields)
        if len(self.examples) < EXAMPLES:
            self.examples.append(difference)

    def line(self) -> str:
        """Return the result in a line."""
        undecided = f", {self.undecided_rows} undecided" if self.undecided_rows else ""
        return f"{self.view}: {self.compared_rows} rows compared, {self.differing_rows} differ{undecided}"


def audit_view(
    view: View, *, source_url: str, view_url: str, wait_seconds: float = 60.0, sample: int | None = None
) -> AuditResult:
    """Compare a view with a recomputation by SQL over its source tables, while both are in use.

    All rows, or those of `sample` random keys of the source and as many of the view. Raises NotReached when the view
    has not reached the source's time within `wait_seconds`, DefinitionError when its key is padded in the source, and
    Refused when rows differ and another version was swapped in meanwhile, which may be of another definition.
    """
    began = time.monotonic()
    result = AuditResult(view.name)
    with ExitStack() as stack:
        source = stack.enter_context(_session(source_url))
        kept = stack.enter_context(_session(view_url))
        # As the version that readers see was defined: a declaration may be ahead of it, or behind.
        (shown,) = active_versions(kept, [view], where=describe(view_url))
        audit = _Audit(shown.view, source, kept, wait_seconds)
        suspects = audit.suspects(result) if sample is None else audit.sample(sample, result)
        for start in range(0, len(suspects), SETTLE_ROWS):
            audit.settle(suspects[start : start + SETTLE_ROWS], result)
        (shown_now,) = active_versions(kept, [view], where=describe(view_url))
    if result.differing_rows and shown_now.version != shown.version:
        raise Refused(
            f"view {view.name!r} was swapped from version {shown.version} to {shown_now.version} while it was audited: "
            "run the audit again"
        )
    result.seconds = time.monotonic() - began
    return result


class _Audit:
    def __init__(self, view: View, source: Connection, kept: Connection, wait_seconds: float) -> None:
        self._view = view
        self._source = source
        self._kept = kept
        self._wait_seconds = wait_seconds
        with _translated(source):
            padded = padded_columns(source, view)
            complaints = padding_complaints(source, view, padded)
        if complaints:
            # Compared is what the topics say: no difference would be found, and it is not what SQL says.
            raise DefinitionError(f"view {view.name!r} cannot be audited: {'; '.join(complaints)}")
        self._statements: AuditStatements = build_audit_statements(view, padded)

    def suspects(self, result: AuditResult) -> list[Key]:
        """Compare all rows: the source in one snapshot, the view in a later one that reflects all of it."""
        suspects: list[Key] = []
        with self._source.transaction(), _stream(self._source, self._statements.source_rows) as source_rows:
            # The cursor's declaration has taken the snapshot; only after it the time is read.
            wait_until_reached(self._kept, self._view.name, self._now(), wait_seconds=self._wait_seconds)
            with self._kept.transaction(), _stream(self._kept, self._statements.view_rows) as view_rows:
                for key, in_source, in_view in _merged(source_rows, view_rows):
                    result.compared_rows += 1
                    if in_source != in_view:
                        suspects.append(key)
        return suspects

    def sample(self, count: int, result: AuditResult) -> list[Key]:
        """Return random keys, of the view too: the source has none of a row that should not be there."""
        keys: dict[Key, None] = {}
        for session, query in (
            (self._source, self._statements.source_keys),
            (self._kept, self._statements.view_keys),
        ):
            with _translated(session):
                keys.update((as_key(read), None) for read in session.execute(query, {"count": count}))
        result.compared_rows = len(keys)
        return list(keys)

    def settle(self, suspects: Sequence[Key], result: AuditResult) -> None:
        """Look at suspects again: source, then the view once it reflects that, then the source once more.

        A row is right when the view equals either look at the source, and wrong when it equals neither while the
        source stood still, CONFIRMATIONS times with the same texts. One that is neither after TRIES looks is undecided.
        """
        unequal: dict[Key, tuple[str | None, str | None]] = {}
        confirmations: Counter[Key] = Counter()
        for _ in range(TRIES):
            if not suspects:
                return
            before, time_before = self._look(suspects)
            wait_until_reached(self._kept, self._view.name, time_before, wait_seconds=self._wait_seconds)
            in_view = self._rows_of(self._kept, self._statements.view_rows_of, suspects)
            after, _ = self._look(suspects)
            undecided: list[Key] = []
            for key in suspects:
                shown = in_view.get(key)
                if shown in (before.get(key), after.get(key)):
                    continue
                if before.get(key) == after.get(key):
                    seen = before.get(key), shown
                    confirmations[key] = confirmations[key] + 1 if unequal.get(key) == seen else 1
                    unequal[key] = seen
                if confirmations[key] < CONFIRMATIONS:
                    undecided.append(key)
                else:
                    result.add(Difference(key, before.get(key), shown))
            suspects = undecided
        result.undecided_rows += len(suspects)

    def _look(self, keys: Sequence[Key]) -> tuple[dict[Key, str], datetime]:
        with self._source.transaction():
            return self._rows_of(self._source, self._statements.source_rows_of, keys), self._now()

    def _rows_of(self, connection: Connection, statement: bytes, keys: Sequence[Key]) -> dict[Key, str]:
        with _translated(connection):
            return dict(map(key_and_row, connection.execute(statement, key_parameters(self._view, keys))))

    def _now(self) -> datetime:
        with _translated(self._source), self._source.cursor(row_factory=scalar_row) as cursor:
            return cast(datetime, cursor.execute("SELECT clock_timestamp()").fetchone())


@contextmanager
def _stream(connection: Connection, query: bytes) -> Iterator[Iterator[tuple[Key, str]]]:
    """Open a server cursor now; its rows are fetched in pieces as they are iterated."""
    with connection.cursor(name="audit") as cursor:
        cursor.itersize = FETCH_ROWS
        with _translated(connection):
            # A view's expressions are written for statements that have parameters.
            cursor.execute(query, {})
        yield _fetched(cursor)


def _fetched(cursor: ServerCursor) -> Iterator[tuple[Key, str]]:
    with _translated(cursor.connection):
        yield from map(key_and_row, cursor)


def _translated(connection: Connection) -> AbstractContextManager[None]:
    """Translate errors of one of the two databases, which are open at the same time, under its own name."""
    return translated(describe(connection.info.dsn))


def _merged(
    source: Iterator[tuple[Any, str]], view: Iterator[tuple[Any, str]]
) -> Iterator[tuple[Key, str | None, str | None]]:
    """Merge two streams in the order of their keys, which are of one type: key, row in the source, row in the view."""
    in_source, in_view = next(source, None), next(view, None)
    while in_source or in_view:
        if in_source and (in_view is None or in_source[0] < in_view[0]):
            yield in_source[0], in_source[1], None
            in_source = next(source, None)
        elif in_view and (in_source is None or in_view[0] < in_source[0]):
            yield in_view[0], None, in_view[1]
            in_view = next(view, None)
        elif in_source and in_view:
            yield in_source[0], in_source[1], in_view[1]
            in_source, in_view = next(source, None), next(view, None)


@contextmanager
def _session(url: str) -> Iterator[Connection]:
    with connect(url, name=CLIENT_NAME, settings=SESSION_SETTINGS) as connection, translated(describe(url)):
        yield connection
