"""The view's own changes: logged in the transactions that make them, where somebody captures its stable name."""

from collections.abc import Callable, Sequence

from psycopg import Connection, Cursor, sql

from projector.column_text import text_array
from projector.definition import View
from projector.errors import Refused
from projector.meeting import Pair
from projector.tables import SCHEMA, complete_rows, view_table_name

IS_CAPTURED = """
SELECT projector.is_captured(%s, %s)
"""

LOG_CHANGES = """
SELECT projector.log_changes(%s, VARIADIC %s::text[])
"""

MADE_ANEW = """
SELECT projector.made_anew(%s, %s::regclass)
"""

# As whoever changes rows does, before the question is asked: whoever attaches the view, or detaches it, waits.
LOCK = """
LOCK TABLE {rows} IN ROW EXCLUSIVE MODE
"""

# As text: rows that are equal may be written differently.
DIFFERENCES = """
SELECT {keys}
FROM ({old}) AS old
FULL JOIN ({new}) AS new USING ({key})
WHERE (old.*)::text IS DISTINCT FROM (new.*)::text
"""

PAGE_KEYS = 20_000
"""So many keys are logged at once."""


class ViewChangelog:
    """Logs the changes of one version of a view, while readers see it and somebody captures it."""

    def __init__(self, view: View, version: int) -> None:
        self._name = view.name
        self._version = version

    def log(self, cursor: Cursor, key_arrays: Callable[[], Sequence[str]]) -> None:
        """Log keys, an array literal a key column, in the transaction that has changed their rows already.

        Not before: whoever attaches the view waits for the rows, and for nobody who only means to write some.
        """
        if is_captured(cursor, self._name, self._version):
            cursor.execute(LOG_CHANGES, [self._name, key_arrays()])


def is_captured(session: Connection | Cursor, view: str, version: int) -> bool:
    """Return whether readers see this version of a view, and somebody captures the view."""
    row = session.execute(IS_CAPTURED, [view, version]).fetchone()
    return row is not None and row[0]


def log_differences(connection: Connection, pair: Pair) -> int:
    """Log each key whose row is another one in the new version, or is in one version alone; return their number.

    In the transaction that leads readers from the old version to the new one, before it does, while nobody writes to
    either. Where their columns differ nothing is logged: whoever captures the view reads all of it anew then. Raises
    Refused if the view has another key now: the topic's records would never be met again.
    """
    written = sql.Identifier(SCHEMA, view_table_name(pair.old.view, pair.old.version))
    connection.execute(sql.SQL(LOCK).format(rows=written))
    captured = is_captured(connection, pair.name, pair.old.version)
    if captured and pair.old.view.key_columns != pair.new.view.key_columns:
        was, now = (", ".join(one.view.key_names) for one in (pair.old, pair.new))
        raise Refused(
            f"view {pair.name!r} is captured as a topic by its key ({was}), and would have the key ({now}): detach it "
            "from its capture, swap, delete its topic, and attach it anew. Nothing was changed"
        )
    if not captured or _columns(pair.old.view) != _columns(pair.new.view):
        return 0
    logged = 0
    with connection.cursor("viewkeeper_differences") as differences:
        differences.execute(_differences(pair))
        while rows := differences.fetchmany(PAGE_KEYS):
            connection.execute(LOG_CHANGES, [pair.name, [text_array(texts) for texts in zip(*rows, strict=True)]])
            logged += len(rows)
    return logged


def made_anew(connection: Connection, was: int, name: sql.Identifier) -> None:
    """Have whoever captures a stable name find it again, after it was dropped and made anew in this transaction."""
    connection.execute(MADE_ANEW, [was, name.as_string(None)])


def _columns(view: View) -> list[tuple[str, str]]:
    return [
        *((column.name, column.type.value) for column in view.row_columns),
        *((measure.name, measure.type.value) for measure in view.measures),
    ]


def _differences(pair: Pair) -> sql.Composed:
    key = [sql.Identifier(name) for name in pair.new.view.key_names]
    return sql.SQL(DIFFERENCES).format(
        keys=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in key),
        key=sql.SQL(", ").join(key),
        old=complete_rows(pair.old.view, pair.old.version),
        new=complete_rows(pair.new.view, pair.new.version),
    )
