"""The daemons as the separate processes that they are, and how far they have come."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from compose.demo.errors import DemoError
from compose.demo.processes import Process, running, wait_for
from compose.demo.screen import Screen
from compose.demo.servers import Servers
from runtime.postgres import connect, describe, translated
from runtime.settings import ApiSettings

API_PORT = "VIEWKEEPER_API_PORT"
CATCH_UP_SECONDS = 600.0
DRAIN_SECONDS = 60.0
METRICS_SECONDS = 5.0
CAPTURED = "viewkeeper_cdc_changes_published_total"
APPLIED = "viewkeeper_projector_records_applied_total"
LAG = "viewkeeper_projector_lag_records"

_AS_OF = "SELECT min(as_of) FROM viewkeeper_as_of HAVING count(*) = count(as_of)"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The running daemons and where they answer."""

    processes: tuple[Process, ...]
    cdc_url: str
    projector_url: str
    api_url: str


@contextmanager
def started_pipeline(servers: Servers, log_dir: Path) -> Iterator[Pipeline]:
    """Run the daemons, each answering when it yields; raises DemoError with the log's end of one that ends."""
    with ExitStack() as started:

        def start(name: str, module: str, environment: Mapping[str, str]) -> Process:
            arguments = [module, "run"]
            return started.enter_context(running(name, arguments, environment=environment, log_dir=log_dir))

        cdc = start("viewkeeper-cdc", "cdc.cli", os.environ)
        view_cdc = start("viewkeeper-cdc-view", "cdc.cli", servers.view_capture())
        projector = start("viewkeeper-projector", "projector.cli", os.environ)
        api = start("viewkeeper-api", "api.cli", {**os.environ, API_PORT: os.environ.get(API_PORT) or _api_port()})
        yield Pipeline(
            processes=(cdc, view_cdc, projector, api),
            cdc_url=_address(cdc, "health_listening"),
            projector_url=_address(projector, "health_listening"),
            api_url=_address(api, "api_listening"),
        )


def catch_up(servers: Servers, pipeline: Pipeline, screen: Screen) -> None:
    """Wait until the view reflects all that is in the source now, and show how far it has come.

    Raises DemoError when a daemon ends, or when it takes too long.
    """
    try:
        if _is_begun(servers.view_url):
            with screen.step("catching up", "view caught up"):
                wait_until_reflected(servers, pipeline, timeout_seconds=CATCH_UP_SECONDS)
            return
        total = _captured_rows(servers.source_url)
        with screen.counted_step("records applied", "view caught up", total=total) as bar:

            def show() -> None:
                bar.reach(int(read_metrics(pipeline.projector_url).get(APPLIED, 0)))

            wait_until_reflected(servers, pipeline, timeout_seconds=CATCH_UP_SECONDS, show=show)
    except DemoError as error:
        raise DemoError(f"{error}\nIf the data is of another version's demo: make clean-demo") from error


def wait_until_reflected(
    servers: Servers, pipeline: Pipeline, *, timeout_seconds: float, show: Callable[[], object] | None = None
) -> None:
    """Wait until each view's as-of has passed all that is committed in the source now."""
    with (
        connect(servers.source_url, name="viewkeeper-demo") as source,
        connect(servers.view_url, name="viewkeeper-demo") as view,
        translated(f"{describe(servers.source_url)}, {describe(servers.view_url)}"),
    ):
        ((now,),) = source.execute("SELECT clock_timestamp()")

        def reflected() -> bool | None:
            if show:
                show()
            as_of = _as_of(view)
            return True if as_of is not None and as_of >= now else None

        wait_for(
            reflected,
            pipeline.processes,
            what=f"the view has not come to reflect {now:%H:%M:%S} of its source",
            timeout_seconds=timeout_seconds,
        )


def read_metrics(url: str) -> dict[str, float]:
    """Return each metric's sum over its labels; nothing while the daemon does not answer."""
    try:
        with urlopen(f"{url}/metrics", timeout=METRICS_SECONDS) as reply:  # noqa: S310 - our own daemon over http
            text = reply.read().decode()
    except (URLError, OSError):
        return {}
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def _as_of(view: psycopg.Connection) -> datetime | None:
    row = view.execute(_AS_OF).fetchone()
    return row[0] if row else None


def _is_begun(view_url: str) -> bool:
    with connect(view_url, name="viewkeeper-demo") as connection, translated(describe(view_url)):
        return _as_of(connection) is not None


def _captured_rows(source_url: str) -> int:
    with connect(source_url, name="viewkeeper-demo") as connection, translated(describe(source_url)):
        ((rows,),) = connection.execute(
            "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM tweets) "
            "+ (SELECT count(*) FROM follows) + (SELECT count(*) FROM likes)"
        )
    return int(rows)


def _api_port() -> str:
    """Return the API's default port when it is free, else 0, which takes any."""
    default = ApiSettings.model_fields["api_port"].default
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", default))
        except OSError:
            return "0"
    return str(default)


def _address(process: Process, event: str) -> str:
    fields = process.logged(event)
    return f"http://127.0.0.1:{fields['port']}"
