"""What a capture measures of itself, at `/metrics`."""

from prometheus_client import Counter, Gauge, Histogram

CHANGES_PUBLISHED = Counter(
    "viewkeeper_cdc_changes_published_total", "Changes handed to Kafka, repeated ones too.", ["table"]
)
CURSORS = Counter(
    "viewkeeper_cdc_cursors_total", "Cursors that Kafka has committed: of rounds, snapshot chunks and heartbeats."
)
PUBLISH_SECONDS = Histogram(
    "viewkeeper_cdc_publish_seconds",
    "From taking pages that were read to their commit in Kafka.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
WATERMARK = Gauge(
    "viewkeeper_cdc_watermark_timestamp_seconds", "Time of a table's watermark, seconds since 1970.", ["table"]
)
LEADER = Gauge("viewkeeper_cdc_leader", "1 while this process is the capture's leader.")
