"""A database that is polled: a role that may only read, and the topics that the capture makes of its tables."""

from collections.abc import Mapping
from pathlib import Path

from compose.local.kafka import KafkaBroker
from runtime.postgres import connect
from tests.integration.captured_source import Source
from tests.topic_reader import read_cursor
from tests.waiting import wait_until

READER = "poller"


class PolledSource(Source):
    """The source of a test, and a role of its own that has SELECT on what is polled and nothing else."""

    def __init__(self, url: str, kafka: KafkaBroker, prefix: str, folder: Path) -> None:
        super().__init__(connect(url, name="test", settings={"TimeZone": "UTC"}), url, kafka, prefix)
        self._file = folder / "tables.toml"

    def tables(self, **options: str) -> dict[str, str]:
        """Write the file of tables, each with its TOML options; return the settings of a capture that polls them."""
        sections = [f'[[table]]\nname = "{name}"\n{said}\n' for name, said in options.items()]
        self._file.write_text("\n".join(sections))
        return {"VIEWKEEPER_CDC_SOURCE": "timestamp", "VIEWKEEPER_CDC_TABLES": str(self._file)}

    def rounds(self) -> int:
        """Return how many cursors there are."""
        return len(self.cursors())

    def rows(self, table: str) -> dict[str, object]:
        """Return a topic's living rows, by the first value of their key."""
        return {key.split(":", 1)[1].rstrip("}"): row for key, row in self.topic(table).rows().items()}

    def wait_row(self, table: str, key: object, **values: object) -> None:
        """Wait until the topic has a row with such values."""

        def there() -> bool:
            row = self.rows(table).get(str(key))
            return isinstance(row, Mapping) and all(row[name] == value for name, value in values.items())

        wait_until(there, what=f"{table} {key} with {values}")

    def wait_gone(self, table: str, key: object) -> None:
        """Wait until the topic has no such row."""
        wait_until(lambda: str(key) not in self.rows(table), what=f"{table} {key} to be gone")

    def wait_equal(self, table: str, query: str) -> None:
        """Wait until a topic's keys are what a query selects."""

        def equal() -> bool:
            return set(self.rows(table)) == {str(row[0]) for row in self.connection.execute(query)}

        wait_until(equal, what=f"the topic of {table} to equal it")

    def is_complete(self, table: str) -> bool:
        """Return whether the table has been read once."""
        cursor = read_cursor(self.bootstrap_servers, self.prefix)
        entry = cursor.tables.get(f"public.{table}") if cursor else None
        return entry is not None and entry.complete
