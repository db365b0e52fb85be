"""The projection: changes and stored contributions in, operations out. No SQL, no I/O, no clock.

A counted row contributes to the keys that its group columns name. What it contributes is stored beside the
view, by the row's key, and a change replaces it: the old contribution is taken back, the new one added. So the view
depends on each row's last state alone: repeated, compacted and late records give the same answer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from cdc.wire import TableName
from projector.changes import Changes, Groups, Key, RowValues
from projector.contributions import MeasurePlaces
from projector.expression_values import EXACT

Number = int | Decimal


@dataclass(slots=True)
class ContributionChanges:
    """What becomes of one counted table's stored contributions, by the source row's key.

    `updated` and `inserted` hold the new ones. `added` has all that is new, `removed` all that is taken back.
    """

    inserted: dict[str, Groups] = field(default_factory=dict)
    updated: dict[str, Groups] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    added: list[Groups] = field(default_factory=list)
    removed: list[Groups] = field(default_factory=list)


@dataclass(slots=True)
class Projection:
    """What a batch does to a view.

    `rows` by row table, then view key: new values, or None to clear them. `increments` by measure, then view key, never
    0. `losers` are the keys that lost a row or a part of a measure, so that nothing may be left of them.
    """

    contributions: dict[TableName, ContributionChanges]
    rows: dict[TableName, dict[Key, RowValues | None]]
    increments: dict[str, dict[Key, Number]]
    losers: set[Key]


def project(
    measures: Sequence[MeasurePlaces], changes: Changes, stored: Mapping[TableName, Mapping[str, Groups]]
) -> Projection:
    """Return what `changes` do to a view, given where its `measures` are in contributions, and to the latter.

    `stored` holds, for each counted table, the stored contributions of the changed keys that have one.
    """
    contributions = {
        table: replace_contributions(changed, stored.get(table, {})) for table, changed in changes.counted.items()
    }
    increments: dict[str, dict[Key, Number]] = {}
    losers = {key for rows in changes.rows.values() for key, row in rows.items() if row is None}
    for measure in measures:
        changed = contributions.get(measure.table)
        if changed is None:
            continue
        if measure.amount is None:
            net = counted(changed, measure)
            losers.update(key for key, increment in net.items() if increment < 0)
        else:
            net = summed(changed, measure, measure.amount)
            # What is taken back may have been negative.
            losers.update(net)
        increments[measure.name] = net
    return Projection(contributions, changes.rows, increments, losers)


def replace_contributions(changed: Mapping[str, Groups | None], stored: Mapping[str, Groups]) -> ContributionChanges:
    """Replace the stored contribution of each changed row by its new one; None takes it back."""
    result = ContributionChanges()
    added, removed = result.added, result.removed
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
    return result


def counted(changed: ContributionChanges, measure: MeasurePlaces) -> dict[Key, Number]:
    """Return what the changes add to a count, by key; never 0."""
    net: Counter[Key | None] = Counter(map(measure.key_of, changed.added))
    net.subtract(Counter(map(measure.key_of, changed.removed)))
    return _of_somebody(net)


def summed(changed: ContributionChanges, measure: MeasurePlaces, amount: int) -> dict[Key, Number]:
    """Return what the changes add to a sum of the amounts in a slot, by key; never 0."""
    net: dict[Key | None, Number] = {}
    key_of = measure.key_of
    for add, all_groups in ((EXACT.add, changed.added), (EXACT.subtract, changed.removed)):
        for groups in all_groups:
            value = groups[amount]
            if value is not None:
                name = key_of(groups)
                net[name] = add(net.get(name, 0), value)  # type: ignore[arg-type] # an amount
    return _of_somebody(net)


def _of_somebody(net: Mapping[Key | None, Number]) -> dict[Key, Number]:
    """Leave out zeros, and what counts for nobody: no key, or one with a part that is NULL."""
    return {
        key: increment
        for key, increment in net.items()
        if increment and key is not None and not (isinstance(key, tuple) and None in key)
    }
