"""A database that is polled, and the topics that the capture makes of its tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compose.local.kafka import KafkaBroker
from runtime.postgres import connect
from tests.integration.captured_source import Source
from tests.waiting import wait_until

BOTH = 'mode = "timestamp+incrementing"\ntimestamp = ["updated_at"]\nincrementing = "id"'
TIMESTAMP = 'mode = "timestamp"\ntimestamp = ["updated_at"]'
INCREMENTING = 'mode = "incrementing"\nincrementing = "id"'
BULK = 'mode = "bulk"'
NO_LOOK_BACK = {"VIEWKEEPER_CDC_LOOK_BACK_SECONDS": "0"}


class PolledSource(Source):
    """The source of a test, polled as a file of tables says."""

    def __init__(self, url: str, kafka: KafkaBroker, prefix: str, folder: Path) -> None:
        super().__init__(connect(url, name="test", settings={"TimeZone": "UTC"}), url, kafka, prefix)
        self._file = folder / "tables.toml"

    def tables(self, **options: str) -> dict[str, str]:
        """Write the file of tables, each with its TOML options; return the settings of a capture that polls them."""
        sections = [f'[[table]]\nname = "{name}"\n{said}\n' for name, said in options.items()]
        self._file.write_text("\n".join(sections))
        return {"VIEWKEEPER_CDC_SOURCE": "timestamp", "VIEWKEEPER_CDC_TABLES": str(self._file)}

    def url_of(self, user: str, password: str) -> str:
        """Return the database's URL for another user."""
        info = self.connection.info
        return f"postgresql://{user}:{password}@{info.host}:{info.port}/{info.dbname}"

    def rows(self, table: str) -> Mapping[str, dict[str, Any]]:
        """Return a topic's living rows, by the value of their key."""
        return {key.split(":", 1)[1].rstrip("}"): row for key, row in self.topic(table).rows().items()}

    def wait_text(self, table: str, key: int, text: str) -> None:
        """Wait until the topic has a row with this text."""

        def shown() -> bool:
            return self.rows(table).get(str(key), {}).get("text") == text

        wait_until(shown, what=f"row {key} of {table} with text {text}")

    def wait_keys(self, table: str, *keys: int) -> None:
        """Wait until these keys are all that the topic has."""
        wait_until(lambda: set(self.rows(table)) == set(map(str, keys)), what=f"the keys {keys} of {table}")
