"""Which of a row's two representations a request would rather have: its JSON, or the stream of its changes."""

import re
from collections.abc import Mapping

EVENT_STREAM = "text/event-stream"

_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
# The ranges that JSON is in, the most specific one first.
_JSON = ("application/json", "application/*", "*/*")


def asks_for_stream(accept: bytes | None) -> bool:
    """Return whether an Accept (RFC 9110, 12.5.1) names text/event-stream, and would not rather have JSON.

    A range that holds both, such as `*/*`, asks for JSON, and so does a request without an Accept.
    """
    # Nearly all requests end here.
    if accept is None or b"event-stream" not in accept.lower():
        return False
    weights = _weights(accept)
    stream = weights.get(EVENT_STREAM, 0.0)
    return stream > 0 and stream >= _json_weight(weights)


def takes_json(accept: bytes | None) -> bool:
    """Return whether an Accept admits JSON, whatever it would rather have."""
    return accept is None or _json_weight(_weights(accept)) > 0


def _json_weight(weights: Mapping[str, float]) -> float:
    return next((weights[name] for name in _JSON if name in weights), 0.0)


def _weights(accept: bytes) -> dict[str, float]:
    """Return the weight of each media range; one whose weight cannot be read is passed over."""
    weights: dict[str, float] = {}
    for element in accept.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        weight = next((value.strip() for key, _, value in map(_parted, parameters) if key.strip() == "q"), "1")
        if _WEIGHT.fullmatch(weight):
            weights[name] = max(float(weight), weights.get(name, 0.0))
    return weights


def _parted(parameter: str) -> tuple[str, str, str]:
    return parameter.partition("=")
