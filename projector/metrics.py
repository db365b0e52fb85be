"""The projector's metrics."""

from prometheus_client import Counter, Gauge, Histogram

RECORDS_APPLIED = Counter(
    "viewkeeper_projector_records_applied_total", "Records read and applied to a view, all those of a key", ["view"]
)
BATCHES = Counter("viewkeeper_projector_batches_total", "Batches applied to a view, one transaction each", ["view"])
BATCH_SECONDS = Histogram(
    "viewkeeper_projector_batch_seconds",
    "From a batch's records in hand to its commit",
    ["view"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
DEAD_LETTERS = Counter(
    "viewkeeper_projector_dead_letters_total", "Records that could not be applied and became dead letters", ["view"]
)
LAG_RECORDS = Gauge(
    "viewkeeper_projector_lag_records",
    "Offsets from where this instance has read to the ends of its partitions, as last heard",
    ["view"],
)
AS_OF_SECONDS = Gauge(
    "viewkeeper_projector_as_of_timestamp_seconds",
    "As-of of a view, in seconds since 1970; freshness is now minus this",
    ["view"],
)
