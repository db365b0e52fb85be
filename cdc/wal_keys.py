"""Keys of committed transactions that wait to be read: in memory, in the order of their commits."""

from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from struct import Struct

import msgspec

from cdc import pgoutput
from cdc.pgoutput import Key, KeyColumns, Relation
from cdc.rounds import Mark
from cdc.visibility import Visibility

MOST_WAITING = 500_000
"""So many keys are in memory at most, and a page: those beyond wait in the server, which keeps its WAL."""
_PART_WEIGHT = 4
"""A transaction's part of a table takes memory as so many keys, beside its own."""

_HEADER_BYTES = 25
_WAL_END = Struct(">q")
_KEEPALIVE, _CHANGES = ord("k"), b"IUD"


@dataclass(frozen=True, slots=True)
class Owner:
    """The captured table that a relation belongs to, a partition for instance, and the names of its key columns."""

    attachment: int
    key: tuple[str, ...]


class _LoggedKeys(msgspec.Struct, frozen=True, array_like=True):
    """The content of a message that names keys, as if they had changed: a list of texts a key."""

    attachment: int
    keys: list[Key]


@dataclass(slots=True)
class Changed:
    """Distinct keys of one table, in order, and what else is said of it."""

    keys: dict[Key, None] = field(default_factory=dict)
    marks: set[Mark] = field(default_factory=set)


@dataclass(slots=True)
class _Transaction:
    """What is left to read of a transaction; `xid` is None for what was taken and is visible for sure."""

    xid: int | None
    commit_at: int
    changed: dict[int, Changed] = field(default_factory=dict)

    def is_visible(self, snapshot: Visibility) -> bool:
        return self.xid is None or snapshot.sees(self.xid)

    def of(self, attachment: int) -> Changed:
        return self.changed.setdefault(attachment, Changed())


class WaitingKeys:
    """Takes in what the stream sends, and gives out keys of transactions that a snapshot sees.

    Every transaction whose commit record begins before `position` has come in whole. `owner_of` finds the captured
    table of a relation that a transaction (32 bits of its xid) has changed; it is asked for relations in the
    publication alone. Messages under `prefix` are the capture's own; all others are passed over.
    """

    def __init__(self, owner_of: Callable[[int, int], Owner | None], position: int, *, prefix: str) -> None:
        self.position = position
        self.taken_in = 0
        self._owner_of = owner_of
        self._prefix = prefix
        self._transactions: deque[_Transaction] = deque()
        self._open: _Transaction | None = None
        self._relations: dict[int, Relation] = {}
        self._columns: dict[int, tuple[Owner, KeyColumns | None]] = {}
        # Relations without an owner, as far as the open transaction is concerned.
        self._unknown: set[int] = set()

    def take_in(self, data: bytes) -> None:
        """Take in one message; `taken_in` counts the changes, and what others have written to the WAL."""
        if data[0] == _KEEPALIVE:
            # Inside a transaction the server may be ahead of what it has sent.
            if self._open is None:
                self.position = max(self.position, _WAL_END.unpack_from(data, 1)[0])
            return
        message = data[_HEADER_BYTES:]
        kind = message[0]
        if kind in _CHANGES:
            self._change(message)
        elif kind == ord("B"):
            begin = pgoutput.begin(message)
            self._open = _Transaction(begin.xid, begin.commit_at)
            self._transactions.append(self._open)
            # One before may have been a partition's that nobody saw then.
            self._unknown.clear()
        elif kind == ord("C"):
            self._open = None
            self.position = pgoutput.commit(message).end
        elif kind == ord("R"):
            relation = pgoutput.relation(message)
            self._relations[relation.oid] = relation
            self._columns.pop(relation.oid, None)
        else:
            self._other(message)

    def forget_owners(self) -> None:
        """Ask for each relation's table anew: what is attached has changed."""
        self._columns.clear()
        self._unknown.clear()

    def take(
        self,
        snapshot: Visibility,
        positions: Mapping[int, int],
        kept: Set[int],
        most: Callable[[int], int],
    ) -> dict[int, Changed]:
        """Give out, by attachment, what `snapshot` sees of tables that have come to `positions`.

        At most so many keys of each table as `most` says. What lies before a table's position, and visible keys of
        tables without one, are dropped; those of the tables in `kept` wait on.
        """
        taken: dict[int, Changed] = {}
        for transaction in self._transactions:
            if not transaction.is_visible(snapshot):
                continue
            for attachment in transaction.changed.keys() - kept:
                if transaction.commit_at < positions.get(attachment, transaction.commit_at + 1):
                    del transaction.changed[attachment]
                    continue
                _move(transaction, attachment, taken.setdefault(attachment, Changed()), most(attachment))
        self._transactions = deque(one for one in self._transactions if one.changed or one is self._open)
        return taken

    def put_back(self, attachment: int, changed: Changed, position: int) -> None:
        """Have what was given out wait again; the table stays at `position`."""
        self._transactions.appendleft(_Transaction(None, position, {attachment: changed}))

    def position_of(self, attachment: int) -> int:
        """Return the position before which nothing of a table waits."""
        waiting = (one.commit_at for one in self._transactions if attachment in one.changed)
        return min(self.position, next(waiting, self.position))

    def behind(self, snapshot: Visibility, before: int) -> frozenset[int]:
        """Return the attachments with keys that wait though `snapshot` sees them, of commits before a position."""
        return frozenset(
            attachment
            for one in self._transactions
            if one.commit_at < before and one.is_visible(snapshot)
            for attachment in one.changed
        )

    def has_room(self, snapshot: Visibility, locked: Set[int], page_keys: int) -> bool:
        """Return whether more is to be taken in: fewer keys wait than a page that could be read, and than may in all.

        That a transaction becomes visible, or a lock ends, hangs on nothing that would be taken in.
        """
        readable = total = 0
        for one in self._transactions:
            is_visible = one.is_visible(snapshot)
            for attachment, changed in one.changed.items():
                total += len(changed.keys) + _PART_WEIGHT
                if is_visible and attachment not in locked:
                    readable += len(changed.keys)
        return readable < page_keys and total < MOST_WAITING

    def forget_keys(self, locked: Set[int], snapshot: Visibility) -> None:
        """Let go of the keys of locked tables with very many, all of whose rows are to be read again instead.

        So nobody else waits until the lock ends. What is not visible yet is marked by itself: it is taken later.
        """
        for attachment in locked:
            parts = [(one, one.changed[attachment]) for one in self._transactions if attachment in one.changed]
            if sum(len(changed.keys) + _PART_WEIGHT for _, changed in parts) <= MOST_WAITING // 2:
                continue
            is_marked = False
            for one, _ in parts:
                is_visible = one.is_visible(snapshot)
                if is_marked and is_visible:
                    del one.changed[attachment]
                else:
                    one.changed[attachment] = Changed({}, {Mark.PASS})
                is_marked |= is_visible

    def _change(self, message: bytes) -> None:
        self.taken_in += 1
        if self._open is None:
            return
        known = self._known(pgoutput.relation_oid(message), self._open)
        if known is None:
            return
        owner, columns = known
        keys = pgoutput.keys(message, columns) if columns is not None else None
        changed = self._open.of(owner.attachment)
        if keys is None:
            changed.marks.add(Mark.KEY)
        else:
            changed.keys.update(dict.fromkeys(keys))

    def _other(self, message: bytes) -> None:
        # Also what is passed over: a program that floods the WAL with messages would be read for ever otherwise.
        self.taken_in += 1
        if self._open is None:
            return
        if message[0] == ord("T"):
            for oid in pgoutput.truncate(message).oids:
                known = self._known(oid, self._open)
                if known is not None:
                    self._open.of(known[0].attachment).marks.add(Mark.TRUNCATE)
        elif message[0] == ord("M"):
            told = pgoutput.message(message)
            if told.prefix == self._prefix:
                logged = msgspec.json.decode(told.content, type=_LoggedKeys)
                self.taken_in += len(logged.keys)
                self._open.of(logged.attachment).keys.update(dict.fromkeys(logged.keys))

    def _known(self, oid: int, transaction: _Transaction) -> tuple[Owner, KeyColumns | None] | None:
        if oid not in self._columns and oid not in self._unknown:
            owner, relation = self._owner_of(oid, transaction.xid or 0), self._relations.get(oid)
            if owner is None:
                self._unknown.add(oid)
            else:
                self._columns[oid] = owner, pgoutput.key_columns(relation, owner.key) if relation else None
        return self._columns.get(oid)


def _move(transaction: _Transaction, attachment: int, taken: Changed, most: int) -> None:
    """Move marks and keys to what is taken, until that has `most` keys."""
    changed = transaction.changed[attachment]
    taken.marks |= changed.marks
    changed.marks = set()
    room = most - len(taken.keys)
    if len(changed.keys) <= room:
        taken.keys.update(changed.keys)
        del transaction.changed[attachment]
        return
    for key in list(changed.keys)[: max(room, 0)]:
        taken.keys[key] = changed.keys.pop(key)
