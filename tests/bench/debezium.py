"""Debezium as the peer of `make bench-capture`.

It is set up as somebody would who wants it fast; each setting that is not the default has its reason beside it.
"""

from tests.bench.bench_stack import Pipeline
from tests.bench.sample_rows import TABLE
from tests.debezium import Connector

# As Kafka's own connect-standalone.sh has it, both compilers included, and not what our broker runs with.
JVM_FLAGS = (
    "-Xms256M",
    "-Xmx2G",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    # Without these the JVM warns of the codecs' habits.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)

WORKER_SETTINGS = {
    # Fewer, larger requests to the broker, packed as ours.
    "producer.compression.type": "lz4",
    "producer.batch.size": "262144",
    "producer.buffer.memory": "67108864",
    # Several requests on their way at once; idempotence keeps their order.
    "producer.enable.idempotence": "true",
    "producer.max.in.flight.requests.per.connection": "5",
}

CONNECTOR_SETTINGS = {
    # Ten times the defaults, 2,048 and 8,192: fewer turns between its two threads and fewer calls of the worker's.
    "max.batch.size": "20480",
    "max.queue.size": "81920",
    # Twice the default, so that a page of the snapshot fills a batch.
    "snapshot.fetch.size": "20480",
    # When a row was read, which tells when a phase began: one header, where ours has three.
    "transforms.flat.add.headers": "ts_ms",
}
READ_TIME_HEADER = "__ts_ms"


def tuned_connector(name: str, pipeline: Pipeline) -> Connector:
    """Return a connector over the sample table of a pipeline's source; `name` is unused on the server."""
    return Connector(
        name=name,
        source_url=pipeline.source_url,
        bootstrap_servers=pipeline.kafka_bootstrap_servers,
        topic_prefix=pipeline.topic_prefix,
        tables=[f"public.{TABLE}"],
        folder=pipeline.folder,
        jvm_flags=JVM_FLAGS,
        worker_settings=WORKER_SETTINGS,
        connector_settings=CONNECTOR_SETTINGS,
    )
