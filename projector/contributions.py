"""What a row of a counted table contributes to a view: whom it counts for, and how much it adds.

It is stored beside the view, one column a slot; measures that group alike, under the same filter, share them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from operator import itemgetter

from cdc.wire import TableName
from projector.changes import Groups, Key
from projector.column_types import ColumnType
from projector.definition import Measure, Sum, View
from projector.expression_values import EXACT, Evaluate, Row, evaluator
from projector.expressions import parse

Contribute = Callable[[Row], Groups]
Content = tuple[tuple[str, ...], str | None, str | None, str | None]
"""What a slot is made of: `by`, `where`, `group`, `value`."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A column of a table's contributions: a column of the key that a row counts for, or an amount that it adds to it.

    The key has `group`, the column of the row that it is made of, and is NULL for a row that `where` is not true for.
    An amount has `value`; it belongs to the key that the columns `by` make.
    """

    name: str
    type: ColumnType
    by: tuple[str, ...]
    where: str | None
    group: str | None = None
    value: str | None = None

    @property
    def content(self) -> Content:
        """What it holds; slots of one content are one."""
        return self.by, self.where, self.group, self.value


@dataclass(frozen=True, slots=True)
class MeasurePlaces:
    """Where a measure is in its table's slots: those of its key's columns, and its amount's, None for a count."""

    name: str
    table: TableName
    key: tuple[int, ...]
    amount: int | None

    @property
    def key_of(self) -> Callable[[Groups], Key | None]:
        """What takes the key out of a contribution: a value, or a tuple of several."""
        return itemgetter(*self.key)


def slots(view: View, table: TableName) -> tuple[Slot, ...]:
    """Return the slots of a table's contributions, keys first."""
    found: dict[Content, Slot] = {}
    measures = view.measures_of(table)
    for slot in (
        *(slot for measure in measures for slot in _key_slots(view, measure)),
        *(_amount_slot(measure) for measure in measures if isinstance(measure, Sum)),
    ):
        found.setdefault(slot.content, slot)
    return tuple(found.values())


def _key_slots(view: View, measure: Measure) -> tuple[Slot, ...]:
    """Return the slots of a measure's key: without a filter the row's columns, which any measure may share."""
    by, where = measure.group_columns, measure.where
    groups = view.groups_of(measure)
    if where is None:
        return tuple(Slot(name, kind, (name,), None, group=name) for name, kind in groups.items())
    # No column of the row is called so: names of those have no dots.
    ends = [""] if len(by) == 1 else [f"_{number}" for number in range(1, len(by) + 1)]
    return tuple(
        Slot(f"{measure.name}.key{end}", kind, by, where, group=name)
        for end, (name, kind) in zip(ends, groups.items(), strict=True)
    )


def _amount_slot(measure: Sum) -> Slot:
    name = f"{measure.name}.amount"
    return Slot(name, ColumnType.NUMERIC, measure.group_columns, measure.where, value=measure.value)


def measure_places(view: View) -> tuple[MeasurePlaces, ...]:
    """Return where each of a view's measures is in the slots of its table."""
    return tuple(_places(view, measure) for measure in view.measures)


def _places(view: View, measure: Measure) -> MeasurePlaces:
    table = TableName.parse(measure.of)
    at = {slot.content: place for place, slot in enumerate(slots(view, table))}
    key = tuple(at[slot.content] for slot in _key_slots(view, measure))
    amount = at[_amount_slot(measure).content] if isinstance(measure, Sum) else None
    return MeasurePlaces(measure.name, table, key, amount)


def contribute(view: View, table: TableName) -> Contribute | None:
    """Return what makes a row's contribution of its columns (`view.columns_of`), None if they are it as they are.

    It raises ValueError for an amount that cannot be taken back from a sum.
    """
    wanted = slots(view, table)
    types = view.columns_of(table)
    if [slot.name for slot in wanted] == list(types):
        return None
    at = {name: place for place, name in enumerate(types)}

    def of(text: str | None) -> Evaluate | None:
        return None if text is None else evaluator(parse(text), at, types)

    parts = [_maker(slot, at, of(slot.where), of(slot.value)) for slot in wanted]

    def contributed(row: Row) -> Groups:
        return tuple(part(row) for part in parts)

    return contributed


def _maker(
    slot: Slot, at: dict[str, int], where: Evaluate | None, value: Evaluate | None
) -> Callable[[Row], int | str | Decimal | None]:
    by = [at[name] for name in slot.by]
    group = None if slot.group is None else at[slot.group]

    def make(row: Row) -> int | str | Decimal | None:
        for place in by:
            if row[place] is None:
                return None
        if where is not None and where(row) is not True:
            return None
        if group is not None:
            return row[group]  # type: ignore[return-value] # decoded as the view's key type
        amount = value(row) if value is not None else None
        if isinstance(amount, Decimal) and not amount.is_finite():
            what = f"{slot.name} is {amount}, which cannot be taken back from a sum"
            raise ValueError(f"{what}: leave it out with `where`")
        # One form a number, so that the same amount is not written again.
        return amount.normalize(EXACT) if isinstance(amount, Decimal) else None

    return make
