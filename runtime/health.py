"""The health and metrics listener of a daemon: `/livez`, `/readyz`, `/metrics`."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import make_wsgi_app

from runtime.errors import ConfigurationError

log = structlog.get_logger()

LOOP_STALL_SECONDS = 60.0
"""A loop that has not turned for so long is reported as dead."""


class Health:
    """What a daemon's loop says of itself; read by the listener's threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at = clock()
        self._state = (False, "starting")

    def beat(self) -> None:
        """Note that the loop has turned."""
        self._beat_at = self._clock()

    def ready(self, reason: str) -> None:
        """Declare the daemon ready and say in which role or state."""
        self._state = (True, reason)

    def not_ready(self, reason: str) -> None:
        """Declare the daemon not ready and say why."""
        self._state = (False, reason)

    def livez(self) -> tuple[bool, str]:
        """Return whether the loop turns, with a line that says so."""
        age_seconds = self._clock() - self._beat_at
        return age_seconds < LOOP_STALL_SECONDS, f"loop turned {age_seconds:.1f} s ago"

    def readyz(self) -> tuple[bool, str]:
        """Return whether the daemon is ready, with the reason."""
        return self._state


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        log.debug("health_request", line=format % args)


@contextmanager
def health_listener(host: str, port: int, health: Health) -> Iterator[int]:
    """Serve health and metrics from a thread; yield the port that was taken (port 0 takes any free one).

    Raises ConfigurationError when the address cannot be listened on.
    """
    try:
        server = make_server(host, port, _application(health), server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise ConfigurationError(
            f"health listener: cannot listen on {host}:{port}: {error.strerror}; "
            "set VIEWKEEPER_HEALTH_HOST or the part's …_HEALTH_PORT (0 takes any free port)"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    log.info("health_listening", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def _application(health: Health) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app()
    checks = {"/livez": health.livez, "/readyz": health.readyz}

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return cast(Iterable[bytes], metrics(environ, start_response))
        if path not in checks:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/livez, /readyz and /metrics are here\n"]
        good, reason = checks[path]()
        status = "200 OK" if good else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{reason}\n".encode()]

    return application
