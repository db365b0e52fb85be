"""Whether two versions of a view stand at the same point: what a comparison and a swap demand."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from projector.changes import Partition
from projector.registry import ViewVersion

READ_OFFSETS = """
SELECT version, topic, partition, next_offset
FROM projector.partition_offset
WHERE view = %s AND version = ANY (%s)
"""

READ_AS_OF = """
SELECT version, as_of
FROM projector.as_of
WHERE view = %s AND version = ANY (%s)
"""


@dataclass(slots=True)
class Pair:
    """The version that readers see, and the one that is to take its place.

    `stuck` says why the old one cannot be kept any more, where it cannot, which may be found out only when it is tried:
    then nobody can compare them at one point.
    """

    old: ViewVersion
    new: ViewVersion
    stuck: str | None = None

    @property
    def name(self) -> str:
        """The view's name."""
        return self.new.view.name

    @property
    def ascending(self) -> tuple[ViewVersion, ViewVersion]:
        """Both, in the order in which all who write to them lock them."""
        return (self.old, self.new) if self.old.version < self.new.version else (self.new, self.old)

    @property
    def numbers(self) -> list[int]:
        """The versions' numbers, in that order."""
        return [version.version for version in self.ascending]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a version has applied: next offsets of all its partitions, and its as-of."""

    next_offsets: Mapping[Partition, int]
    as_of: datetime | None


def apart(old: Standing, new: Standing, *, cursor_topic: str, stuck: bool) -> str | None:
    """Return in what two versions are apart, None if readers may be led from the old one to the new one. Pure.

    All partitions that both read have to stand at the same offset, the cursor topic's aside, which says only where its
    records have to be read again from; and no reader may see an older as-of than before.
    """
    for place in sorted(old.next_offsets.keys() & new.next_offsets.keys()):
        topic, partition = place
        before, after = old.next_offsets[place], new.next_offsets[place]
        if before != after and topic != cursor_topic and not stuck:
            return (
                f"topic {topic} partition {partition} is applied up to {before} by the old version, {after} by the new"
            )
    if old.as_of is not None and (new.as_of is None or new.as_of < old.as_of):
        known = "not known yet" if new.as_of is None else f"older ({new.as_of.isoformat()})"
        return f"the old version's as-of is {old.as_of.isoformat()}, the new one's is {known}"
    return None


def standings(connection: Connection, pair: Pair) -> tuple[Standing, Standing]:
    """Read where the old and the new version stand: of one moment only within a snapshot, or under their lock."""
    parameters = [pair.name, pair.numbers]
    offsets: dict[int, dict[Partition, int]] = {version: {} for version in pair.numbers}
    for version, topic, partition, next_offset in connection.execute(READ_OFFSETS, parameters):
        offsets[version][topic, partition] = next_offset
    as_of: dict[int, datetime | None] = dict(connection.execute(READ_AS_OF, parameters).fetchall())
    old, new = (Standing(offsets[one.version], as_of.get(one.version)) for one in (pair.old, pair.new))
    return old, new


def still_apart(connection: Connection, pair: Pair, *, cursor_topic: str) -> str | None:
    """Read where both versions stand, and return in what they are apart, as `apart` does."""
    old, new = standings(connection, pair)
    return apart(old, new, cursor_topic=cursor_topic, stuck=pair.stuck is not None)
