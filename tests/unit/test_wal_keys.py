"""Keys that wait for a snapshot that sees their transactions: which are given out, and where their tables stand."""

from datetime import UTC, datetime, timedelta
from struct import pack

import pytest

import cdc.wal_keys
from cdc.rounds import Mark
from cdc.visibility import Visibility
from cdc.wal_drain import page_of
from cdc.wal_keys import Changed, Owner, WaitingKeys
from cdc.wal_times import MOST_TIMES, KnownTimes

TWEETS, USERS, STRANGERS = 11, 12, 13
OWNERS = {TWEETS: Owner(1, ("id",)), USERS: Owner(2, ("id",))}
ALL = Visibility(1_000, frozenset())
MANY = 100


def _sent(message: bytes) -> bytes:
    return b"w" + bytes(24) + message


def _relation(oid: int) -> bytes:
    return _sent(b"R" + pack(">I", oid) + b"s\0t\0d" + pack(">H", 1) + b"\1id\0" + pack(">Ii", 20, -1))


def _insert(oid: int, key: str) -> bytes:
    return _sent(b"I" + pack(">I", oid) + b"N" + pack(">H", 1) + b"t" + pack(">I", len(key)) + key.encode())


def _begin(xid: int, commit_at: int) -> bytes:
    return _sent(b"B" + pack(">qqI", commit_at, 0, xid))


def _commit(commit_at: int) -> bytes:
    return _sent(b"C\0" + pack(">qqq", commit_at, commit_at + 10, 0))


def _keepalive(position: int) -> bytes:
    return b"k" + pack(">qqB", position, 0, 0)


@pytest.fixture
def waiting() -> WaitingKeys:
    """Give a stream that knows the relations, at position 0."""
    keys = WaitingKeys(lambda oid, _xid: OWNERS.get(oid), 0, prefix="viewkeeper")
    for oid in (TWEETS, USERS, STRANGERS):
        keys.take_in(_relation(oid))
    return keys


def _transaction(waiting: WaitingKeys, xid: int, commit_at: int, *changes: tuple[int, str]) -> None:
    waiting.take_in(_begin(xid, commit_at))
    for oid, key in changes:
        waiting.take_in(_insert(oid, key))
    waiting.take_in(_commit(commit_at))


def _take(waiting: WaitingKeys, snapshot: Visibility = ALL, most: int = MANY) -> dict[int, list[str]]:
    taken = waiting.take(snapshot, {1: 0, 2: 0}, set(), lambda _attachment: most)
    return {attachment: [key for (key,) in changed.keys] for attachment, changed in taken.items() if changed.keys}


def test_distinct_keys_are_given_out_once_and_strangers_never(waiting: WaitingKeys) -> None:
    _transaction(waiting, 5, 100, (TWEETS, "1"), (TWEETS, "2"), (TWEETS, "1"), (USERS, "9"), (STRANGERS, "7"))
    assert _take(waiting) == {1: ["1", "2"], 2: ["9"]}
    assert _take(waiting) == {}
    assert waiting.position_of(1) == waiting.position == 110


def test_what_is_not_visible_waits_and_holds_its_own_table_back(waiting: WaitingKeys) -> None:
    _transaction(waiting, 5, 100, (TWEETS, "1"))
    _transaction(waiting, 6, 200, (USERS, "9"))
    snapshot = Visibility(1_000, frozenset({5}))
    assert _take(waiting, snapshot) == {2: ["9"]}
    assert (waiting.position_of(1), waiting.position_of(2)) == (100, 210)
    assert waiting.behind(snapshot, 500) == frozenset()
    assert _take(waiting) == {1: ["1"]}


def test_a_large_transaction_is_taken_page_by_page_while_it_comes_in(waiting: WaitingKeys) -> None:
    _transaction(waiting, 4, 50, (USERS, "9"))
    waiting.take_in(_begin(5, 100))
    for key in "123":
        waiting.take_in(_insert(TWEETS, key))
    waiting.take_in(_keepalive(500))
    assert waiting.position == 60
    assert _take(waiting, most=2) == {1: ["1", "2"], 2: ["9"]}
    assert waiting.behind(ALL, 500) == {1}
    assert waiting.behind(ALL, 90) == frozenset()
    assert _take(waiting, most=2) == {1: ["3"]}
    assert waiting.position_of(1) == 60
    waiting.take_in(_insert(TWEETS, "4"))
    waiting.take_in(_commit(100))
    assert _take(waiting) == {1: ["4"]}
    waiting.take_in(_keepalive(500))
    assert waiting.position_of(1) == 500


def test_what_lies_before_a_position_is_dropped_and_what_a_table_keeps_is_not(waiting: WaitingKeys) -> None:
    _transaction(waiting, 5, 100, (TWEETS, "1"), (USERS, "9"))
    assert waiting.take(ALL, {1: 101}, {2}, lambda _attachment: MANY) == {}
    assert not waiting.has_room(ALL, set(), 1)
    assert waiting.has_room(ALL, {2}, 1)
    # Without a position, and not kept: it is to be read anew, and its snapshot will see these.
    assert waiting.take(ALL, {1: 101}, set(), lambda _attachment: MANY) == {}
    assert waiting.has_room(ALL, set(), 1)


def test_what_is_put_back_comes_first_and_keeps_the_position(waiting: WaitingKeys) -> None:
    _transaction(waiting, 5, 100, (TWEETS, "1"))
    waiting.put_back(1, Changed({("0",): None}, {Mark.TRUNCATE}), 70)
    assert waiting.position_of(1) == 70
    taken = waiting.take(Visibility(3, frozenset()), {1: 70, 2: 0}, set(), lambda _attachment: MANY)
    assert taken == {1: Changed({("0",): None}, {Mark.TRUNCATE})}
    assert _take(waiting) == {1: ["1"]}


def test_no_more_is_taken_in_than_may_wait_until_it_is_visible(
    waiting: WaitingKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdc.wal_keys, "MOST_WAITING", 10)
    _transaction(waiting, 5, 100, *((TWEETS, str(key)) for key in range(5)))
    unseen = Visibility(1_000, frozenset({5}))
    assert waiting.has_room(unseen, set(), MANY)
    _transaction(waiting, 6, 200, (USERS, "9"))
    assert not waiting.has_room(unseen, set(), MANY)
    assert _take(waiting, unseen) == {2: ["9"]}
    assert waiting.has_room(unseen, set(), MANY)
    assert _take(waiting) == {1: list("01234")}


def test_a_locked_table_with_very_many_keys_is_to_be_read_anew(
    waiting: WaitingKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mark for what is visible, and one of its own for what is not: each is there until it is taken."""
    monkeypatch.setattr(cdc.wal_keys, "MOST_WAITING", 20)
    for xid in (5, 6, 7):
        _transaction(waiting, xid, 100 * xid, (TWEETS, str(xid)), (USERS, str(xid)))
    unseen = Visibility(1_000, frozenset({5}))
    waiting.forget_keys({1}, unseen)
    assert not waiting.has_room(unseen, {1}, MANY)
    anew = Changed({}, {Mark.PASS})
    assert waiting.take(unseen, {1: 0}, {2}, lambda _attachment: MANY) == {1: anew}
    assert waiting.position_of(1) == 500
    assert waiting.take(unseen, {1: 0}, {2}, lambda _attachment: MANY) == {}
    assert waiting.take(ALL, {1: 0}, {2}, lambda _attachment: MANY) == {1: anew}
    assert _take(waiting) == {2: ["5", "6", "7"]}


def test_a_message_of_ours_names_keys(waiting: WaitingKeys) -> None:
    content = b'[2,[["7"],["8"]]]'
    waiting.take_in(_begin(5, 100))
    waiting.take_in(_sent(b"M\1" + bytes(8) + b"viewkeeper\0" + pack(">I", len(content)) + content))
    waiting.take_in(_sent(b"M\1" + bytes(8) + b"other\0" + pack(">I", 1) + b"x"))
    waiting.take_in(_commit(100))
    assert _take(waiting) == {2: ["7", "8"]}


def test_a_truncate_is_a_mark(waiting: WaitingKeys) -> None:
    waiting.take_in(_begin(5, 100))
    waiting.take_in(_sent(b"T" + pack(">IB2I", 2, 0, TWEETS, STRANGERS)))
    waiting.take_in(_commit(100))
    assert waiting.take(ALL, {1: 0}, set(), lambda _attachment: MANY) == {1: Changed({}, {Mark.TRUNCATE})}


def test_keys_are_written_as_arrays() -> None:
    assert page_of([("a", 'x"y'), ("b\\", "NULL")]).literals == ('{"a","b\\\\"}', '{"x\\"y","NULL"}')


def test_w3_a_time_is_known_once_the_stream_has_passed_the_end_that_was_read_after_it() -> None:
    times, began = KnownTimes(), datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(3):
        times.note(began + timedelta(seconds=second), 100 * second)
    times.pass_by(99)
    assert times.newest == (began, 0)
    times.pass_by(100)
    assert times.newest == (began + timedelta(seconds=1), 100)
    assert times.is_behind()
    # An idle server's end stands still: the newest time of it counts.
    times.note(began + timedelta(seconds=9), 200)
    times.pass_by(200)
    assert times.newest == (began + timedelta(seconds=9), 200)
    assert not times.is_behind()


def test_few_times_are_kept_however_far_behind_the_stream_is() -> None:
    times, began = KnownTimes(), datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(10 * MOST_TIMES):
        times.note(began + timedelta(seconds=second), second)
    times.pass_by(10 * MOST_TIMES)
    assert times.newest is not None
    assert times.newest[1] >= 9 * MOST_TIMES
