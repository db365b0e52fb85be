"""The projection against a recount, over random histories: cut into batches, repeated, compacted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from cdc.wire import TableName
from projector.changes import Changes, Groups, Key, RowValues
from projector.contributions import MeasurePlaces, measure_places
from projector.projection import Projection, counted, project, replace_contributions
from views.user_information import user_information

USERS, TWEETS, FOLLOWS, LIKES = (TableName("public", name) for name in ("users", "tweets", "follows", "likes"))
PLACES = measure_places(user_information)
MEASURES = {
    "tweet_count": (TWEETS, 0),
    "following_count": (FOLLOWS, 0),
    "follower_count": (FOLLOWS, 1),
    "like_count": (LIKES, 0),
}
Event = tuple[TableName | None, Key | str, Groups | RowValues | None]
"""A source row's table (None for the row table), its key, and its new state, None once it is gone."""


@dataclass
class Store:
    """A view and its contributions in memory, written by nothing but the projection's operations."""

    contributions: dict[TableName, dict[str, Groups]] = field(default_factory=dict)
    rows: dict[Key, RowValues] = field(default_factory=dict)
    counts: dict[str, Counter[Key]] = field(default_factory=lambda: {name: Counter() for name in MEASURES})

    def apply(self, batch: Sequence[Event]) -> Projection:
        changes = changes_of(batch)
        stored = {
            table: {key: known[key] for key in changed if key in known}
            for table, changed in changes.counted.items()
            if (known := self.contributions.get(table, {}))
        }
        projection = project(PLACES, changes, stored)
        for table, result in projection.contributions.items():
            known = self.contributions.setdefault(table, {})
            assert not known.keys() & result.inserted.keys()
            assert known.keys() >= result.updated.keys() | set(result.deleted)
            known.update(result.inserted)
            known.update(result.updated)
            for source_key in result.deleted:
                del known[source_key]
        for measure, increments in projection.increments.items():
            self.counts[measure].update(increments)
        for key, row in projection.rows.get(USERS, {}).items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        return projection

    def shown(self) -> dict[Key, tuple[RowValues, list[int]]]:
        return {key: (row, [self.counts[name][key] for name in MEASURES]) for key, row in self.rows.items()}

    def counted(self) -> dict[str, dict[Key, int]]:
        return {name: {key: count for key, count in counts.items() if count} for name, counts in self.counts.items()}


def by(*key: int) -> MeasurePlaces:
    return MeasurePlaces("count", FOLLOWS, key, amount=None)


def changes_of(batch: Sequence[Event]) -> Changes:
    """Keep the last state of each key, as the consumer does."""
    changes = Changes()
    for table, key, state in batch:
        if table is None:
            changes.rows.setdefault(USERS, {})[key] = state
        else:
            changes.counted.setdefault(table, {})[str(key)] = state  # type: ignore[assignment]  # groups, by the table
    return changes


def recount(history: Sequence[Event]) -> tuple[dict[Key, RowValues], dict[str, dict[Key, int]]]:
    """Compute the view anew from the last state of each source row."""
    last = {(table, key): state for table, key, state in history}
    rows = {key: state for (table, key), state in last.items() if table is None and state is not None}
    counts: dict[str, dict[Key, int]] = {}
    for name, (measured, column) in MEASURES.items():
        groups = [state[column] for (table, _), state in last.items() if table == measured and state is not None]
        counts[name] = {key: n for key, n in Counter(groups).items() if key is not None}  # type: ignore[misc]
    return rows, counts


users = st.integers(1, 4)
owner = st.one_of(st.none(), users)
source_keys = st.integers(1, 6).map(str)
events: st.SearchStrategy[Event] = st.one_of(
    st.tuples(st.none(), users, st.one_of(st.none(), st.tuples(st.text(max_size=2)))),
    st.tuples(st.sampled_from([TWEETS, LIKES]), source_keys, st.one_of(st.none(), st.tuples(owner))),
    st.tuples(st.just(FOLLOWS), source_keys, st.one_of(st.none(), st.tuples(owner, owner))),
)
histories = st.lists(events, max_size=60)


@st.composite
def cut_histories(draw: st.DrawFn) -> tuple[list[Event], list[list[Event]]]:
    history = draw(histories)
    cuts = sorted(draw(st.lists(st.integers(0, len(history)), max_size=8)))
    return history, [history[start:end] for start, end in zip([0, *cuts], [*cuts, len(history)], strict=True)]


@given(cut_histories())
def test_view_equals_recount_however_the_history_is_cut(cut: tuple[list[Event], list[list[Event]]]) -> None:
    history, batches = cut
    store = Store()
    for batch in batches:
        store.apply(batch)
    rows, counts = recount(history)
    assert store.rows == rows
    assert store.counted() == counts


@given(cut_histories(), st.data())
def test_replay_from_any_earlier_point_ends_the_same(
    cut: tuple[list[Event], list[list[Event]]], data: st.DataObject
) -> None:
    history, batches = cut
    store = Store()
    for batch in batches:
        store.apply(batch)
    for _ in range(2):
        store.apply(history[data.draw(st.integers(0, len(history))) :])
    rows, counts = recount(history)
    assert store.rows == rows
    assert store.counted() == counts


@given(histories)
def test_compacted_history_gives_the_same_view(history: list[Event]) -> None:
    last = {(table, key): place for place, (table, key, _) in enumerate(history)}
    compacted = [event for place, event in enumerate(history) if last[event[0], event[1]] == place]
    whole, short = Store(), Store()
    whole.apply(history)
    for event in compacted:
        short.apply([event])
    assert whole.shown() == short.shown()
    assert whole.counted() == short.counted()


@given(cut_histories())
def test_keys_left_with_nothing_are_among_the_losers(cut: tuple[list[Event], list[list[Event]]]) -> None:
    store = Store()
    for batch in cut[1]:
        before = {key for counts in store.counts.values() for key in +counts} | store.rows.keys()
        projection = store.apply(batch)
        after = {key for counts in store.counts.values() for key in +counts} | store.rows.keys()
        assert before - after <= projection.losers


def test_repeated_record_changes_nothing() -> None:
    changes = replace_contributions({"1": (7,)}, {"1": (7,)})
    assert not changes.inserted
    assert not changes.updated
    assert not changes.deleted
    assert counted(changes, by(0)) == {}


def test_new_owner_gains_what_the_old_one_loses() -> None:
    changes = replace_contributions({"1": (8, 2)}, {"1": (7, 2)})
    assert changes.updated == {"1": (8, 2)}
    assert [counted(changes, by(place)) for place in (0, 1)] == [{7: -1, 8: 1}, {}]


def test_tombstone_of_an_unseen_row_does_nothing() -> None:
    changes = replace_contributions({"1": None}, {})
    assert not changes.deleted
    assert counted(changes, by(0)) == {}


def test_a_key_that_loses_a_negative_amount_may_be_left_with_nothing() -> None:
    debts = MeasurePlaces("debts", FOLLOWS, (0,), amount=1)
    projection = project([debts], Changes(counted={FOLLOWS: {"1": None}}), {FOLLOWS: {"1": (7, Decimal(-5))}})
    assert projection.increments == {"debts": {7: 5}}
    assert projection.losers == {7}


def test_nobody_counts_for_null() -> None:
    changes = replace_contributions({"1": (None, 5)}, {})
    assert changes.inserted == {"1": (None, 5)}
    assert [counted(changes, by(place)) for place in (0, 1)] == [{}, {5: 1}]


def test_nobody_counts_for_a_key_that_lacks_a_column() -> None:
    changes = replace_contributions(
        {"1": (7, "a"), "2": (7, None), "3": (None, "a"), "4": (7, "a")}, {"4": (None, "a")}
    )
    assert counted(changes, by(0, 1)) == {(7, "a"): 2}
    assert counted(changes, by(1, 0)) == {("a", 7): 2}
