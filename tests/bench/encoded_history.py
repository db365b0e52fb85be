"""The demo's history in Avro: each event as a capture with that encoding would publish it."""

from collections.abc import Iterable, Iterator
from contextlib import closing

import psycopg

from cdc.avro_encoding import AvroEncoding
from cdc.change import Op, Page
from cdc.tables import captured_tables
from runtime.settings import CdcSettings
from tests.bench.bench_stack import BenchStack
from tests.bench.history import Event
from tests.bench.produced_history import TABLES, table_topic

DATABASE = "demo"


def avro_events(stack: BenchStack, prefix: str, events: Iterable[Event]) -> Iterator[Event]:
    """Encode events by the columns of the demo's real tables, which a database is made for."""
    stack.create_database(DATABASE)
    pipeline = stack.pipeline(source=DATABASE, view=DATABASE, topic_prefix=prefix)
    pipeline.migrate("source", "demo")
    pipeline.attach(*TABLES)
    with psycopg.connect(pipeline.source_url) as connection:
        tables = {table.name.name: table for table in captured_tables(connection, "viewkeeper")}
    topics = {name: table_topic(prefix, name) for name in TABLES}
    settings = CdcSettings.model_construct(schema_registry_url=stack.schema_registry_url)
    with closing(AvroEncoding(settings)) as encoding:
        for event in events:
            page = Page(tables[event.table], [(event.key, event.value)], 0, Op.UPSERT)
            ((key, value),) = encoding.encoded(topics[event.table], page)
            yield event._replace(key=key, value=value)
