"""What the commands that change a view's versions show: progress, a comparison, what was done."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import click
import msgspec
from rich.live import Live
from rich.text import Text

from projector.comparing import Comparison, Difference
from projector.filling import Progress
from projector.rebuild import Waiting
from runtime.terminal import plain_console
from runtime.words import duration_words

NOT_KEPT = "no viewkeeper-projector run keeps this view: this command brings its versions to one point"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did to a view's versions.

    `version` is the one that it was about, `state` what became of it (`dropped` when it is gone), `comparison` what
    was found beside the one that it replaces. `lock_seconds` says for how long the view's name was locked, null without
    a swap.
    """

    view: str
    version: int
    state: str
    records: int = 0
    seconds: float = 0.0
    lock_seconds: float | None = None
    comparison: Comparison | None = None


def show_progress(steps: Iterable[Progress | Waiting], what: str) -> Progress | None:
    """Show steps until they end, on standard error; return the last of a filling."""
    console = plain_console(stderr=True)
    last: Progress | None = None
    said = ""
    terminal = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else nullcontext()
    with terminal as live:
        for step in steps:
            words = f"{what}: {progress_words(step)}"
            if isinstance(step, Progress):
                last = step
            if live is not None:
                live.update(Text(words))
            elif (kind := _kind(step)) != said:
                click.echo(words, err=True)
                said = kind
    return last


def progress_words(step: Progress | Waiting) -> str:
    """Say a step: records, rate, what is left; or what is waited for."""
    if isinstance(step, Waiting):
        return f"waiting: {step.reason}" + ("" if step.is_kept else f"; {NOT_KEPT}")
    left = "" if step.seconds_left is None else f", {duration_words(step.seconds_left)} left"
    return f"{step.records:,} rows, {step.records_per_second:,.0f} rows/s, {step.lag_records:,} offsets to go{left}"


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Say what a comparison found, a few lines."""
    for words, names in (
        ("columns that go, for whoever reads them", comparison.dropped),
        ("columns that come", comparison.added),
        ("columns of another type", comparison.retyped),
    ):
        if names:
            yield f"{words}: {', '.join(names)}"
    if comparison.not_compared:
        yield f"rows were not compared: {comparison.not_compared}"
        return
    yield (
        f"{comparison.compared_rows:,} rows compared: {comparison.differing_rows:,} differ, "
        f"{comparison.only_old:,} only in the old version, {comparison.only_new:,} only in the new one"
    )
    for name, rows in comparison.differing_fields.items():
        yield f"  {name}: {rows:,} rows"
    for example in comparison.examples:
        yield f"  key {example.key}: {_example_words(example)}"


def done_line(done: Done) -> str:
    """Say in a line what a command did."""
    took = "" if done.lock_seconds is None else f", its name was locked for {done.lock_seconds * 1000:.0f} ms"
    return f"{done.view}: version {done.version} is {done.state}{took}"


def _kind(step: Progress | Waiting) -> str:
    """Return what makes a step worth a line of its own where lines stay: each 100,000 rows, each kind of wait."""
    if isinstance(step, Waiting):
        return f"waiting {step.is_kept}"
    return f"filling {step.records // 100_000}"


def _example_words(example: Difference) -> str:
    if example.old is None or example.new is None:
        return "only in the new version" if example.old is None else "only in the old version"
    both = [(name, value, example.new[name]) for name, value in example.old.items()]
    return ", ".join(f"{name} {_shown(old)} → {_shown(new)}" for name, old, new in both if old != new)


def _shown(value: str | None) -> str:
    return "NULL" if value is None else repr(value)
