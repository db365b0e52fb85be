"""What the tests of the WAL source share: tables in a publication, and a capture that reads its slot."""

from cdc.attachment import attach
from cdc.tables import SourceKind
from cdc.wire import TableName
from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import CAPTURE, Source

WAL = {"VIEWKEEPER_CDC_SOURCE": "wal"}
SMALL_PAGES = {"VIEWKEEPER_CDC_CHUNK_ROWS": "100"}
SLOTS = "FROM pg_replication_slots WHERE database = current_database()"


def attach_wal(source: Source, *tables: str, key: tuple[str, ...] | None = None) -> None:
    for table in tables:
        name = TableName.parse(table)
        assert attach(source.connection, CAPTURE, name, where="test", source=SourceKind.WAL, key=key)


def run_wal(daemon: Daemons, settings: dict[str, str] | None = None) -> Daemon:
    return daemon("cdc", "run", settings={**WAL, **(settings or {})})
