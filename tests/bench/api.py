"""`make bench-api`: the API against a bare "hello" and a pooled query a request, with the pipeline at work.

All three servers run at once, are loaded in turn, and share the machine with the same capture, projector and workload.
Where vegeta is installed it asks the API and "hello" once more, as a cross-check of our own load tool. Targets that are
missed are printed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import click
import psutil
import psycopg
from psycopg import sql

from compose.demo.population import Sizes
from projector.tables import PRESENT, SCHEMA, view_table_name
from tests.bench.baseline_server import LISTENING
from tests.bench.bench_stack import BenchStack, Pipeline, bench_stack
from tests.bench.command import rate_option, run_bench, say, scale_option
from tests.bench.errors import BenchError
from tests.bench.figures import Figures, report
from tests.bench.load import ClosedLoad, OpenLoad, OpenResult, Target, run_closed, run_open
from tests.bench.percentiles import ratio_of_medians, summarise
from tests.bench.targets import Target as Bounds
from tests.bench.targets import missed
from tests.bench.vegeta import attack, vegeta_path
from tests.bench.working_pipeline import working_pipeline, workload
from views.user_information import user_information

ROWS = 500_000
LEAST_ROWS = 20_000
FIRST_ID = 5_000_000_000
"""Above every id that the workload picks or makes."""
REQUESTS_PER_SECOND = 1_000
OPEN_SECONDS = 60.0
LEAST_OPEN_SECONDS = 6.0
OPEN_ROUNDS = 2
CLOSED_SECONDS = 10.0
LEAST_CLOSED_SECONDS = 1.5
CLOSED_ROUNDS = 3
CLOSED_CONNECTIONS = 32
WARM_UP_SECONDS = 0.5
CHANGES_PER_SECOND = 200
GROWTH_REQUESTS = 1_000_000
"""So many requests at SCALE=1, between two looks at the API's memory."""
TARGETS = {
    "p95_seconds": Bounds(at_most=0.002),
    "p999_seconds": Bounds(at_most=0.006),
    "max_seconds": Bounds(at_most=0.01),
    "errors": Bounds(at_most=0),
    "ratio_to_hello": Bounds(at_least=0.35),
    "ratio_to_pooled": Bounds(at_least=2.0),
    "rss_mb": Bounds(at_most=120),
    "rss_growth_mb": Bounds(at_most=5),
}

_FILL = """
INSERT INTO {table} (user_id, username, name, description, location, web_page_url, joined_date, profile_image_url,
                     background_image_url, {present}, tweet_count, following_count, follower_count, like_count)
SELECT id, 'user' || id, 'User ' || id, 'Writes about things that user ' || id || ' has seen', 'Chicago, IL',
       'https://user' || id || '.example/',
       timestamptz '2008-01-22 15:14:44+00' + (id - %(first)s) * interval '1 minute',
       'https://images.example/profile/' || id || '.jpg', NULL, true, id %% 5000, id %% 700, id %% 900, id %% 300
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS id
"""


@dataclass(frozen=True)
class Targets:
    """The three servers under load."""

    api: Target
    hello: Target
    pooled: Target
    api_pid: int


def measure(stack: BenchStack, scale: float, rate: int) -> Figures:
    """Return all figures of the API."""
    rows = max(round(ROWS * scale), LEAST_ROWS)
    say("loading the population and starting the pipeline")
    with working_pipeline(stack, Sizes().scaled(scale)) as pipeline:
        say(f"filling the view with {rows:,} rows")
        _fill(pipeline, rows)
        stack.settle()
        with _served(pipeline, rows) as targets, workload(pipeline, rate) as running:
            for target in (targets.api, targets.hello, targets.pooled):
                run_closed(ClosedLoad(target=target, seconds=WARM_UP_SECONDS))
            figures = _open_figures(targets, max(OPEN_SECONDS * scale, LEAST_OPEN_SECONDS))
            if vegeta_path():
                figures |= _vegeta_figures(targets, max(OPEN_SECONDS * scale, LEAST_OPEN_SECONDS) / OPEN_ROUNDS)
            figures |= _closed_figures(targets, max(CLOSED_SECONDS * scale, LEAST_CLOSED_SECONDS))
            figures |= _memory_figures(targets, figures["requests_per_second"], round(GROWTH_REQUESTS * scale))
            figures["changes_per_second"] = running.check_rate()
    return figures


def _fill(pipeline: Pipeline, rows: int) -> None:
    table = sql.Identifier(SCHEMA, view_table_name(user_information, 1))
    with psycopg.connect(pipeline.view_url, autocommit=True) as connection:
        statement = sql.SQL(_FILL).format(table=table, present=sql.Identifier(PRESENT))
        connection.execute(statement, {"first": FIRST_ID, "last": FIRST_ID + rows - 1})
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(table))


@contextmanager
def _served(pipeline: Pipeline, rows: int) -> Iterator[Targets]:
    with (
        pipeline.daemon("api.cli", "run") as api,
        pipeline.daemon("tests.bench.baseline_server", "hello") as hello,
        pipeline.daemon("tests.bench.baseline_server", "pooled") as pooled,
    ):
        yield Targets(
            api=_users(api.port("api_listening"), rows),
            hello=Target(url=f"http://127.0.0.1:{hello.port(LISTENING)}/"),
            pooled=_users(pooled.port(LISTENING), rows),
            api_pid=api.process.pid,
        )


def _users(port: int, rows: int) -> Target:
    return Target(url=f"http://127.0.0.1:{port}/users/{{}}", first_id=FIRST_ID, last_id=FIRST_ID + rows - 1)


def _open_figures(targets: Targets, seconds: float) -> Figures:
    """Measure latency at constant arrivals, API and hello in turn."""
    ours: list[OpenResult] = []
    hello: list[OpenResult] = []
    for number in range(1, OPEN_ROUNDS + 1):
        for target, results in ((targets.api, ours), (targets.hello, hello)):
            load = OpenLoad(target=target, rate=REQUESTS_PER_SECOND, seconds=seconds / OPEN_ROUNDS)
            results.append(run_open(load))
        say(f"open loop, round {number}: API {_words(ours[-1])}; hello {_words(hello[-1])}")
    latencies = summarise(latency for result in ours for latency in result.latencies_seconds)
    hello_latencies = summarise(latency for result in hello for latency in result.latencies_seconds)
    if any(result.errors for result in hello):
        raise BenchError("the hello server did not answer every request")
    return {
        "p50_seconds": latencies.p50,
        "p95_seconds": latencies.p95,
        "p99_seconds": latencies.p99,
        "p999_seconds": latencies.p999,
        "max_seconds": latencies.max,
        "hello_p50_seconds": hello_latencies.p50,
        "hello_p95_seconds": hello_latencies.p95,
        "hello_max_seconds": hello_latencies.max,
        "send_delay_max_seconds": max(result.send_delay_max_seconds for result in (*ours, *hello)),
        "errors": sum(result.errors for result in ours),
    }


def _closed_figures(targets: Targets, seconds: float) -> Figures:
    """Measure requests a second with all connections busy, the three servers in turn."""
    rates: dict[str, list[float]] = {"api": [], "hello": [], "pooled": []}
    for _ in range(CLOSED_ROUNDS):
        for name, target in (("api", targets.api), ("hello", targets.hello), ("pooled", targets.pooled)):
            result = run_closed(ClosedLoad(target=target, seconds=seconds, connections=CLOSED_CONNECTIONS))
            if result.errors:
                raise BenchError(f"{result.errors} requests of the closed loop on {name} failed")
            rates[name].append(result.requests_per_second)
        say("closed loop: " + ", ".join(f"{name} {values[-1]:,.0f} requests/s" for name, values in rates.items()))
    return {
        "requests_per_second": median(rates["api"]),
        "ratio_to_hello": ratio_of_medians(rates["api"], rates["hello"]),
        "ratio_to_pooled": ratio_of_medians(rates["api"], rates["pooled"]),
    }


def _vegeta_figures(targets: Targets, seconds: float) -> Figures:
    """Measure latency by another tool, API and hello in turn."""
    figures: Figures = {}
    for name, target in (("vegeta", targets.api), ("vegeta_hello", targets.hello)):
        found = attack(target, rate=REQUESTS_PER_SECOND, seconds=seconds)
        say(f"{name}: p95 {found.p95 * 1e3:.2f} ms, max {found.max * 1e3:.1f} ms, {found.success:.1%} answered")
        figures |= {f"{name}_p95_seconds": found.p95, f"{name}_max_seconds": found.max}
    return figures


def _memory_figures(targets: Targets, requests_per_second: float, requests: int) -> Figures:
    """Measure what the API has resident, and by how much that grows over so many more requests."""
    say(f"{requests:,} requests to the API, for its memory")
    api = psutil.Process(targets.api_pid)
    before = api.memory_info().rss
    done = 0
    while done < requests:
        seconds = max((requests - done) / requests_per_second, LEAST_CLOSED_SECONDS)
        load = ClosedLoad(target=targets.api, seconds=min(seconds, CLOSED_SECONDS), connections=CLOSED_CONNECTIONS)
        done += round(run_closed(load).requests_per_second * load.seconds)
    after = api.memory_info().rss
    return {"rss_mb": after / 1e6, "rss_growth_mb": (after - before) / 1e6, "growth_requests": done}


def _words(result: OpenResult) -> str:
    latencies = result.latencies
    return f"p95 {latencies.p95 * 1e3:.2f} ms, max {latencies.max * 1e3:.1f} ms, {result.errors} errors"


@click.command()
@scale_option
@rate_option(CHANGES_PER_SECOND)
def main(scale: float, rate: int) -> None:
    """Measure the API at 1,000 requests/s, with a workload of RATE changes/s beside it."""
    with bench_stack() as stack:
        figures = measure(stack, scale, rate)
    for line in missed(figures, TARGETS):
        say(line)
    report("api", figures)


if __name__ == "__main__":
    run_bench(main)
