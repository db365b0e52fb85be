"""What the demo shows while it starts: a spinner and bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 5.0


class Bar:
    """The progress of one step, counted in rows or records."""

    def __init__(self, screen: "Screen", text: str, total: int, progress: Progress | None) -> None:
        self._screen = screen
        self._text = text
        self._total = total
        self._progress = progress
        self._task = progress.add_task(text, total=total) if progress else None
        self._said_at = time.monotonic()

    def reach(self, done: int) -> None:
        """Show that `done` are done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(done, self._total))
        elif time.monotonic() - self._said_at > PLAIN_SECONDS:
            self._said_at = time.monotonic()
            self._screen.say(f"  {self._text}: {done} of {self._total}")


class Screen:
    """Where the demo writes to."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began_at = time.monotonic()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody watches, so that lines may be drawn over."""
        return self.console.is_terminal

    @property
    def elapsed_seconds(self) -> float:
        """Time since the demo began."""
        return time.monotonic() - self.began_at

    def say(self, text: str) -> None:
        """Write a line as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[None]:
        """Show what is being done, then what was done and how long it took."""
        began_at = time.monotonic()
        if self.is_terminal:
            with self.console.status(doing):
                yield
        else:
            yield
        self._done(done, began_at)

    @contextmanager
    def counted_step(self, doing: str, done: str, *, total: int) -> Iterator[Bar]:
        """Show how far a step has come, then what was done and how long it took."""
        began_at = time.monotonic()
        if self.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                yield Bar(self, doing, total, progress)
        else:
            yield Bar(self, doing, total, None)
        self._done(done, began_at)

    def _done(self, text: str, began_at: float) -> None:
        self.say(f"✓ {text} ({time.monotonic() - began_at:.1f} s)")
