"""Keys that wait in memory, as pages."""

from collections.abc import Callable, Sequence
from itertools import islice

from cdc.pgoutput import Key
from cdc.rounds import Drain, Found, Keys
from cdc.wal_keys import Changed


class KeyDrain(Drain):
    """Keys in memory; those that are not read when it is closed are given back."""

    def __init__(
        self, found: Found, position: str, changed: Changed, page_keys: int, close: Callable[[Changed | None], None]
    ) -> None:
        super().__init__(found, position)
        self._rest = changed
        self._page_keys = page_keys
        self._close = close

    def peek(self) -> Keys | None:
        """Return the first of the keys that are left."""
        page = self._page()
        return page_of(page) if page else None

    def advance(self) -> None:
        """Let go of these."""
        for key in self._page():
            del self._rest.keys[key]

    def close(self) -> None:
        """Give back what is left; the marks belong to it."""
        rest = self._rest if self._rest.keys else None
        if rest is not None:
            rest.marks = set(self.found.marks)
        self._close(rest)

    def _page(self) -> list[Key]:
        return list(islice(self._rest.keys, self._page_keys))


def page_of(keys: Sequence[Key]) -> Keys:
    """Write keys as an array literal a key column."""
    columns = zip(*keys, strict=True)
    return Keys(len(keys), tuple("{" + ",".join(map(_quoted, column)) + "}" for column in columns))


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
