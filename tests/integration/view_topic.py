"""The view's own topic, in tests: the view is captured under its stable name, and its rows are compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cdc.cursor import TableCursor, decode_cursor
from tests.daemons import Daemon, Daemons
from tests.integration.projector_steps import as_of
from tests.integration.rebuild_steps import rows
from tests.topic_reader import read_changelog, read_cursor
from tests.waiting import wait_until

NAME = "public.user_information"


@dataclass(frozen=True)
class ViewTopic:
    """The view in its database, and its topic; daemons of it get the `settings`."""

    url: str
    bootstrap_servers: str
    prefix: str
    settings: dict[str, str]

    def attach(self, daemon: Daemons) -> None:
        attaching = daemon("cdc", "attach", NAME, settings=self.settings)
        assert attaching.wait(30.0) == 0, attaching.log_text()

    def run(self, daemon: Daemons) -> Daemon:
        return daemon("cdc", "run", settings=self.settings)

    def entry(self) -> TableCursor | None:
        cursor = read_cursor(self.bootstrap_servers, self.prefix, "view")
        return cursor.tables.get(NAME) if cursor else None

    def watermark(self) -> datetime | None:
        entry = self.entry()
        return entry.watermark.time if entry and entry.watermark else None

    def entries(self) -> list[TableCursor]:
        """Return what each cursor of its capture said of the topic, the oldest first."""
        records = read_changelog(self.bootstrap_servers, f"{self.prefix}.cursor").records
        values = [value for record in records if record.key() == b"view" and isinstance(value := record.value(), bytes)]
        cursors = [decode_cursor(value, where="cursor topic") for value in values]
        return [cursor.tables[NAME] for cursor in cursors if NAME in cursor.tables]

    def rows(self, *, before: Sequence[int] | None = None) -> dict[int, dict[str, Any]]:
        """Return the topic's rows by user; as they were `before` an offset in each partition, where such are given."""
        found = read_changelog(self.bootstrap_servers, f"{self.prefix}.{NAME}", before=before).rows()
        return {json.loads(key)["user_id"]: _comparable(row) for key, row in found.items()}

    def records(self, user_id: int) -> int:
        """Return how many records the topic has of a user."""
        records = read_changelog(self.bootstrap_servers, f"{self.prefix}.{NAME}").records
        return sum(record.key() == f'{{"user_id":{user_id}}}'.encode() for record in records)

    def expected(self) -> dict[int, dict[str, Any]]:
        """Return the view's rows as the topic has them; no times are among the tests' values."""
        return {row["user_id"]: _comparable(row) for (row,) in rows(self.url, f"SELECT to_json(v) FROM {NAME} v")}

    def wait_exact(self) -> None:
        """Wait until the topic says that it has what the view reflects, and see that it does."""
        until = as_of(self.url)[0]
        wait_until(lambda: (at := self.watermark()) is not None and at >= until, what=f"a watermark of {until}")
        assert self.rows() == self.expected()


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    # A numeric is a string on the wire.
    return {**row, "like_count": int(row["like_count"])}
