"""A view for tests that write histories of its tables by themselves, and what a history must come to.

Accounts with counts and sums, with filters and without, over two tables; items have two owners, of which one holds it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import psycopg
from psycopg import IsolationLevel

from projector.definition import Column, ColumnType, Count, Resource, Row, Sum, View

_STATE = Column("state", ColumnType.TEXT)
_WORTH = (_STATE, Column("price", ColumnType.NUMERIC), Column("pieces", ColumnType.INTEGER))

account = View(
    name="account",
    key="owner_id",
    row=Row("public.owners", (Column("owner_id", ColumnType.BIGINT), Column("name", ColumnType.TEXT))),
    measures=(
        Count("item_count", of="public.items", by="owner_id"),
        Count("lent_count", of="public.items", by="holder_id", where="state = 'lent'", columns=(_STATE,)),
        Sum("worth", "public.items", "owner_id", "price * pieces", where="state <> 'lost'", columns=_WORTH),
        Count("letter_count", of="public.letters", by="owner_id"),
        Sum("postage", "public.letters", "owner_id", "stamp", columns=(Column("stamp", ColumnType.NUMERIC),)),
    ),
    resource=Resource("/accounts/{ownerId}", ()),
)
LARGE = Decimal("100000000000000000000000000000.05")
"""An amount of more digits than Decimal calculates with by itself: what is true is told in fractions."""

KEYS = {"owners": "owner_id", "items": "item_id", "letters": "letter_id"}
_ITEM = {"item_id": "long", "owner_id": "long", "holder_id": "long", "state": "string", "price": "string"}
AVRO_TYPES = {
    "owners": {"owner_id": "long", "name": "string"},
    "items": _ITEM | {"pieces": "int"},
    "letters": {"letter_id": "long", "owner_id": "long", "stamp": "string"},
}
"""How a capture writes the columns: numerics of any precision as text."""

Place = tuple[str, int]
"""A table and a key of it."""

State = tuple[Any, ...] | None
"""What the projector has of a row: an owner's name, a counted row's contribution; None where there is none."""

TABLES = {
    "owners": "SELECT owner_id, name FROM projector.account_v1 WHERE viewkeeper_present",
    "items": """
    SELECT (source_key::json ->> 'item_id')::bigint, owner_id, "lent_count.key", "worth.key", "worth.amount"
    FROM projector.account_v1_public_items
    """,
    "letters": """
    SELECT (source_key::json ->> 'letter_id')::bigint, owner_id, "postage.amount"
    FROM projector.account_v1_public_letters
    """,
}
MEASURES = "SELECT owner_id, item_count, lent_count, worth, letter_count, postage FROM projector.account_v1"
SHOWN = "SELECT owner_id, name, item_count, lent_count, worth, letter_count, postage FROM account"
AS_OF = "SELECT as_of FROM viewkeeper_as_of WHERE view = 'account'"


def state_of(table: str, row: Mapping[str, Any]) -> State:
    """Return what the projector must have of a row."""
    if table == "owners":
        return (row["name"],)
    owner = row["owner_id"]
    if table == "letters":
        return owner, None if None in (owner, row["stamp"]) else Fraction(row["stamp"])
    state, price, pieces = row["state"], row["price"], row["pieces"]
    counts = owner if state not in (None, "lost") else None
    amount = None if None in (counts, price, pieces) else Fraction(price) * pieces
    return owner, row["holder_id"] if state == "lent" else None, counts, amount


def on_the_wire(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as a capture encodes it: numerics as text."""
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in row.items()}


def unlike(amount: Decimal | None, step: int) -> Decimal | None:
    """Return an amount that is another one at each step."""
    return None if amount is None else Context(prec=60).add(amount, Decimal(step))


def measured(items: Iterable[State], letters: Iterable[State]) -> dict[int, tuple[Any, ...]]:
    """Return the five measures of each owner that has an item or a letter, or holds an item that is lent."""
    counts = [Counter[int | None]() for _ in range(3)]
    sums: list[dict[int, Fraction]] = [{}, {}]
    for owner, holder, counts_for, amount in filter(None, items):
        counts[0][owner] += 1
        counts[1][holder] += 1
        if amount is not None:
            sums[0][counts_for] = sums[0].get(counts_for, Fraction(0)) + Fraction(amount)
    for owner, amount in filter(None, letters):
        counts[2][owner] += 1
        if amount is not None:
            sums[1][owner] = sums[1].get(owner, Fraction(0)) + Fraction(amount)
    owners = {owner for count in counts for owner in count if owner is not None}
    return {
        owner: (counts[0][owner], counts[1][owner], sums[0].get(owner, 0), counts[2][owner], sums[1].get(owner, 0))
        for owner in owners
    }


@dataclass
class Truth:
    """All states that the rows of the three tables have had, in their order, and when the watermarks were."""

    steps: int = 0
    histories: dict[Place, list[tuple[int, State]]] = field(default_factory=dict)
    watermarks: dict[datetime, int] = field(default_factory=dict)

    def note(self, table: str, key: int, row: Mapping[str, Any] | None) -> None:
        """Note a row's next state, before it is published."""
        self.steps += 1
        state = None if row is None else state_of(table, row)
        self.histories.setdefault((table, key), [(0, None)]).append((self.steps, state))

    def mark(self, time: datetime) -> None:
        """Note that all of this had happened by `time`."""
        self.watermarks[time] = self.steps

    def shown(self) -> dict[int, tuple[Any, ...]]:
        """Return what readers of the view must see in the end: name and measures of each owner."""
        last = {place: states[-1][1] for place, states in self.histories.items()}
        items, letters = ([state for (of, _), state in last.items() if of == table] for table in ("items", "letters"))
        measures = measured(items, letters)
        return {
            key: (state[0], *measures.get(key, (0,) * 5))
            for (table, key), state in last.items()
            if table == "owners" and state
        }


@dataclass
class Witness:
    """Looks at the view as it changes; `wrong` says what must not be. Each look is of one moment.

    No row may be older than in the look before, nor older than as-of says; as-of may not go back; counts and sums are
    those of the contributions that are stored.
    """

    truth: Truth
    wrong: list[str] = field(default_factory=list)
    as_of: datetime | None = None
    times: int = 0
    _seen: dict[Place, int] = field(default_factory=dict)

    def look(self, connection: psycopg.Connection) -> None:
        """Look once, in a transaction of its own."""
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            ((as_of,),) = connection.execute(AS_OF).fetchall()
            found = {
                (table, row[0]): row[1:]
                for table, query in TABLES.items()
                for row in connection.execute(query.encode())
            }
            measures = {row[0]: row[1:] for row in connection.execute(MEASURES)}
        self._note_time(as_of)
        self.wrong += [*self._older(found, self.truth.watermarks.get(as_of, 0)), *_uncounted(found, measures)]

    def forget(self) -> None:
        """Begin anew, since the view does."""
        self._seen, self.as_of = {}, None

    def _note_time(self, as_of: datetime | None) -> None:
        if self.as_of and (as_of is None or as_of < self.as_of):
            self.wrong.append(f"as-of went back from {self.as_of} to {as_of}")
        self.times += as_of != self.as_of
        self.as_of = as_of

    def _older(self, found: Mapping[Place, State], step: int) -> Iterator[str]:
        for place in found.keys() | self.truth.histories.keys():
            history = self.truth.histories.get(place, [(0, None)])
            promised = bisect_right(history, step, key=lambda one: one[0]) - 1
            at = max(promised, self._seen.get(place, 0))
            # The same state may come again: the earliest that it can be.
            later = [number for number in range(at, len(history)) if history[number][1] == found.get(place)]
            if later:
                self._seen[place] = later[0]
            else:
                yield f"{place} is {found.get(place)}, and was {history[at][1]} already; as of {self.as_of}"


def _uncounted(found: Mapping[Place, State], measures: Mapping[int, tuple[Any, ...]]) -> Iterator[str]:
    counted = measured(*([state for (of, _), state in found.items() if of == table] for table in ("items", "letters")))
    present = {key for table, key in found if table == "owners"}
    for key in counted.keys() | present | measures.keys():
        expected = counted.get(key, (0,) * 5) if key in counted or key in present else None
        if measures.get(key) != expected:
            yield f"owner {key} has {measures.get(key)}, and the contributions come to {expected}"
