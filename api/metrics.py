"""What the API measures of itself, at `/metrics`."""

from functools import cache

from prometheus_client import Gauge, Histogram

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


@cache
def request_seconds(status: int) -> Histogram:
    """Return the histogram of replies with one status."""
    return _REQUEST_SECONDS.labels(str(status))
