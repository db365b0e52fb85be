"""An explained row for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from projector.explaining import Explained, MeasureExplained
from runtime.terminal import printable


def explained_text(found: Explained) -> RenderableType:
    """Return the row, its measures with what they are made of, and what does not agree."""
    head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    as_of = found.as_of.isoformat() if found.as_of else "not known yet"
    head.add_row("view", f"{found.view}, version {found.version}")
    head.add_row("as of", ", ".join((as_of, *found.as_of_flags)))
    hidden = "" if found.is_shown else ", whose source row was not seen, or is gone: readers see nothing"
    head.add_row("key", f"{found.key}{hidden}")
    for name, value in (found.row or {}).items():
        head.add_row(name, "" if value is None else printable(str(value)))
    measures = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("measure", "value", "of rows", "their keys", "topic, each partition applied before"):
        measures.add_column(column, overflow="fold")
    for one in found.measures:
        offsets = ", ".join(f"{partition}: {offset}" for partition, offset in enumerate(one.next_offsets))
        measures.add_row(one.measure, str(one.value), f"{one.rows:,}", _keys(one), f"{one.topic} {offsets}")
    advice = "is not what its contributions give; run: viewkeeper-projector audit"
    wrong = [Text(f"{name} {advice}", style="bold red") for name in found.disagreeing]
    return Group(head, Text(), measures, *wrong)


def _keys(one: MeasureExplained) -> str:
    shown = dict.fromkeys((*one.first, *one.last))
    names = list(shown)
    if one.rows > len(names):
        names.insert(len(one.first), "…")
    return printable(" ".join(names))
