"""The capture killed, paused and cut off at each step of its work: nothing is lost and nothing is invented."""

import json
import os
import signal

import psutil
import pytest
from confluent_kafka import Producer

from compose.local.kafka import KafkaBroker
from compose.local.kafka import kafka as run_kafka
from tests.daemons import Daemon, Daemons
from tests.torture_source import CAPTURE, CapturedSource
from tests.torture_steps import Kind, Step
from tests.waiting import wait_until

SMALL_PAGES = {"VIEWKEEPER_CDC_CHUNK_ROWS": "100"}
TAKE_OVER_SECONDS = 10.0
TABLE = "public.counted"


@pytest.fixture
def source(source_url: str, kafka: KafkaBroker, topic_prefix: str) -> CapturedSource:
    """Give a source with one table, attached, of 500 rows."""
    return _counted(CapturedSource(source_url, kafka.bootstrap_servers, topic_prefix))


def _counted(source: CapturedSource) -> CapturedSource:
    source.run(
        "CREATE TABLE counted (id bigint PRIMARY KEY, version bigint NOT NULL)",
        "INSERT INTO counted SELECT i, 0 FROM generate_series(1, 500) i",
    )
    source.attach(TABLE)
    return source


def _hit(
    daemon: Daemons, kind: Kind, number: int, step: Step, how: signal.Signals, *words: str, **settings: str
) -> Daemon:
    """Start a capture that sends itself a signal at a step of the so-many-th unit of a kind."""
    return daemon("tests.torture_steps", kind, str(number), step, how.name, *words, "run", settings=settings)


@pytest.mark.newest_postgres
@pytest.mark.parametrize("step", Step)
def test_killed_at_a_step_of_any_unit_it_goes_on_from_what_is_committed(
    step: Step, source: CapturedSource, daemon: Daemons
) -> None:
    changes = {
        Kind.CHUNK: "UPDATE counted SET version = 1 WHERE id % 50 = 0",
        Kind.ROUND: "UPDATE counted SET version = 2 WHERE id % 50 = 1; DELETE FROM counted WHERE id % 50 = 2",
        Kind.DRAIN: "UPDATE counted SET version = 3; DELETE FROM counted WHERE id % 2 = 0",
        Kind.SWEEP: "BEGIN; TRUNCATE counted; INSERT INTO counted VALUES (1, 4), (1000, 4); COMMIT",
    }
    for kind, change in changes.items():
        source.run(*change.split("; ") if kind is not Kind.SWEEP else [change])
        killed = _hit(daemon, kind, 1 if kind is Kind.ROUND else 3, step, signal.SIGKILL, **SMALL_PAGES)
        assert killed.wait(30) == -signal.SIGKILL
        # It is known to be dead: its lease need not run out.
        source.run("UPDATE cdc.capture SET leader = NULL")
        capture = daemon("cdc", "run", settings=SMALL_PAGES)
        source.wait_published([TABLE])
        source.assert_topics_equal_tables()
        assert capture.terminate() == 0


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("step", "words"),
    [(Step.READ, ()), (Step.READ, ("heedless",)), (Step.PRODUCED, ()), (Step.DELIVERED, ())],
    ids=["read", "read_heedless", "produced", "delivered"],
)
def test_paused_past_its_transaction_and_its_lease_it_publishes_nothing_more(
    step: Step, words: tuple[str, ...], source: CapturedSource, daemon: Daemons
) -> None:
    """A heedless one does not notice that its lease is lost: its producer is fenced all the same."""
    paused = _hit(daemon, Kind.ROUND, 1, step, signal.SIGSTOP, *words, "brief")
    source.wait_published([TABLE])
    standby = daemon("cdc", "run")
    standby.wait_logged("standby")
    source.run("UPDATE counted SET version = 1 WHERE id = 1")
    wait_until(lambda: psutil.Process(paused.pid).status() == psutil.STATUS_STOPPED, what="the pause")
    standby.wait_logged("leading", timeout_seconds=TAKE_OVER_SECONDS)
    source.run("UPDATE counted SET version = 2 WHERE id = 1")
    source.wait_published([TABLE])
    paused.signal(signal.SIGCONT)
    paused.wait_logged("standby")
    source.run("UPDATE counted SET version = 3 WHERE id = 1")
    source.wait_published([TABLE])
    source.assert_topics_equal_tables()
    versions = [
        json.loads(record.value() or b"")["version"]
        for record in source.topic(TABLE).records
        if _is_first(record.key())
    ]
    assert versions == sorted(set(versions))
    assert standby.is_running()
    assert not standby.logged("retrying")


def _is_first(key: object) -> bool:
    return key == b'{"id":1}'


@pytest.mark.newest_postgres
def test_a_fatal_error_of_the_producer_ends_in_a_fresh_one(source: CapturedSource, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    source.wait_published([TABLE])
    for version in range(1, 4):
        same_id = {"bootstrap.servers": source.bootstrap_servers, "transactional.id": f"{source.prefix}.{CAPTURE}"}
        Producer(same_id).init_transactions()
        source.run(f"UPDATE counted SET version = {version} WHERE id % 3 = {version % 3}")
        source.wait_published([TABLE])
        assert len(capture.logged("retrying")) == version
        # In our log, with what librdkafka says of it.
        assert "FATAL" in capture.logged("kafka_client")[-1]["reason"]
        source.assert_topics_equal_tables()
    assert capture.is_running()
    assert "%0|" not in capture.log_text()


@pytest.mark.newest_postgres
def test_the_broker_killed_in_the_middle_of_a_transaction(
    source_url: str, topic_prefix: str, daemon: Daemons, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("own-kafka")
    with run_kafka(folder) as broker:
        source = _counted(CapturedSource(source_url, broker.bootstrap_servers, topic_prefix))
        kafka_is = {"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
        capture = _hit(daemon, Kind.ROUND, 2, Step.PRODUCED, signal.SIGSTOP, **kafka_is)
        source.wait_published([TABLE])
        source.run("UPDATE counted SET version = 1 WHERE id = 1")
        source.wait_published([TABLE])
        source.run("UPDATE counted SET version = 2 WHERE id < 50", "DELETE FROM counted WHERE id = 50")
        wait_until(lambda: psutil.Process(capture.pid).status() == psutil.STATUS_STOPPED, what="the pause")
        os.kill(broker.pid, signal.SIGKILL)
        capture.signal(signal.SIGCONT)
        source.run("DELETE FROM counted WHERE id = 51", "INSERT INTO counted VALUES (501, 3)")
    with run_kafka(folder, port=broker.port):
        source.wait_published([TABLE])
        source.assert_topics_equal_tables()
        os.kill(capture.pid, 0)
        assert capture.is_running()
