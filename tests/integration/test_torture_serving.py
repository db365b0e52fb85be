"""Serving while its parts are killed under load, and a view is swapped: no wrong or older reply, and it heals."""

import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tests.worded_view
from tests.torture import Torture
from tests.torture_readers import Reply, Traffic, traffic
from tests.torture_serving import VIEW, Pipeline, pipeline, wait_for
from tests.waiting import wait_until

# Slow, and none of the versions' business.
pytestmark = pytest.mark.newest_postgres

ANSWER_SECONDS = 10.0
"""Once what was killed runs again, the API answers by then."""
FRESH_SECONDS = 60.0
"""By then, on a machine of any load, replies reflect what was committed since."""
LEAST_REPLIES = 500
MOST_LATE = 3
"""So many replies may say that the store took more than its time: the machine may stand still for a second."""


@pytest.mark.torture
def test_no_reply_is_wrong_or_older_and_the_topic_equals_the_view_whatever_is_killed(
    tmp_path: Path, torture: Torture
) -> None:
    with pipeline(tmp_path) as parts:
        port = parts.running["api"].health_port
        # One that has just started has no connection to the store yet.
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, what="the API to be ready")
        with traffic(parts.source.url, port, torture.random) as seen:
            away = Away(seen)
            _settled(parts, seen)
            for _ in range(torture.rounds):
                for trouble in torture.random.sample(TROUBLES, len(TROUBLES)):
                    trouble(parts, seen, away)
                    _settled(parts, seen)
    assert seen.wrong() == []
    replies = [reply for reader in seen.readers for reply in reader.replies]
    assert {reply.status for reply in replies} <= {200, 404, 503}
    failed = [reply for reply in replies if reply.status == 503]
    assert [reply for reply in failed if reply.retry_after is None] == []
    # Nor has one that was started again.
    unexpected = away.uncovered({"store", "api"}, [reply.at for reply in failed])
    assert [reply for reply in failed if reply.at in unexpected and not _is_late(reply)] == []
    assert len(unexpected) <= MOST_LATE * torture.rounds
    assert away.uncovered({"api"}, [at for reader in seen.readers for at in reader.refused]) == []
    assert len(replies) - len(failed) > LEAST_REPLIES * torture.rounds


def _is_late(reply: Reply) -> bool:
    return "the store did not answer" in (reply.detail or "")


class Away:
    """When the store, or the API's process, was away, until it had its time to heal."""

    def __init__(self, seen: Traffic) -> None:
        self._seen = seen
        self._times: list[tuple[str, float, float]] = []

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Note that something is away until the block's end; then the API has to answer in time."""
        began = time.monotonic()
        yield
        back = time.monotonic()

        def is_answered() -> bool:
            newest = [reader.replies[-50:] for reader in self._seen.readers]
            return all(any(reply.at > back and reply.status in (200, 404) for reply in replies) for replies in newest)

        wait_until(is_answered, timeout_seconds=ANSWER_SECONDS, what=f"the API to answer, since {what} is back")
        self._times.append((what, began, time.monotonic()))

    def uncovered(self, what: Set[str], times: Sequence[float]) -> list[float]:
        """Return those of some times at which none of these was away."""
        known = [(began, ended) for name, began, ended in self._times if name in what]
        return [at for at in times if not any(began <= at <= ended for began, ended in known)]


def _kill_postgres(parts: Pipeline, _seen: Traffic, away: Away) -> None:
    with away.of("store"):
        parts.kill_server("postgres")
        parts.start_postgres()


def _kill_kafka(parts: Pipeline, _seen: Traffic, _away: Away) -> None:
    parts.kill_server("kafka")
    parts.start_kafka()


def _kill_projector(parts: Pipeline, _seen: Traffic, _away: Away) -> None:
    parts.running["projector"].kill()
    parts.start("projector")


def _kill_captures(parts: Pipeline, _seen: Traffic, _away: Away) -> None:
    for name in ("cdc", "cdc-view"):
        parts.running[name].kill()
        parts.start(name)


def _kill_api(parts: Pipeline, seen: Traffic, away: Away) -> None:
    with away.of("api"):
        parts.running["api"].kill()
        seen.new_process()
        parts.start("api").wait_logged("api_listening")


def _rebuild(parts: Pipeline, seen: Traffic, _away: Away) -> None:
    worded = {"VIEWKEEPER_VIEWS": tests.worded_view.__file__}
    parts.run("projector", "rebuild", "user_information", "--when", "ready", settings=worded)
    _settled(parts, seen)
    parts.run("projector", "rollback", "user_information")
    _settled(parts, seen)
    parts.run("projector", "drop", "user_information")


Step = Callable[[Pipeline, Traffic, Away], None]
TROUBLES: list[Step] = [_kill_postgres, _kill_kafka, _kill_projector, _kill_captures, _kill_api, _rebuild]


def _settled(parts: Pipeline, seen: Traffic) -> None:
    """See that replies come to reflect this moment, and that the view's topic equals the view while nobody writes."""
    with seen.rest():
        until = parts.source.now()

        def is_fresh() -> bool:
            newest = [reader.replies[-1].as_of for reader in seen.readers if reader.replies]
            return len(newest) == len(seen.readers) and all(as_of is not None and as_of >= until for as_of in newest)

        wait_for(is_fresh, parts, timeout_seconds=FRESH_SECONDS, what=f"replies as of {until}")

        def is_published() -> bool:
            cursor = parts.view.cursor()
            entry = cursor.tables.get(VIEW) if cursor else None
            return entry is not None and entry.watermark is not None and entry.watermark.time >= until

        wait_for(is_published, parts, timeout_seconds=FRESH_SECONDS, what=f"the view's topic as of {until}")
        parts.view.assert_topics_equal_tables()
        parts.source.assert_topics_equal_tables()
