"""Whatever arrives, each view is what SQL over the source gives: keys of one column or several, one row or two."""

from collections.abc import Iterator
from itertools import product
from random import Random

import pytest

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from projector.audit import audit_view
from projector.definition import View
from tests.integration.own_views import four_columns, one_column, two_rows, two_rows_two_columns
from tests.integration.own_views_steps import OwnView, OwnViews, as_key, own_views

pytestmark = pytest.mark.newest_postgres

VIEWS = [one_column, four_columns, two_rows, two_rows_two_columns]


@pytest.fixture(scope="module")
def all_views(postgres: PostgresServer, kafka: KafkaBroker) -> Iterator[OwnViews]:
    """Give all views for the tests of this file, which have keys of their own."""
    with own_views(postgres, kafka) as views:
        yield views


@pytest.fixture(params=VIEWS, ids=lambda view: view.name)
def own(request: pytest.FixtureRequest, all_views: OwnViews) -> OwnView:
    """Give one of the views."""
    view: View = request.param
    return OwnView(all_views, view)


def shown(own: OwnView, name: str | None, orders: int, paid: int, spent: str) -> tuple[object, ...]:
    """Return the row that readers see while nothing is known of a second source row."""
    return name, orders, paid, spent, *([None] if len(own.view.rows) > 1 else [])


def some_history(own: OwnView) -> tuple[int | str, ...]:
    """Put a row with three orders, two of them paid."""
    key = own.key()
    own.put(key, "ann")
    for status, amount in (("paid", "1.50"), ("open", "10"), ("paid", "-0.25")):
        own.order(own.order_id(), key, status, amount)
    own.own.catch_up()
    return key


def test_redelivery_changes_nothing(own: OwnView) -> None:
    key, order_id = own.key(), own.order_id()
    for _ in range(2):
        for _ in range(2):
            own.order(order_id, key, "paid", "7")
            own.put(key, "ann")
        own.own.catch_up(max_records=3)
        assert own.shown(key) == shown(own, "ann", 1, 1, "7")


def test_replay_from_the_beginning_changes_nothing(own: OwnView) -> None:
    key = some_history(own)
    before = own.stored(key)
    own.own.replay()
    assert own.stored(key) == before
    assert own.shown(key) == shown(own, "ann", 3, 2, "1.25")


def test_tombstones_of_rows_never_seen_leave_nothing(own: OwnView) -> None:
    key = own.key()
    for row in range(len(own.view.rows)):
        own.remove(key, row=row)
    own.no_order(own.order_id())
    own.own.catch_up()
    assert own.stored(key) is None


def test_changed_owner_takes_counts_and_sums_with_it(own: OwnView) -> None:
    key, other, order_id = some_history(own), own.key(), own.order_id()
    own.put(other, "bob")
    own.order(order_id, key, "paid", "100")
    own.own.catch_up()
    assert own.shown(key) == shown(own, "ann", 4, 3, "101.25")
    own.order(order_id, other, "paid", "99")
    own.own.catch_up()
    assert own.shown(key) == shown(own, "ann", 3, 2, "1.25")
    assert own.shown(other) == shown(own, "bob", 1, 1, "99")


def test_a_key_is_all_of_its_columns_and_with_a_null_it_is_nobodys(own: OwnView) -> None:
    key, another = own.key(), own.key()
    own.put(key, "ann")
    keys = [
        (*key[:place], part, *key[place + 1 :])
        for place in range(len(key))
        for part in (another[place], None, key[place])
    ]
    order_ids = [own.order_id() for _ in keys]
    for order_id, changed in zip(order_ids, keys, strict=True):
        own.order(order_id, changed, "paid", "1")
    own.own.catch_up()
    assert own.shown(key) == shown(own, "ann", len(key), len(key), f"{len(key)}")
    for order_id, changed in zip(order_ids, reversed(keys), strict=True):
        own.order(order_id, changed, "paid", "1")
    own.own.catch_up()
    assert own.shown(key) == shown(own, "ann", len(key), len(key), f"{len(key)}")


def test_parent_after_its_children_shows_them(own: OwnView) -> None:
    key = own.key()
    own.order(own.order_id(), key, "paid", "2")
    own.order(own.order_id(), key, None, "3")
    own.own.catch_up()
    assert own.shown(key) is None
    own.put(key, None)
    own.own.catch_up()
    assert own.shown(key) == shown(own, None, 2, 1, "2")


def test_parent_that_is_deleted_is_cleared_and_counted_on_until_it_is_born_again(own: OwnView) -> None:
    key = some_history(own)
    own.remove(key)
    own.order(own.order_id(), key, "paid", "5")
    own.own.catch_up()
    assert own.shown(key) is None
    stored = own.stored(key)
    assert stored is not None
    assert stored["name"] is None
    own.put(key, "reborn")
    own.own.catch_up()
    assert own.shown(key) == shown(own, "reborn", 4, 3, "6.25")


def test_nothing_is_left_of_a_key_that_lost_everything(own: OwnView) -> None:
    key, order_id = own.key(), own.order_id()
    for row in range(len(own.view.rows)):
        own.put(key, "secret", row=row)
    own.order(order_id, key, "paid", "2")
    own.own.catch_up()
    own.no_order(order_id)
    own.own.catch_up()
    for row in range(len(own.view.rows)):
        assert own.stored(key) is not None
        own.remove(key, row=row)
        own.own.catch_up()
    assert own.stored(key) is None


@pytest.mark.parametrize("own", [two_rows, two_rows_two_columns], indirect=True, ids=lambda view: view.name)
def test_rows_of_one_key_come_and_go_by_themselves(own: OwnView) -> None:
    key = own.key()
    own.put(key, "a bio", row=1)
    own.own.catch_up()
    assert own.shown(key) is None
    own.put(key, "ann")
    own.own.catch_up()
    assert own.shown(key) == ("ann", 0, 0, "0", "a bio")
    own.put(key, "another", row=1)
    own.order(own.order_id(), key, "paid", "2")
    own.own.catch_up()
    assert own.shown(key) == ("ann", 1, 1, "2", "another")
    own.remove(key, row=1)
    own.own.catch_up()
    assert own.shown(key) == ("ann", 1, 1, "2", None)
    own.put(key, "back", row=1)
    own.remove(key)
    own.own.catch_up()
    assert own.shown(key) is None
    stored = own.stored(key)
    assert stored is not None
    assert (stored["name"], stored["bio"]) == (None, "back")


def test_audit_agrees_with_sql_and_finds_what_differs(own: OwnView) -> None:
    first, another = some_history(own), own.key()
    # Each differs in one column alone.
    keys = [first, *((*first[:place], another[place], *first[place + 1 :]) for place in range(len(first)))]
    for number, key in enumerate(keys):
        own.put(key, f"{number}")
        own.order(own.order_id(), key, "paid", f"{number + 1}")
    if len(own.view.rows) > 1:
        own.put(first, "a bio", row=1)
        own.put(own.key(), "of nobody", row=1)
    own.order(own.order_id(), own.key(), "paid", "4")
    own.own.catch_up()
    result = audit_view(own.view, source_url=own.own.url, view_url=own.own.url, wait_seconds=1)
    assert result.differing_rows == 0
    assert result.compared_rows >= len(keys)
    own.put(own.key(), "missing")
    own.order(own.order_id(), keys[1], "paid", "4")
    result = audit_view(own.view, source_url=own.own.url, view_url=own.own.url, wait_seconds=1)
    assert dict(result.differing_fields) == {"(missing)": 1, "orders": 1, "paid": 1, "spent": 1}
    assert as_key(keys[1]) in [example.key for example in result.examples]


def test_any_history_in_any_batches_gives_what_sql_gives(own: OwnView) -> None:
    random = Random(own.view.name)  # noqa: S311 - no secret
    parts = list(zip(own.key(), own.key(), strict=True))
    order_ids = [own.order_id() for _ in range(12)]
    for _ in range(4):
        for _ in range(random.randint(5, 20)):
            key = tuple(random.choice(both) for both in parts)
            order_id, row = random.choice(order_ids), random.randrange(len(own.view.rows))
            match random.randrange(6):
                case 0:
                    own.remove(key, row=row)
                case 1:
                    own.no_order(order_id)
                case 2 | 3:
                    own.put(key, random.choice(["ann", "bob", None]), row=row)
                case _:
                    nobody = [part if random.random() < 0.9 else None for part in key]
                    status, amount = random.choice(["paid", "open", None]), random.choice(["1.50", "-3", None])
                    own.order(order_id, tuple(nobody), status, amount)
        own.own.catch_up(max_records=random.randint(1, 12))
    assert any(own.shown(key) for key in product(*parts))
    result = audit_view(own.view, source_url=own.own.url, view_url=own.own.url, wait_seconds=1)
    assert (result.differing_rows, result.undecided_rows) == (0, 0)
