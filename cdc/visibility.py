"""Which transactions a database snapshot sees, by their 32 bits of xid: a commit is in the WAL before it is visible."""

from dataclasses import dataclass

_XIDS = 1 << 32


@dataclass(frozen=True, slots=True)
class Visibility:
    """A `pg_snapshot`: transactions below `xmax` have ended, all but those `open`."""

    xmax: int
    open: frozenset[int]

    def has_ended(self, before: int) -> bool:
        """Return whether all transactions before an xid have ended."""
        return min(self.open, default=self.xmax) >= before

    def sees(self, xid: int) -> bool:
        """Return whether a transaction that has committed is visible; `xid` is within 2^31 of the snapshot's."""
        ahead = (xid - self.xmax) % _XIDS
        whole = self.xmax + (ahead if ahead < _XIDS // 2 else ahead - _XIDS)
        return whole < self.xmax and whole not in self.open


def visibility(snapshot: str) -> Visibility:
    """Read the text of a `pg_snapshot`, `xmin:xmax:xip,…`."""
    _, xmax, xip = snapshot.split(":")
    return Visibility(int(xmax), frozenset(map(int, filter(None, xip.split(",")))))
