"""From a page's JSON to the bytes of a topic's records: the one seam behind which the encodings differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc.change import KeyAndRow, Page
from cdc.decoding import Decoding, JsonDecoding
from cdc.tables import CapturedTable


@dataclass(frozen=True, slots=True)
class Form:
    """What a key's bytes hang on, beside the key: the encoding, and with Avro the id of the key's schema."""

    encoding: str
    key_schema: int | None = None

    def __str__(self) -> str:
        schema = f" and key schema {self.key_schema}" if self.key_schema is not None else ""
        return f"VIEWKEEPER_ENCODING={self.encoding}{schema}"


class Encoding(Protocol):
    """Encodes pages for one session, after which it is closed."""

    @property
    def decoding(self) -> Decoding:
        """Reads what it wrote."""

    def form(self, topic: str, table: CapturedTable) -> Form:
        """See that a table as it is now can be written to its topic; return what its keys' bytes hang on."""

    def encoded(self, topic: str, page: Page) -> Sequence[KeyAndRow]:
        """Return a page's changes as the topic's records hold them."""

    def close(self) -> None:
        """Close its connections."""


class JsonEncoding:
    """JSON, as Postgres has written it."""

    def __init__(self) -> None:
        self.decoding: Decoding = JsonDecoding()

    def form(self, topic: str, table: CapturedTable) -> Form:  # noqa: ARG002 - interface
        """Return the one form that there is."""
        return Form("json")

    def encoded(self, topic: str, page: Page) -> Sequence[KeyAndRow]:  # noqa: ARG002 - interface
        """Return the changes untouched."""
        return page.changes

    def close(self) -> None:
        """Close nothing."""
