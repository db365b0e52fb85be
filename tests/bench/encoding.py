"""`make bench-encoding`: what capture and projector cost with Avro and with JSON, on the same rows in one run, in turn.

The processes measured are those of `make bench-capture` and `make bench-projector`: every record of the capture is read
back and compared with its row, every row of the view with what it must be.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import click

from cdc.avro_decoding import AvroDecoding
from cdc.wire import SOURCE_TIME_HEADER
from runtime.registry import Registry
from runtime.settings import CdcSettings
from tests.bench.bench_stack import BenchStack, bench_stack
from tests.bench.capture import TEMPLATE, fill
from tests.bench.catching_up import CAPTURE_FORM, Phase, RecordForm, snapshot_and_catch_up
from tests.bench.command import run_bench, say, scale_option
from tests.bench.encoded_history import avro_events
from tests.bench.errors import BenchError
from tests.bench.figures import Figures, report
from tests.bench.history import History
from tests.bench.projector import Round, catch_up, create_empty_view, produce

ROWS = 500_000
EVENTS = 500_000
ROUNDS = 3


@dataclass(frozen=True)
class Encoding:
    """An encoding that is measured, by its settings and by how its records are read back."""

    name: str
    settings: Mapping[str, str]
    form: RecordForm


def measure(stack: BenchStack, encodings: tuple[Encoding, ...], scale: float) -> Figures:
    """Return the figures of both encodings, and Avro's CPU for JSON's, in capture the worse of both phases."""
    rows = max(round(ROWS * scale), 1_000)
    say(f"filling a table of {rows:,} rows")
    fill(stack, rows)
    phases: dict[str, list[tuple[Phase, Phase]]] = {encoding.name: [] for encoding in encodings}
    for number in range(ROUNDS):
        for place, encoding in enumerate(encodings):
            both = snapshot_and_catch_up(
                stack,
                TEMPLATE,
                number * len(encodings) + place,
                rows,
                further=encoding.settings,
                form=encoding.form,
            )
            phases[encoding.name].append(both)
            cpu = " and ".join(f"{phase.cpu_seconds_per_million_rows:.1f}" for phase in both)
            say(f"round {number + 1}: {encoding.name}: {cpu} s of CPU a million rows, in snapshot and catch-up")
    return _figures(phases) | _projector(stack, encodings, max(round(EVENTS * scale), 1_000))


def _projector(stack: BenchStack, encodings: tuple[Encoding, ...], events: int) -> Figures:
    """Measure catching up with the same history in both encodings."""
    say(f"producing {events:,} events in each encoding")
    history = History(events)
    watermarks = {
        "json": produce(stack, "json", history),
        "avro": produce(stack, "avro", avro_events(stack, "avro", History(events))),
    }
    expected = history.expected_rows()
    create_empty_view(stack)
    rounds: dict[str, list[Round]] = {encoding.name: [] for encoding in encodings}
    for number in range(1, ROUNDS + 1):
        for encoding in encodings:
            name = encoding.name
            view = stack.pipeline(source=TEMPLATE, view=f"view_{name}", topic_prefix=name, further=encoding.settings)
            done = catch_up(stack, view, events, watermarks[name], expected)
            rounds[name].append(done)
            say(f"round {number}: {name}: {done.cpu_seconds_per_million_events:.1f} s of CPU a million events")
    if any(done.rows_that_differ for one in rounds.values() for done in one):
        raise BenchError("a view is not what its history must come to")
    cpu = {name: median(done.cpu_seconds_per_million_events for done in one) for name, one in rounds.items()}
    figures = {f"{name}_projector_cpu_seconds_per_million_events": seconds for name, seconds in cpu.items()}
    return figures | {"projector_cpu_ratio": cpu["avro"] / cpu["json"]}


def _figures(phases: Mapping[str, list[tuple[Phase, Phase]]]) -> Figures:
    figures: Figures = {}
    cpu = {}
    for name, rounds in phases.items():
        by_phase = list(zip(*rounds, strict=True))
        cpu[name] = [median(phase.cpu_seconds_per_million_rows for phase in one) for one in by_phase]
        figures[f"{name}_cpu_seconds_per_million_rows"] = max(cpu[name])
        figures[f"{name}_rows_per_second"] = median(phase.rows_per_second for phase in by_phase[0])
    return figures | {"cpu_ratio": max(ours / plain for ours, plain in zip(cpu["avro"], cpu["json"], strict=True))}


def _avro_settings(stack: BenchStack) -> dict[str, str]:
    return {"VIEWKEEPER_ENCODING": "avro", "VIEWKEEPER_SCHEMA_REGISTRY_URL": stack.schema_registry_url or ""}


@click.command()
@scale_option
def main(scale: float) -> None:
    """Measure capture and projector with both encodings."""
    with bench_stack(registry=True) as stack:
        registry = Registry(CdcSettings.model_construct(schema_registry_url=stack.schema_registry_url))
        with closing(registry):
            decoding = AvroDecoding(registry)

            def plain(raw: bytes) -> bytes:
                return raw if raw.startswith(b"{") else decoding.json(raw)

            avro = RecordForm(time_header=SOURCE_TIME_HEADER, meaning=plain, key=plain)
            encodings = (Encoding("json", {}, CAPTURE_FORM), Encoding("avro", _avro_settings(stack), avro))
            figures = measure(stack, encodings, scale)
    report("encoding", figures)


if __name__ == "__main__":
    run_bench(main)
