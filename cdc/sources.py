"""What a session needs of its source: who reads it, whose lease makes a leader, and who tidies up."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg

from cdc.cursor import Cursor
from cdc.housekeeping import Housekeeping
from cdc.lease import Lease, RowLease
from cdc.masks import mask_session
from cdc.session import SESSION
from cdc.source import Source
from cdc.statements import PARTS
from cdc.tables import CapturedTable, check_source
from cdc.triggers import TriggerSource
from runtime.postgres import connect, describe, translated
from runtime.settings import CdcSettings

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source for one session. `reading` is the connection that `source` waits on; `keep` is called now and then."""

    source: Source
    lease: Lease
    reading: psycopg.Connection
    keep: Callable[[Sequence[CapturedTable], Cursor], None]


@contextmanager
def open_source(settings: CdcSettings) -> Iterator[OpenSource]:
    """Connect to what `VIEWKEEPER_CDC_SOURCE` asks for.

    Raises ConfigurationError or CaptureError, with what to do, if the database cannot be captured so.
    """
    where = describe(settings.source_url)
    name = f"viewkeeper-cdc {settings.cdc_name}"
    session = SESSION | mask_session(settings.cdc_mask_key)
    with (
        closing(connect(settings.source_url, name=name, settings=session)) as reading,
        closing(connect(settings.source_url, name=f"{name} mark", settings=SESSION)) as marking,
        # Not the mark's, which the lease's thread uses in between.
        closing(connect(settings.source_url, name=f"{name} tidy", settings=SESSION)) as tidying,
    ):
        with translated(where):
            check_source(marking, where)
        part_limit_bytes = settings.cdc_log_limit_mb * MEBIBYTE // len(PARTS)
        yield OpenSource(
            source=TriggerSource(reading, settings.cdc_name, where=where),
            lease=RowLease(marking, settings.cdc_name, where=where, lease_seconds=settings.cdc_lease_seconds),
            reading=reading,
            keep=Housekeeping(tidying, where=where, part_limit_bytes=part_limit_bytes).keep,
        )
