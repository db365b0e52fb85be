"""What is wrong, in words, each with where to look; nothing is said of what is well. Pure."""

from collections.abc import Iterator

from msgspec.structs import replace

from api.figures import TableFigures, Trouble, ViewFigures
from api.view_look import DatabaseLook
from projector.definition import View
from runtime.words import duration_words

SILENT_SECONDS = 5.0
"""A capture writes a cursor each second, also when nothing changes."""
OLD_SECONDS = 10.0
STANDING_SECONDS = 4.0
BEHIND_SECONDS = 5.0
"""So much older than the captures' watermarks an as-of may be while its projector keeps up."""

_CAPTURE = "is viewkeeper-cdc run up? its log, and viewkeeper-cdc status"
_PROJECTOR = "is viewkeeper-projector run up? its log, and viewkeeper-projector status"
_PHASES = {
    "waiting": "waits to be read anew",
    "reading": "is being read, its snapshot is not complete",
    "sweeping": "was read, and keys that are gone are being looked for",
}


# What the projector has written beside an as-of, where the captures' own words are not heard.
_FLAGS = {
    "uncertain": ("its as-of is uncertain", "the source's clock, or a timestamp source; viewkeeper-cdc status", True),
    "held_back": ("rows that are too large for their topic are held back", "viewkeeper-cdc status", False),
    "estimate": ("its as-of is an estimate, since others write its topics", "docs/views.md, Topics of others", True),
}


def database_troubles(error: str | None, look: DatabaseLook | None) -> Iterator[Trouble]:
    """Say what is wrong with the view database: `error` ended the last look, or the role may not read all of it."""
    if error is not None:
        yield Trouble(
            what=f"The view database cannot be looked at: {error}", look_at="VIEWKEEPER_VIEW_URL, and that server"
        )
    if look is None or not look.refused:
        return
    tables = ", ".join(look.refused)
    unknown = "as-of is not known" if "public.viewkeeper_as_of" in look.refused else "lag and changes are not known"
    if any(table.startswith("projector.") for table in look.refused):
        grant = f"GRANT USAGE ON SCHEMA projector, GRANT SELECT ON {tables}, projector.view_version TO {look.role}"
    else:
        grant = f"GRANT SELECT ON {tables} TO {look.role}"
    yield Trouble(
        what=f"The API's role {look.role} may not read {tables}, so that {unknown}",
        look_at=f"the role's rights: {grant}",
        limits=True,
    )


def kafka_troubles(error: str | None, *, is_set: bool) -> Iterator[Trouble]:
    """Say what is wrong with the cursor topic: `error` ended the last look, or no broker is set."""
    if not is_set:
        yield Trouble(
            what="The cursor topic is not read: captures, lag and the view's topic are not known",
            look_at="set VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS and VIEWKEEPER_TOPIC_PREFIX for the API",
            limits=True,
        )
    elif error is not None:
        yield Trouble(
            what=f"The cursor topic cannot be read: {error}",
            look_at="the broker, VIEWKEEPER_KAFKA_… and VIEWKEEPER_TOPIC_PREFIX; viewkeeper-cdc run makes the topic",
        )


def view_troubles(view: View, figures: ViewFigures, *, is_stored: bool, is_heard: bool) -> Iterator[Trouble]:
    """Say what is wrong with a view.

    `is_stored` says that the view database was looked at, `is_heard` that the cursor topic was.
    """
    if is_heard:
        yield from _capture_troubles(figures)
    if is_stored:
        yield from _projection_troubles(view, figures, is_heard=is_heard)


def _capture_troubles(figures: ViewFigures) -> Iterator[Trouble]:
    tables = [*figures.tables, *([figures.topic] if figures.topic else [])]
    silent = {
        table.capture: table.silent_seconds
        for table in tables
        if table.capture and (table.silent_seconds or 0) > SILENT_SECONDS
    }
    for capture, seconds in silent.items():
        words = duration_words(seconds or 0)
        yield Trouble(what=f"Capture {capture} has said nothing for {words}", look_at=_CAPTURE)
    for table in figures.tables:
        yield from _table_troubles(table, is_silent=table.capture in silent, is_estimate="estimate" in figures.flags)
    if figures.topic:
        # Its watermark is the as-of that its capture has read, with the flags of that: only what is older is its own.
        age, freshness = figures.topic.age_seconds or 0.0, figures.freshness_seconds or 0.0
        newer = replace(figures.topic, age_seconds=max(age - freshness, 0.0), uncertain=False)
        yield from _table_troubles(newer, is_silent=newer.capture in silent, is_estimate=False)


def _table_troubles(table: TableFigures, *, is_silent: bool, is_estimate: bool) -> Iterator[Trouble]:
    name = table.table
    if table.capture is None:
        yield Trouble(
            what=f"No capture names {name}: how far it has come is not known",
            look_at="viewkeeper-cdc status; where others write its topic, that is all there is to know",
            limits=is_estimate,
        )
        return
    if table.phase in _PHASES:
        rows = f": {table.rows_read:,} rows so far" if table.rows_read else ""
        yield Trouble(
            what=f"{name} {_PHASES[table.phase]}{rows}", look_at="viewkeeper-cdc status, and the capture's log"
        )
    elif not is_silent and table.age_seconds is not None and table.age_seconds > OLD_SECONDS:
        age = duration_words(table.age_seconds)
        yield Trouble(
            what=f"{name}: its watermark is {age} old, though its capture is at work",
            look_at="is the table locked, or the source's clock set back? viewkeeper-cdc status",
        )
    if table.uncertain:
        yield Trouble(
            what=f"{name}: its watermark is uncertain",
            look_at="the source's clock, or a timestamp source, which may miss changes; viewkeeper-cdc status",
            limits=True,
        )
    if table.held_back:
        rows = "1 row is" if table.held_back == 1 else f"{table.held_back:,} rows are"
        yield Trouble(what=f"{name}: {rows} held back, too large for the topic", look_at="viewkeeper-cdc status")


def _projection_troubles(view: View, figures: ViewFigures, *, is_heard: bool) -> Iterator[Trouble]:
    letters = figures.dead_letters
    if letters or (letters is None and "dead_letters" in figures.flags):
        number = "Dead letters" if letters is None else "1 dead letter" if letters == 1 else f"{letters:,} dead letters"
        yield Trouble(
            what=f"{number}: records that {view.name} lacks",
            look_at=f"viewkeeper-projector dead-letters list {view.name}",
        )
    for flag in () if is_heard else filter(_FLAGS.__contains__, figures.flags):
        what, look_at, limits = _FLAGS[flag]
        yield Trouble(what=f"{view.name}: {what}", look_at=look_at, limits=limits)
    if figures.as_of is None:
        yield Trouble(
            what=f"{view.name} has no as-of yet", look_at=f"{_PROJECTOR}; are its tables attached and complete?"
        )
        return
    age = figures.freshness_seconds or 0.0
    lag = figures.lag_records or 0
    if lag and figures.standing_seconds > STANDING_SECONDS:
        words = duration_words(figures.standing_seconds)
        yield Trouble(
            what=f"The projector is {_records(lag)} behind, and none was applied for {words}", look_at=_PROJECTOR
        )
    elif figures.capture_age_seconds is not None and age - figures.capture_age_seconds > BEHIND_SECONDS:
        behind = duration_words(age - figures.capture_age_seconds)
        waiting = f"{_records(lag)} behind" if lag else "behind the captures"
        yield Trouble(what=f"The projector is {waiting}: {view.name} is {behind} older than they", look_at=_PROJECTOR)
    elif not is_heard and age > OLD_SECONDS and "estimate" not in figures.flags:
        yield Trouble(
            what=f"{view.name} reflects nothing of the last {duration_words(age)}",
            look_at="viewkeeper-cdc status, and viewkeeper-projector status",
        )


def _records(number: int) -> str:
    return "1 record" if number == 1 else f"{number:,} records"
