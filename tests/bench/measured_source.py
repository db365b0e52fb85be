"""Whom the capture asks for changes of the sample table: triggers, or another source beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from cdc.tables import SourceKind
from tests.bench.bench_stack import Pipeline
from tests.bench.sample_rows import TABLE, index_updates

OTHER_SOURCES = (SourceKind.WAL.value, SourceKind.TIMESTAMP.value)

_SOURCE = "VIEWKEEPER_CDC_SOURCE"
_POLLED = f"""
[[table]]
name = "public.{TABLE}"
mode = "timestamp"
timestamp = ["updated_at"]
"""


def settings_of(source: str, folder: Path) -> dict[str, str]:
    """Return the settings by which a capture asks a source; the file of tables that is polled goes to `folder`."""
    settings = {_SOURCE: source}
    if source == SourceKind.TIMESTAMP:
        tables = folder / "tables.toml"
        tables.write_text(_POLLED)
        settings["VIEWKEEPER_CDC_TABLES"] = str(tables)
    return settings


@contextmanager
def captured(pipeline: Pipeline) -> Iterator[None]:
    """Have the sample table captured by the source that a pipeline's settings name, and no longer at the end.

    Nothing is attached to be polled, but the table has the index that the documentation asks for.
    """
    if pipeline.further.get(_SOURCE) == SourceKind.TIMESTAMP:
        with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
            index_updates(connection)
        yield
        return
    pipeline.attach(TABLE)
    yield
    pipeline.detach(TABLE)
