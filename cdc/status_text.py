"""A capture's status in words and tables, for people: long names wrap, nothing is cut."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdc.progress import Phase
from cdc.snapshot_progress import rows_words, sweep_words
from cdc.status import Status, TableStatus
from cdc.status_source import MOST_COUNTED, OpenTransaction
from cdc.status_topics import TopicStatus
from runtime.words import duration_words

UNKNOWN = "?"
MOST_KEYS = 20
"""So many keys of rows that are held back are shown for a table; the JSON has all."""


def status_text(status: Status) -> RenderableType:
    """Return the status as a rich renderable that reads well from 80 columns on."""
    parts: list[RenderableType] = [_head(status)]
    if status.tables:
        parts += ["", _tables(status)]
    topics = [table.topic for table in status.tables if table.topic is not None]
    if status.cursor_topic is not None:
        topics.append(status.cursor_topic)
    if topics:
        parts += ["", _topics(topics)]
    leaving = [words for table in status.tables if (words := _leaving_words(table))]
    if leaving:
        parts += ["", Text("\n".join(leaving))]
    for table in status.tables:
        if table.held_back:
            parts += ["", _held_back(table)]
    parts += ["", *_needs(status)]
    return Group(*parts)


def _head(status: Status) -> Table:
    leader = status.leader
    life = "alive" if leader.alive else "gives no sign of life"
    known = {None: "no cursor yet", True: "published from this source", False: "published from another source"}
    requests = ", ".join(
        f"{request.table} ({duration_words((status.source_time - request.requested_at).total_seconds())} ago)"
        for request in status.requests
    )
    rows = {
        "capture": f"{status.capture}, source {status.source}, topics {status.topic_prefix}.*, {status.encoding}",
        "leader": f"{leader.name}, {life}" if leader.name else "none",
        "cursor": UNKNOWN if status.broker_trouble else known[status.token_known],
        "snapshots requested": requests or "none",
        "oldest open transaction": _transaction_words(status.oldest_transaction),
    }
    if status.slot is not None:
        held = UNKNOWN if status.slot.held_bytes is None else _size(status.slot.held_bytes)
        rows["replication slot"] = f"{status.slot.name}, {status.slot.wal_status or 'gone'}, holds {held} of WAL"
    head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, words in rows.items():
        head.add_row(name, words)
    return head


def _transaction_words(transaction: OpenTransaction | None) -> str:
    if transaction is None:
        return "none"
    age = duration_words(transaction.age_seconds)
    if transaction.prepared_as is not None:
        return f"{age}, prepared as {transaction.prepared_as}"
    return f"{age}, {transaction.state}, pid {transaction.pid}, {transaction.application or 'no application name'}"


def _tables(status: Status) -> Table:
    table = _grid("table", "phase", "freshness", "change log", "waiting")
    for one in status.tables:
        freshness = UNKNOWN if one.freshness_seconds is None else duration_words(one.freshness_seconds)
        table.add_row(
            one.table,
            UNKNOWN if status.broker_trouble else _phase_words(one),
            f"{freshness}, uncertain" if one.uncertain else freshness,
            *_log_words(one),
        )
    return table


def _log_words(table: TableStatus) -> tuple[str, str]:
    """Say what a table's change log holds, and what waits in it: nothing where the WAL is its log."""
    log = table.change_log
    if log is None:
        return (f"none: {table.mode}", UNKNOWN) if table.mode else ("", "")
    size = f"{_size(log.bytes)}, {log.filling_bytes / log.limit_bytes:.0%} full"
    waiting = log.records_waiting
    if waiting is None:
        return size, UNKNOWN
    return size, f"{waiting:,}{' or more' if waiting == MOST_COUNTED else ''}"


def _phase_words(table: TableStatus) -> str:
    if table.phase is None:
        return "not taken up yet"
    words = [str(Phase[table.phase.upper()])]
    if table.snapshot is not None:
        words.append(rows_words(table.snapshot))
    if table.sweep is not None:
        words.append(sweep_words(table.sweep))
    if table.moving_to is not None:
        words.append(f"moves to {table.moving_to} with the next start for that source")
    return ": ".join(words)


def _leaving_words(table: TableStatus) -> str | None:
    words = []
    if table.columns is not None:
        words.append(f"only {', '.join(table.columns)} may leave the database")
    if table.masks:
        words.append(f"{', '.join(table.masks)} masked")
    return f"{table.table}: {'; '.join(words)}" if words else None


def _topics(topics: list[TopicStatus]) -> Table:
    table = _grid("topic", "partitions", "cleanup", "tombstones stay", "largest batch")
    for topic in topics:
        stay = duration_words(topic.delete_retention_ms / 1000)
        table.add_row(topic.name, str(topic.partitions), topic.cleanup_policy, stay, _size(topic.max_message_bytes))
    return table


def _held_back(table: TableStatus) -> Text:
    more = len(table.held_back) - MOST_KEYS
    lines = [f"{table.table} holds back rows with the keys", *table.held_back[:MOST_KEYS]]
    if more > 0:
        lines.append(f"and {more} more, which --json lists")
    return Text("\n  ".join(lines))


def _needs(status: Status) -> Iterator[RenderableType]:
    if not status.needs_a_person:
        yield Text("Nothing needs a person.", style="green")
        return
    yield Text("Needs a person:", style="bold red")
    for need in status.needs_a_person:
        line = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
        line.add_column()
        line.add_column(overflow="fold")
        line.add_row("-", Text(need))
        yield line


def _grid(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("partitions", "waiting") else "left")
    return table


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
