"""What `reconcile` found, for people and for programs."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdc.judging import Kind
from cdc.reconcile import Reconciled
from cdc.reconciling import Say
from runtime.terminal import plain_console

MOST_KEYS = 20
"""So many keys of each kind are shown for a table; the JSON has all."""

_KINDS = {Kind.MISSING: "missing", Kind.STALE: "stale", Kind.GHOST: "ghosts", Kind.FOREIGN: "foreign"}


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of keys: those `compared` are equal, differ (four kinds), were undecided, or are held back.

    `repaired` were repaired of those that differ, `left` differ still. Its JSON has `differences` besides.
    """

    table: str
    compared: int
    equal: int
    missing: int
    stale: int
    ghosts: int
    foreign: int
    undecided: int
    held_back: int
    repaired: int
    left: int


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A key that differs, or differed until it was repaired."""

    kind: Kind
    key: str
    repaired: bool


class Shown(msgspec.Struct, frozen=True):
    """A table's report with the first keys of each kind."""

    report: TableReport
    examples: tuple[Difference, ...]


def table_report(one: Reconciled) -> TableReport:
    """Return a table's counts."""
    tally = one.tally
    return TableReport(
        table=str(one.table),
        compared=tally.compared,
        equal=tally.equal,
        **{name: tally.found[kind] for kind, name in _KINDS.items()},
        undecided=tally.undecided,
        held_back=tally.held_back,
        repaired=tally.repaired,
        left=tally.left,
    )


def shown(one: Reconciled) -> Shown:
    """Return what is shown of a table."""
    return Shown(table_report(one), tuple(differences(one, MOST_KEYS)))


def differences(one: Reconciled, most_keys: int | None = None) -> Iterator[Difference]:
    """Yield the keys that differ, by kind, so many of each."""
    for kind in Kind:
        for key, repaired in one.images.differences(kind, most_keys):
            yield Difference(kind=kind, key=one.name(key), repaired=repaired)


def json_pieces(one: Reconciled) -> Generator[bytes, None, None]:
    """Yield a table's report as one JSON object, key by key: they may be more than memory holds."""
    # Open, where its last field is to come.
    yield msgspec.json.encode(table_report(one))[:-1] + b',"differences":['
    for number, difference in enumerate(differences(one)):
        yield (b"," if number else b"") + msgspec.json.encode(difference)
    yield b"]}\n"


def counts_and_keys(tables: Sequence[Shown]) -> RenderableType:
    """Return what was found, as a rich renderable."""
    return Group(_counts([one.report for one in tables]), *(Text(words) for one in tables for words in _examples(one)))


def conclusion(tables: Sequence[Shown], *, dry_run: bool) -> Text:
    """Return what follows from that."""
    left, repaired = sum(one.report.left for one in tables), sum(one.report.repaired for one in tables)
    differ = "1 key differs" if left == 1 else f"{left:,} keys differ"
    if left and dry_run:
        return Text(f"\n{differ}; without --dry-run the capture repairs what it can.", style="bold red")
    if left:
        return Text(f"\n{differ} still; docs/reconcile.md says why that may be.", style="bold red")
    return Text(f"\nNothing differs{' any more' if repaired else ''}.", style="green")


def _counts(reports: Sequence[TableReport]) -> Table:
    # What is rare has a column only where it is there.
    rare = [name for name in ("foreign", "held_back") if any(getattr(report, name) for report in reports)]
    names = ["compared", "equal", "missing", "stale", "ghosts", "undecided", *rare, "repaired"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("table", overflow="fold")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for report in reports:
        table.add_row(report.table, *(f"{getattr(report, name):,}" for name in names))
    return table


def _examples(one: Shown) -> Iterator[str]:
    for kind, name in _KINDS.items():
        keys = [
            f"{example.key}{' (repaired)' if example.repaired else ''}"
            for example in one.examples
            if example.kind is kind
        ]
        more = getattr(one.report, name) - len(keys)
        if more:
            keys.append(f"and {more:,} more, which --json lists")
        if keys:
            yield "\n  ".join([f"\n{one.report.table}, {name}:", *keys])


@contextmanager
def progress() -> Iterator[Say]:
    """Offer a line on standard error that is rewritten, if that is a terminal."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        yield lambda _words: None
        return
    with console.status(Text("looking for the capture")) as line:
        yield lambda words: line.update(Text(words))
