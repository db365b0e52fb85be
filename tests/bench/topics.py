"""Reading topics as a read-committed consumer does: their ends over time, and all that is in them."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from confluent_kafka import Consumer, IsolationLevel, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.bench.errors import BenchError
from tests.bench.processes import cpu_seconds

REQUEST_SECONDS = 10.0
READ_SECONDS = 60.0
WATCH_SECONDS = 0.02
PARTITIONS = 6
CHANGELOG_CONFIG = {"cleanup.policy": "compact", "delete.retention.ms": str(7 * 24 * 3600 * 1000)}
QUIET_SECONDS = 0.5
PAGE_RECORDS = 10_000


def admin_client(bootstrap_servers: str) -> AdminClient:
    """Return an admin client that logs errors only."""
    return AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 3})


def create_changelog_topics(client: AdminClient, names: Iterable[str]) -> None:
    """Create compacted topics as the wire contract wants them, with PARTITIONS partitions each."""
    wanted = [NewTopic(name, PARTITIONS, 1, config=CHANGELOG_CONFIG) for name in names]
    for created in client.create_topics(wanted, request_timeout=REQUEST_SECONDS).values():
        created.result()


def committed_ends(client: AdminClient, topic: str) -> tuple[int, ...]:
    """Return where a read-committed consumer's reading of a topic ends now, for each partition."""
    wanted = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(PARTITIONS)}
    futures = client.list_offsets(
        wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=REQUEST_SECONDS
    )
    found = {place.partition: future.result().offset for place, future in futures.items()}
    return tuple(found[number] for number in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class Glance:
    """What was seen at a time (seconds since 1970): a topic's committed ends, a process's CPU seconds by then."""

    seen_at: float
    ends: tuple[int, ...]
    cpu_seconds: float


@dataclass
class TopicWatcher:
    """Looks at a topic and at the process that fills it, from which follows when all of it could first be read."""

    client: AdminClient
    topic: str
    pid: int
    glances: list[Glance] = field(default_factory=list)

    def watch(self, stop: threading.Event) -> None:
        """Look again and again until told to stop."""
        while not stop.wait(WATCH_SECONDS):
            seen = committed_ends(self.client, self.topic)
            self.glances.append(Glance(time.time(), seen, cpu_seconds(self.pid)))

    def wait_for_records(
        self, begins: Sequence[int], records: int, *, timeout_seconds: float, check: Callable[[], object]
    ) -> None:
        """Wait until at least so many offsets after `begins` are committed and nothing more comes for a while.

        `check` raises BenchError when the process that fills the topic cannot go on.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            check()
            if self.glances:
                newest = self.glances[-1]
                unchanged_since = next(glance.seen_at for glance in self.glances if glance.ends == newest.ends)
                quiet = newest.seen_at - unchanged_since >= QUIET_SECONDS
                if quiet and sum(newest.ends) - sum(begins) >= records:
                    return
            time.sleep(WATCH_SECONDS)
        raise BenchError(f"topic {self.topic} did not get {records} records within {timeout_seconds:g} s")

    def last_before(self, time_of: float) -> Glance:
        """Return the last look before a time (seconds since 1970)."""
        before = [glance for glance in self.glances if glance.seen_at <= time_of]
        if not before:
            raise BenchError(f"topic {self.topic}: the capture began before it was watched")
        return before[-1]

    def first_with(self, next_offsets: Sequence[int]) -> Glance:
        """Return the first look at which everything before `next_offsets` could be read."""
        for glance in self.glances:
            if all(end >= wanted for end, wanted in zip(glance.ends, next_offsets, strict=True)):
                return glance
        raise BenchError(f"topic {self.topic} was not seen to reach offsets {list(next_offsets)}")


@contextmanager
def watched_topic(client: AdminClient, topic: str, *, pid: int) -> Iterator[TopicWatcher]:
    """Watch a topic, and the process that fills it, from a thread while the block runs."""
    watcher = TopicWatcher(client, topic, pid)
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="topic-watcher") as threads:
        watching = threads.submit(watcher.watch, stop)
        try:
            yield watcher
        finally:
            stop.set()
    watching.result()


@contextmanager
def committed_reader(bootstrap_servers: str, begins: Mapping[str, Sequence[int]]) -> Iterator[Consumer]:
    """Open a read-committed consumer of whole topics; `begins` has each topic's first offset for each partition."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "viewkeeper-bench",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 10,
        }
    )
    places = [
        TopicPartition(topic, number, offset)
        for topic, offsets in begins.items()
        for number, offset in enumerate(offsets)
    ]
    try:
        reader.assign(places)
        yield reader
    finally:
        reader.close()


def read_all(bootstrap_servers: str, begins: Mapping[str, Sequence[int]]) -> Iterator[Message]:
    """Yield every committed record of topics that nobody writes to, in the order of each partition.

    Raises BenchError when the broker reports an error or the ends are not reached in time.
    """
    waiting = {(topic, number) for topic, offsets in begins.items() for number in range(len(offsets))}
    deadline = time.monotonic() + READ_SECONDS
    with committed_reader(bootstrap_servers, begins) as reader:
        while waiting:
            if time.monotonic() > deadline:
                raise BenchError(f"topics {', '.join(begins)} could not be read in {READ_SECONDS:g} s")
            for message in reader.consume(PAGE_RECORDS, timeout=0.1):
                if is_record(message):
                    yield message
                else:
                    waiting.discard((message.topic() or "", message.partition() or 0))


def is_record(message: Message) -> bool:
    """Return whether a message is a record, and not the news of a partition's end; raise BenchError for an error."""
    error = message.error()
    if error is None:
        return True
    if error.code() == KafkaError._PARTITION_EOF:
        return False
    raise BenchError(f"reading Kafka: {error.str()}")
