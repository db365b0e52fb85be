"""What the API measures of itself, at `/metrics`."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_REQUEST_SECONDS = Histogram(
    "viewkeeper_api_request_seconds",
    "From a request's arrival to its reply, by status.",
    ["status"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 2),
)
LOOKUP_KEYS = Histogram(
    "viewkeeper_api_lookup_keys",
    "Keys that one look-up asked the store for.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
STORE_CONNECTIONS = Gauge("viewkeeper_api_store_connections", "Connections to the store that answer.")

STREAMS = Gauge("viewkeeper_api_streams", "Streams of rows that are open.")
STREAM_CHANGES = Counter(
    "viewkeeper_api_stream_changes", "Records in the topics of views that were about a row with streams."
)
_STREAM_EVENTS = Counter("viewkeeper_api_stream_events", "Events sent to streams, by their name.", ["event"])
_STREAMS_DROPPED = Counter("viewkeeper_api_streams_dropped", "Streams that were cut off, by the reason.", ["reason"])


@cache
def request_seconds(status: int) -> Histogram:
    """Return the histogram of replies with one status."""
    return _REQUEST_SECONDS.labels(str(status))


@cache
def stream_event(event: str) -> Counter:
    """Return the counter of events with one name."""
    return _STREAM_EVENTS.labels(event)


@cache
def stream_dropped(reason: str) -> Counter:
    """Return the counter of streams that were cut off for one reason."""
    return _STREAMS_DROPPED.labels(reason)
