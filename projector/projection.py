"""The projection: changes and stored contributions in, operations out. No SQL, no I/O, no clock.

A counted row contributes to the key that each of its group columns names. What it contributes is stored beside the
view, by the row's key, and a change replaces it: the old contribution is taken back, the new one added. So the view
depends on each row's last state alone: repeated, compacted and late records give the same answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cdc.wire import TableName
from projector.changes import Changes, Groups, Key, RowValues
from projector.definition import View


@dataclass(slots=True)
class ContributionChanges:
    """What becomes of one counted table's stored contributions, by the source row's key.

    `updated` and `inserted` hold the new groups. `increments` is the net of it all: one mapping for each group
    column, from view key to a number other than 0.
    """

    inserted: dict[str, Groups] = field(default_factory=dict)
    updated: dict[str, Groups] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    increments: list[dict[Key, int]] = field(default_factory=list)


@dataclass(slots=True)
class Projection:
    """What a batch does to a view.

    `rows` by view key: new values, or None to clear them. `increments` by measure, then view key, never 0.
    `losers` are the keys that lost their row or a part of a count, so that nothing may be left of them.
    """

    contributions: dict[TableName, ContributionChanges]
    rows: dict[Key, RowValues | None]
    increments: dict[str, dict[Key, int]]
    losers: set[Key]


def project(view: View, changes: Changes, stored: Mapping[TableName, Mapping[str, Groups]]) -> Projection:
    """Return what `changes` do to a view and to its contributions.

    `stored` holds, for each counted table, the stored contributions of the changed keys that have one.
    """
    contributions = {
        table: replace_contributions(changed, stored.get(table, {}), width=len(view.group_columns(table)))
        for table, changed in changes.counted.items()
    }
    increments: dict[str, dict[Key, int]] = {}
    for measure in view.measures:
        table = TableName.parse(measure.of)
        if table in contributions:
            column = view.group_columns(table).index(measure.by)
            increments[measure.name] = contributions[table].increments[column]
    losers = {key for net in increments.values() for key, increment in net.items() if increment < 0}
    losers.update(key for key, row in changes.rows.items() if row is None)
    return Projection(contributions, changes.rows, increments, losers)


def replace_contributions(
    changed: Mapping[str, Groups | None], stored: Mapping[str, Groups], *, width: int
) -> ContributionChanges:
    """Replace the stored contribution of each changed row by its new one; None takes it back.

    `width` is the number of group columns.
    """
    result = ContributionChanges()
    added: list[Groups] = []
    removed: list[Groups] = []
    for source_key, groups in changed.items():
        before = stored.get(source_key)
        if groups is None:
            if before is not None:
                result.deleted.append(source_key)
                removed.append(before)
        elif before is None:
            result.inserted[source_key] = groups
            added.append(groups)
        elif before != groups:
            result.updated[source_key] = groups
            removed.append(before)
            added.append(groups)
    result.increments = [
        _net((groups[column] for groups in added), (groups[column] for groups in removed)) for column in range(width)
    ]
    return result


def _net(added: Iterable[Key | None], removed: Iterable[Key | None]) -> dict[Key, int]:
    net = Counter(added)
    net.subtract(Counter(removed))
    return {key: increment for key, increment in net.items() if increment and key is not None}
