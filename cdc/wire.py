"""The wire contract that producers and consumers of changelog topics share: names of tables, topics and headers."""

import re
from dataclasses import dataclass

from cdc.errors import WireError

OP_HEADER = "__op"
SOURCE_TIME_HEADER = "__source_ts_ms"
TABLE_HEADER = "__table"

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table's schema and name, both of `[A-Za-z0-9_-]`, so that they can name a topic.

    Raises WireError for any other name.
    """

    schema: str
    name: str

    def __post_init__(self) -> None:
        for part in (self.schema, self.name):
            if not _NAME.fullmatch(part):
                raise WireError(
                    f"table {self.schema}.{self.name}: schema and name must be of letters, digits, _ and -, "
                    "since they name its topic; rename it, or capture a view of it"
                )

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> "TableName":
        """Read `schema.table`; a bare `table` is in schema public."""
        schema, dot, name = text.strip().partition(".")
        return cls(schema, name) if dot else cls("public", schema)


def topic_name(prefix: str, table: TableName) -> str:
    """Return the changelog topic of a table."""
    return f"{prefix}.{table}"


def cursor_topic_name(prefix: str) -> str:
    """Return the topic that holds one cursor record a capture, keyed by its name."""
    return f"{prefix}.cursor"


def requests_topic_name(prefix: str) -> str:
    """Return the topic that holds what is asked of captures whose source must not be written to."""
    return f"{prefix}.requests"
