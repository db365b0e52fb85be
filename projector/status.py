"""What a projector has done and has before it: offsets, lag, rate and as-of of each view, from outside."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import Connection

from cdc.wire import cursor_topic_name, topic_name
from projector.definition import View
from projector.loading import load_views
from projector.locks import version_changers
from projector.offsets import Offsets, StoredOffset
from projector.outages import outage
from projector.registry import Registered, State, ViewVersion, all_versions, is_declared, rebuild_command
from projector.topics import Topic, describe_topics, first_offsets
from projector.watermarks import ESTIMATE
from runtime.kafka import BrokerUnavailable, LostHistory, admin, check_reachable
from runtime.postgres import connect, describe, translated
from runtime.settings import ViewStatusSettings

OLD_AS_OF_SECONDS = 10.0

_AS_OF = """
SELECT as_of, flags, extract(epoch FROM clock_timestamp() - as_of)::float8
FROM projector.as_of WHERE view = %s AND version = %s
"""

_DEAD_LETTERS = """
SELECT count(*) FROM projector.dead_letter WHERE view = %s AND version = %s
"""


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition has been applied: `lag_records` offsets, markers included, are before it.

    They and the end are null while the broker does not answer.
    """

    topic: str
    partition: int
    next_offset: int
    end_offset: int | None
    lag_records: int | None


class ViewStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a view; readers see the one in state `active`.

    `records_per_second` is the rate between two looks, `seconds_left` the time to catch up at it; null while nothing
    moves, as is `lag_records` while the broker does not answer. `as_of` is null until a watermark is reflected,
    `as_of_age_seconds` is by the view database's clock. `dead_letters` counts the records that could not be applied.
    `needs_a_person` says in words what somebody has to see to, empty mostly.
    """

    view: str
    version: int
    state: State
    as_of: datetime | None
    as_of_flags: tuple[str, ...]
    as_of_age_seconds: float | None
    lag_records: int | None
    records_per_second: float
    seconds_left: float | None
    dead_letters: int
    partitions: tuple[PartitionStatus, ...]
    needs_a_person: tuple[str, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of the views that are declared.

    `broker_trouble` says in words why Kafka cannot be asked, null if it can: without it no topic's end is known.
    """

    topic_prefix: str
    broker_trouble: str | None
    views: tuple[ViewStatus, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """What is stored of a view at a moment of `time.monotonic()`."""

    at: float
    stored: list[StoredOffset]


def read_status(settings: ViewStatusSettings, *, seconds: float) -> Status:
    """Look at all views twice, so many seconds apart; takes ten more without the broker.

    Raises ConfigurationError or DefinitionError where a view cannot be looked at, DatabaseUnavailable where none can.
    """
    views, where, prefix = load_views(settings.views), describe(settings.view_url), settings.topic_prefix
    with connect(settings.view_url, name="viewkeeper-status") as connection, translated(where):
        versions = all_versions(connection, views, where=where)
        before = [_look(connection, one.kept) for one in versions]
        time.sleep(seconds)
        after = [_look(connection, one.kept) for one in versions]
        # The ends last: they only grow, and no offset is stored beyond them.
        names = {name for one in versions for name in _topics(one.kept.view, prefix)}
        topics, trouble = _ask_kafka(settings, sorted(names))
        otherwise = _declared_otherwise(views, versions)
        found = [
            _view(connection, one, topics, prefix, looks, otherwise=one.kept.view.name in otherwise)
            for one, *looks in zip(versions, before, after, strict=True)
        ]
    return Status(topic_prefix=prefix, broker_trouble=trouble, views=tuple(found))


def _ask_kafka(settings: ViewStatusSettings, names: Sequence[str]) -> tuple[Mapping[str, Topic] | None, str | None]:
    """Return the topics that are there; None, and why, while the broker does not answer."""
    client = admin(settings, name="viewkeeper-projector-status")
    try:
        check_reachable(client, settings)
        return describe_topics(client, names, where=f"Kafka {settings.kafka_bootstrap_servers}"), None
    except BrokerUnavailable as error:
        return None, str(error)


def _topics(view: View, prefix: str) -> list[str]:
    """Return the changelog topics of a view, and last the cursor's."""
    return [*(topic_name(prefix, table) for table in view.source_tables), cursor_topic_name(prefix)]


def _declared_otherwise(views: Sequence[View], versions: Sequence[Registered]) -> set[str]:
    """Return the names of views that are declared as none of their versions was made."""
    as_declared = {
        view.name
        for view in views
        if any(one.kept.view.name == view.name and is_declared(one.kept.view, view) for one in versions)
    }
    return {view.name for view in views} - as_declared


def _look(connection: Connection, version: ViewVersion) -> _Look:
    return _Look(time.monotonic(), Offsets(version.view.name, version.version).read(connection))


def _view(
    connection: Connection,
    registered: Registered,
    topics: Mapping[str, Topic] | None,
    topic_prefix: str,
    looks: Sequence[_Look],
    *,
    otherwise: bool,
) -> ViewStatus:
    version, names = registered.kept, _topics(registered.kept.view, topic_prefix)
    before, after = looks
    # The cursor topic is read again from where newer watermarks may need it: what is before that is no lag.
    stored = [at for at in after.stored if at.topic in names[:-1]]
    changelogs = stored if topics is None else [at for at in stored if _is_there(at, topics)]
    partitions = tuple(_partition(at, None if topics is None else topics[at.topic]) for at in changelogs)
    lag = None if topics is None else sum(one.lag_records or 0 for one in partitions)
    moved = sum(at.next_offset for at in after.stored) - sum(at.next_offset for at in before.stored)
    rate = max(moved, 0) / (after.at - before.at)
    row = connection.execute(_AS_OF, [version.view.name, version.version]).fetchone()
    as_of, flags, age = row or (None, [], None)
    (letters,) = connection.execute(_DEAD_LETTERS, [version.view.name, version.version]).fetchone() or (0,)
    if registered.state in (State.BUILDING, State.RETIRED):
        needs = _unkept_needs(connection, registered)
    else:
        needs = [
            *_needs(after.stored, as_of_age=age, flags=flags, stands=bool(lag) and not rate),
            *_left_out(version.view.name, letters),
        ]
        if topics is not None:
            needs += [
                *_topic_needs(version.view.name, topics, names, after.stored),
                *_left_alone(version.view.name, topics, changelogs),
            ]
    if otherwise and registered.state is State.ACTIVE:
        needs.append(f"it is declared otherwise than it was made: {rebuild_command(version.view.name)}")
    return ViewStatus(
        view=version.view.name,
        version=version.version,
        state=registered.state,
        as_of=as_of,
        as_of_flags=(*flags, *(["dead_letters"] if letters else [])),
        as_of_age_seconds=age,
        lag_records=lag,
        records_per_second=rate,
        seconds_left=0.0 if lag == 0 else (lag / rate if lag and rate else None),
        dead_letters=letters,
        partitions=partitions,
        needs_a_person=tuple(needs),
    )


def _is_there(at: StoredOffset, topics: Mapping[str, Topic]) -> bool:
    return at.topic in topics and at.partition < len(topics[at.topic].high)


def _partition(at: StoredOffset, topic: Topic | None) -> PartitionStatus:
    end = None if topic is None else topic.high[at.partition]
    return PartitionStatus(
        topic=at.topic,
        partition=at.partition,
        next_offset=at.next_offset,
        end_offset=end,
        lag_records=None if end is None else max(end - at.next_offset, 0),
    )


def _unkept_needs(connection: Connection, registered: Registered) -> list[str]:
    """Return what a version needs that no `run` keeps."""
    name, number = registered.kept.view.name, registered.kept.version
    drop = f"viewkeeper-projector drop {name} --version {number}"
    if registered.state is State.RETIRED:
        return [f"it cannot be kept any longer, nor rolled back to: {drop} removes it"]
    if version_changers(connection, name):
        return []
    return [f"nobody fills it: {rebuild_command(name)} goes on with it, {drop} gives it up"]


def _topic_needs(
    view: str, topics: Mapping[str, Topic], names: Sequence[str], stored: Sequence[StoredOffset]
) -> list[str]:
    needs = [
        f"topic {name} is missing: is its table attached, and viewkeeper-cdc run up?"
        for name in names[:-1]
        if name not in topics
    ]
    try:
        first_offsets(topics, [at for at in stored if at.topic in topics], view=view)
    except LostHistory as error:
        needs.append(str(error))
    return needs


def _needs(stored: Sequence[StoredOffset], *, as_of_age: float | None, flags: Sequence[str], stands: bool) -> list[str]:
    needs = []
    if not stored:
        needs.append("nothing was ever applied: is viewkeeper-projector run up?")
    elif stands:
        needs.append("records wait, and none was applied: is viewkeeper-projector run up? its log says why it stands")
    if as_of_age is None:
        needs.append("no as-of is known yet: not all of its tables are complete in the topics")
    elif as_of_age > OLD_AS_OF_SECONDS and ESTIMATE not in flags:
        # An estimate is as old as what was written last, and says nothing of who writes.
        needs.append(f"its as-of is {as_of_age:.0f} s old: see viewkeeper-cdc status, and the projector's log")
    return needs


def _left_out(view: str, letters: int) -> Iterator[str]:
    if letters:
        yield f"{letters} dead letters, records that it lacks: viewkeeper-projector dead-letters list {view}"


def _left_alone(view: str, topics: Mapping[str, Topic], stored: Sequence[StoredOffset]) -> Iterator[str]:
    trouble = outage(view, topics, stored)
    if trouble:
        yield trouble
