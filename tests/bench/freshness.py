"""`make bench-freshness`: from COMMIT in the source until the HTTP reply shows the change, beside a workload.

The same changes are watched in a stream of the row and in the view's topic. Targets that are missed are printed.
"""

import click

from compose.demo.population import Sizes
from tests.bench.bench_stack import BenchStack, Pipeline, bench_stack
from tests.bench.command import rate_option, run_bench, say, scale_option
from tests.bench.figures import USUAL_RATE, Figures, at_rate, report
from tests.bench.freshness_probes import probe
from tests.bench.percentiles import summarise
from tests.bench.targets import Target, missed
from tests.bench.topics import PARTITIONS
from tests.bench.working_pipeline import working_pipeline, workload

SECONDS = 60.0
LEAST_SECONDS = 10.0
LOW_RATE = 200
TARGETS = {
    "p95_seconds": Target(at_most=0.1),
    "max_seconds": Target(at_most=1.0),
    **{f"{what}_p95_seconds": Target(at_most=0.2) for what in ("stream", "topic")},
    **{f"{what}_max_seconds": Target(at_most=2.0) for what in ("stream", "topic")},
}


def measure(stack: BenchStack, scale: float, rate: int, partitions: int) -> Figures:
    """Return the figures at `rate` and at the low rate."""
    seconds = max(SECONDS * scale, LEAST_SECONDS)
    figures: Figures = {"partitions": partitions}
    say("loading the population and starting the pipeline")
    with (
        working_pipeline(stack, Sizes().scaled(scale), with_view_topic=True, partitions=partitions) as pipeline,
        pipeline.daemon("api.cli", "run") as api,
    ):
        url = f"http://127.0.0.1:{api.port('api_listening')}"
        for changes_per_second in dict.fromkeys((rate, LOW_RATE)):
            say(f"probing at {changes_per_second:,} changes/s for {seconds:g} s")
            stack.settle()
            figures |= at_rate(_at(pipeline, url, changes_per_second, seconds), changes_per_second)
    return figures


def _at(pipeline: Pipeline, url: str, rate: int, seconds: float) -> Figures:
    with workload(pipeline, rate) as running:
        probed = probe(pipeline, url, seconds=seconds)
        made = running.check_rate()
    replies, events, records = map(summarise, (probed.replies, probed.events, probed.records))
    return {
        "p50_seconds": replies.p50,
        "p95_seconds": replies.p95,
        "p99_seconds": replies.p99,
        "max_seconds": replies.max,
        "stream_p50_seconds": events.p50,
        "stream_p95_seconds": events.p95,
        "stream_max_seconds": events.max,
        "topic_p50_seconds": records.p50,
        "topic_p95_seconds": records.p95,
        "topic_max_seconds": records.max,
        "probes": replies.count,
        "changes_per_second": made,
    }


@click.command()
@scale_option
@rate_option(USUAL_RATE)
@click.option(
    "--partitions",
    envvar="PARTITIONS",
    default=PARTITIONS,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Partitions of each topic.",
)
def main(scale: float, rate: int, partitions: int) -> None:
    """Measure freshness at RATE and at 200 changes/s."""
    with bench_stack() as stack:
        figures = measure(stack, scale, rate, partitions)
    for line in missed(figures, TARGETS):
        say(line)
    report("freshness", figures, rate=rate)


if __name__ == "__main__":
    run_bench(main)
