"""A projector's status for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from projector.status import Status, ViewStatus
from runtime.words import duration_words


def status_text(status: Status) -> RenderableType:
    """Return a table of the views, one of the partitions that lag, and what needs a person."""
    return Group(_views(status), *_lagging(status), Text(), *_needs(status))


def _views(status: Status) -> Table:
    table = _grid("view", "version", "state", "as of", "lag", "records/s", "caught up in")
    for view in status.views:
        left = "?" if view.seconds_left is None else duration_words(view.seconds_left)
        lag = "?" if view.lag_records is None else f"{view.lag_records:,}"
        rate = f"{view.records_per_second:,.0f}"
        table.add_row(view.view, str(view.version), view.state, _as_of_words(view), lag, rate, left)
    return table


def _as_of_words(view: ViewStatus) -> str:
    if view.as_of is None or view.as_of_age_seconds is None:
        return "not known yet"
    words = [f"{duration_words(max(view.as_of_age_seconds, 0.0))} ago", *view.as_of_flags]
    return ", ".join(words)


def _lagging(status: Status) -> Iterator[RenderableType]:
    behind = [(view.view, one) for view in status.views for one in view.partitions if one.lag_records]
    if not behind:
        return
    table = _grid("view", "topic", "partition", "next offset", "end", "lag")
    for name, one in behind:
        numbers = (one.partition, one.next_offset, one.end_offset, one.lag_records)
        table.add_row(name, one.topic, *(f"{number:,}" for number in numbers))
    yield Text()
    yield table


def _needs(status: Status) -> Iterator[RenderableType]:
    needs = [f"- {view.view} {view.version}: {need}" for view in status.views for need in view.needs_a_person]
    if status.broker_trouble:
        needs.insert(0, f"- {status.broker_trouble}; until it answers nothing is applied")
    if not needs:
        yield Text("Nothing needs a person.", style="green")
        return
    yield Text("Needs a person:", style="bold red")
    yield from map(Text, needs)


def _grid(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column in ("version", "lag", "records/s", "partition", "next offset", "end")
        table.add_column(column, overflow="fold", justify="right" if right else "left")
    return table
