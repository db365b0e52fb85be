"""The projector's metrics."""

from prometheus_client import Counter, Gauge, Histogram

RECORDS_APPLIED = Counter(
    "viewkeeper_projector_records_applied_total", "Records applied to a view, each key's last of a batch", ["view"]
)
BATCHES = Counter("viewkeeper_projector_batches_total", "Batches applied to a view, one transaction each", ["view"])
BATCH_SECONDS = Histogram(
    "viewkeeper_projector_batch_seconds",
    "From a batch's records in hand to its commit",
    ["view"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
LAG_RECORDS = Gauge(
    "viewkeeper_projector_lag_records", "Offsets between what is applied and the topics' ends", ["view"]
)
AS_OF_SECONDS = Gauge(
    "viewkeeper_projector_as_of_timestamp_seconds",
    "As-of of a view, in seconds since 1970; freshness is now minus this",
    ["view"],
)
