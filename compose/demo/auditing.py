"""Repeated audits of the view while the demo runs, and the last one."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from compose.demo.servers import Servers
from projector.audit import audit_view
from runtime.errors import ViewkeeperError
from runtime.stop import Stop
from views.user_information import user_information

EVERY_SECONDS = 5.0
WAIT_SECONDS = 30.0
"""How long an audit waits for the view to reflect what it has read in the source."""
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found; rows that changed too fast to be judged are undecided."""

    compared: int
    differ: int
    undecided: int = 0
    examples: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether rows were compared and none differs."""
        return self.compared > 0 and self.differ == 0

    @property
    def words(self) -> str:
        """The verdict as a sentence."""
        undecided = f", {self.undecided} undecided" if self.undecided else ""
        return f"view = SQL over the source, {self.compared} rows compared, {self.differ} differ{undecided}"


def audit(servers: Servers) -> Verdict:
    """Compare the view with SQL over the source; raises AuditError when the view does not get as far as the source."""
    result = audit_view(
        user_information, source_url=servers.source_url, view_url=servers.view_url, wait_seconds=WAIT_SECONDS
    )
    examples = (f"user {example.key}: {', '.join(example.fields)}" for example in result.examples[:EXAMPLES])
    return Verdict(result.compared_rows, result.differing_rows, result.undecided_rows, tuple(examples))


class AuditLoop:
    """Audits again and again from a thread of its own, for as long as the context lasts."""

    def __init__(self, audit: Callable[[], Verdict]) -> None:
        self._audit = audit
        self._stop = Stop()
        self._latest: tuple[Verdict, float] | None = None
        # An audit that waits for a pipeline that has died must not hold up the demo's end.
        self._thread = threading.Thread(target=self._run, name="audits", daemon=True)
        self._error: ViewkeeperError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.request()

    def latest(self) -> tuple[Verdict | None, float | None]:
        """Return the latest verdict and its age in seconds; raises what the latest audit raised."""
        if self._error:
            raise self._error
        if self._latest is None:
            return None, None
        verdict, at = self._latest
        return verdict, time.monotonic() - at

    def stop(self) -> None:
        """Stop auditing, and wait for the audit in hand."""
        self._stop.request()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.requested:
            try:
                self._latest = (self._audit(), time.monotonic())
            except ViewkeeperError as error:
                self._error = error
                return
            self._stop.wait(EVERY_SECONDS)
