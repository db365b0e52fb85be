"""When a probe's changes were seen, in a row's stream and in the view's topic."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.working_pipeline import VIEW_TABLE

GIVE_UP_SECONDS = 30.0
_POLL_SECONDS = 0.2
_PLACE = re.compile(rb"probe (\d+) (\d+)")


def place_of(user_id: int, number: int) -> str:
    """Return what a probe's change of this number writes into a user's location."""
    return f"probe {user_id} {number}"


@dataclass
class Sightings:
    """The numbers of one user's changes, and when each was seen: some may be passed over for a later one."""

    seen: list[tuple[int, float]] = field(default_factory=list)

    def note(self, content: bytes) -> None:
        """Note the change that a row's text shows, if any."""
        if place := _PLACE.search(content):
            self.seen.append((int(place[2]), time.monotonic()))

    def wait_for(self, number: int) -> None:
        """Wait until a change was seen, or a later one; raise BenchError if it never is."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not self.seen or self.seen[-1][0] < number:
            if time.monotonic() > deadline:
                raise BenchError(f"change {number} was not seen within {GIVE_UP_SECONDS:g} s")
            time.sleep(0.01)

    def latencies(self, commits: Sequence[float]) -> list[float]:
        """Return the seconds from each commit until its change, or a later one, was seen."""
        self.wait_for(len(commits) - 1)
        seen, found = iter(self.seen), list[float]()
        newest, at = next(seen)
        for number, committed_at in enumerate(commits):
            while newest < number:
                newest, at = next(seen)
            found.append(at - committed_at)
        return found


@contextmanager
def stream_watched(api_url: str, user_id: int) -> Iterator[Sightings]:
    """Watch a user's stream until the block ends."""
    sightings, opened = Sightings(), threading.Event()
    timeout = httpx.Timeout(GIVE_UP_SECONDS)
    with httpx.Client(base_url=api_url, timeout=timeout) as client:

        def watch() -> None:
            try:
                with client.stream("GET", f"/users/{user_id}", headers={"Accept": "text/event-stream"}) as reply:
                    for line in reply.iter_lines():
                        opened.set()
                        sightings.note(line.encode())
            except (httpx.TransportError, httpx.StreamError):
                return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        if not opened.wait(GIVE_UP_SECONDS):
            raise BenchError(f"the stream of user {user_id} sent nothing within {GIVE_UP_SECONDS:g} s")
        yield sightings


@contextmanager
def topic_watched(pipeline: Pipeline, users: Sequence[int]) -> Iterator[dict[int, Sightings]]:
    """Watch the view's topic from its end on until the block ends; return what is seen of each of some users."""
    sightings = {user_id: Sightings() for user_id in users}
    over = threading.Event()
    topic = f"{pipeline.topic_prefix}.{VIEW_TABLE}"
    consumer = Consumer(
        {
            "bootstrap.servers": pipeline.kafka_bootstrap_servers,
            "group.id": "bench-probe",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 5,
        }
    )
    partitions = consumer.list_topics(topic, timeout=GIVE_UP_SECONDS).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_END) for number in partitions])

    def watch() -> None:
        while not over.is_set():
            message = consumer.poll(_POLL_SECONDS)
            if message is None:
                continue
            if error := message.error():
                raise KafkaException(error)
            value = message.value()
            if isinstance(value, bytes) and (place := _PLACE.search(value)):
                sightings[int(place[1])].note(value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sightings
    finally:
        over.set()
        thread.join()
        consumer.close()
