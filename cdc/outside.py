"""What commands need of a capture that another process runs, whatever its source: what it captures, and who leads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient

from cdc.kafka_requests import RequestTopic
from cdc.polled_status import GroupWatch, PolledStatusSource
from cdc.requests import SnapshotRequest, request_snapshots
from cdc.sources import polled_options, source_token
from cdc.status_source import STATUS_SESSION, StatusSource
from cdc.tables import check_source
from cdc.watching import LeaderWatch, Watch
from cdc.wire import TableName
from runtime.postgres import connect, describe, translated
from runtime.settings import StatusSettings


@dataclass(frozen=True, slots=True)
class Outside:
    """`request` asks for snapshots of tables, all or none."""

    status: StatusSource
    leader: Watch
    request: Callable[[Sequence[TableName]], tuple[SnapshotRequest, ...]]


@contextmanager
def outside(settings: StatusSettings, client: AdminClient, *, name: str) -> Iterator[Outside]:
    """Connect to the source as `VIEWKEEPER_CDC_SOURCE` has it; raise ConfigurationError if it is not set up so."""
    where = describe(settings.source_url)
    capture = settings.cdc_name
    with closing(connect(settings.source_url, name=name, settings=STATUS_SESSION)) as connection:
        if settings.cdc_source == "timestamp":
            options = polled_options(settings.cdc_tables)
            with closing(RequestTopic(settings, client, capture)) as requests:
                polled = PolledStatusSource(connection, capture, where=where, options=options, requests=requests)
                watch = GroupWatch(settings, client, token=source_token(connection, where))
                yield Outside(polled, watch, polled.request_snapshots)
            return
        with translated(where):
            check_source(connection, where)
        yield Outside(
            status=StatusSource(connection, capture, where=where),
            leader=LeaderWatch(connection, capture, where=where),
            request=lambda tables: request_snapshots(connection, capture, tables, where=where),
        )
