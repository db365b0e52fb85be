"""The local stack: real servers that start, keep their data, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from compose.local.errors import LocalSettingError, LocalStackError
from compose.local.folder import held
from compose.local.kafka import READY_TIMEOUT_SECONDS, KafkaBroker
from compose.local.kafka import kafka as run_kafka
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from compose.local.process import free_port
from compose.local.registry import registry as run_registry
from compose.local.stack import stack
from compose.local.unprivileged import needed_unprivileged
from tests.daemons import ROOT
from tests.waiting import wait_until

TOPIC = "kept"


def processes_of(folder: Path) -> list[psutil.Process]:
    """All living processes whose command line or working directory lies in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
        except psutil.Error:
            continue
        # pytest's own command line may name the folder's parents, never the folder.
        if any(str(folder) in word for word in words):
            found.append(process)
    return found


def write(url: str, text: str) -> None:
    with psycopg.connect(url) as session:
        session.execute("CREATE TABLE IF NOT EXISTS kept (line text)")
        session.execute("INSERT INTO kept VALUES (%s)", [text])


def lines(url: str) -> list[str]:
    with psycopg.connect(url) as session:
        return [line for (line,) in session.execute("SELECT line FROM kept ORDER BY line").fetchall()]


def is_busy(url: str) -> bool:
    with psycopg.connect(url) as session:
        found = session.execute(
            "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series(1%'"
        )
        return found.rowcount > 1  # one of them is this very question


def produce(bootstrap_servers: str, text: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    if TOPIC not in admin.list_topics(timeout=10).topics:
        for created in admin.create_topics([NewTopic(TOPIC, 1)]).values():
            created.result()
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    producer.produce(TOPIC, text)
    assert producer.flush(10) == 0


def consume(bootstrap_servers: str, records: int) -> list[str]:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "reader"})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    messages = consumer.consume(records, timeout=10)
    consumer.close()
    return [(message.value() or b"").decode() for message in messages]


@contextmanager
def viewkeeper_local(data_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command until its first line is out; yields the process and that line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "compose.local.cli", "up", "--data", str(data_dir), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_both_servers_keep_their_data_over_a_restart_and_leave_no_process(tmp_path: Path) -> None:
    cluster_ids: list[str | None] = []
    for start in ("first", "second"):
        with stack(tmp_path) as running:
            assert running.postgres_url
            assert running.kafka_bootstrap_servers
            assert processes_of(tmp_path)
            write(running.postgres_url, start)
            produce(running.kafka_bootstrap_servers, start)
            admin = AdminClient({"bootstrap.servers": running.kafka_bootstrap_servers})
            cluster_ids.append(admin.list_topics(timeout=10).cluster_id)
            if start == "second":
                assert lines(running.postgres_url) == ["first", "second"]
                assert consume(running.kafka_bootstrap_servers, 2) == ["first", "second"]
        assert processes_of(tmp_path) == []
    assert cluster_ids[0] == cluster_ids[1]


def test_a_second_copy_on_the_same_folder_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    in_use = f"in use by process {os.getpid()}"
    with pytest.raises(LocalSettingError, match=in_use), run_postgres(postgres.data_dir.parent):
        pytest.fail("a second Postgres started")
    with held(tmp_path), pytest.raises(LocalSettingError, match=in_use), run_kafka(tmp_path):
        pytest.fail("a second broker started")


def test_a_taken_port_is_named(tmp_path: Path, kafka: KafkaBroker) -> None:
    with pytest.raises(LocalSettingError, match=f"port {kafka.port}"), run_postgres(tmp_path, port=kafka.port):
        pytest.fail("Postgres started on the broker's port")


def test_a_wanted_port_is_taken(tmp_path: Path) -> None:
    port = free_port()
    with run_postgres(tmp_path, port=port) as server:
        assert server.url("postgres") == f"postgresql://postgres@127.0.0.1:{port}/postgres"
        write(server.url(), "reached")


def test_a_killed_postgres_starts_again_with_what_was_committed(tmp_path: Path) -> None:
    with run_postgres(tmp_path) as server, closing(psycopg.connect(server.url())) as session:
        write(server.url(), "committed")
        # A session so busy that it does not notice its server's end.
        session.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
        wait_until(lambda: is_busy(server.url()), what="a busy session")
        os.kill(server.pid, signal.SIGKILL)
    assert (server.data_dir / "postmaster.pid").exists()
    with run_postgres(tmp_path) as again:
        assert lines(again.url()) == ["committed"]
    assert processes_of(tmp_path) == []


def test_a_stale_pid_file_that_names_a_living_stranger_is_no_obstacle(tmp_path: Path) -> None:
    with run_postgres(tmp_path) as server:
        os.kill(server.pid, signal.SIGKILL)
    user = needed_unprivileged()
    # A process of Postgres's own user, for of another one's Postgres would think nothing.
    with subprocess.Popen([*(user.prefix if user else ()), "sleep", "300"]) as stranger:
        pid_path = server.data_dir / "postmaster.pid"
        rest = pid_path.read_text().partition("\n")[2]
        pid_path.write_text(f"{stranger.pid}\n{rest}")
        try:
            with run_postgres(tmp_path) as again:
                write(again.url(), "it runs")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_killed_broker_starts_again_with_what_was_acknowledged(tmp_path: Path) -> None:
    with run_kafka(tmp_path) as broker:
        produce(broker.bootstrap_servers, "acknowledged")
        os.kill(broker.pid, signal.SIGKILL)
    with run_kafka(tmp_path) as again:
        assert consume(again.bootstrap_servers, 1) == ["acknowledged"]


def test_a_killed_registry_starts_again_with_its_schemas_and_refuses_what_does_not_fit_them(tmp_path: Path) -> None:
    def schema(kind: str) -> Schema:
        return Schema(f'{{"type": "record", "name": "Row", "fields": [{{"name": "id", "type": "{kind}"}}]}}', "AVRO")

    with run_registry(tmp_path) as running, SchemaRegistryClient({"url": running.url}) as client:
        number = client.register_schema("rows", schema("long"))
        os.kill(running.pid, signal.SIGKILL)
    with run_registry(tmp_path) as again, SchemaRegistryClient({"url": again.url}) as client:
        assert client.lookup_schema("rows", schema("long")).schema_id == number
        with pytest.raises(SchemaRegistryError, match="Incompatible") as refused:
            client.register_schema("rows", schema("string"))
        assert refused.value.http_status_code == 409
    assert processes_of(tmp_path) == []


def test_a_broker_that_dies_at_start_is_reported_soon_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=another\n")
    began = time.monotonic()
    message = r"(?s)Kafka ended with code 1 while starting.*Stored node id 7"
    with pytest.raises(LocalStackError, match=message), run_kafka(tmp_path):
        pytest.fail("the broker started")
    assert time.monotonic() - began < READY_TIMEOUT_SECONDS / 2


def test_the_command_prints_settings_and_stops_all_at_ctrl_c(tmp_path: Path) -> None:
    with viewkeeper_local(tmp_path, "--json") as (process, line):
        settings = json.loads(line)
        assert sorted(settings) == [
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS",
            "VIEWKEEPER_SOURCE_URL",
            "VIEWKEEPER_VIEW_URL",
        ]
        write(settings["VIEWKEEPER_SOURCE_URL"], "reached")
        produce(settings["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"], "reached")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert processes_of(tmp_path) == []


def test_a_killed_command_takes_its_servers_along_and_can_be_started_again(tmp_path: Path) -> None:
    with viewkeeper_local(tmp_path, "--postgres") as (process, line):
        name, _, url = line.strip().partition("=")
        assert name == "VIEWKEEPER_SOURCE_URL"
        write(url, "before the kill")
        process.kill()
        process.wait()
        with viewkeeper_local(tmp_path, "--postgres") as (again, line_again):
            assert lines(line_again.strip().partition("=")[2]) == ["before the kill"]
            again.kill()
            again.wait()
    wait_until(lambda: processes_of(tmp_path) == [], what="the end of servers whose starter was killed")


def test_the_command_runs_a_registry_alone_where_it_alone_is_named(tmp_path: Path) -> None:
    with viewkeeper_local(tmp_path, "--registry") as (process, line):
        name, _, url = line.strip().partition("=")
        assert name == "VIEWKEEPER_SCHEMA_REGISTRY_URL"
        with SchemaRegistryClient({"url": url}) as client:
            assert client.get_subjects() == []
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert processes_of(tmp_path) == []


def test_a_command_on_a_folder_in_use_ends_with_code_2(postgres: PostgresServer) -> None:
    folder = postgres.data_dir.parent
    # The command keeps Postgres in a folder `postgres` below its data folder.
    (folder.parent / "in-use").mkdir(exist_ok=True)
    link = folder.parent / "in-use" / "postgres"
    link.symlink_to(folder)
    with viewkeeper_local(link.parent, "--postgres") as (process, _):
        assert process.wait(120) == 2
        assert process.stderr is not None
        assert f"in use by process {os.getpid()}" in process.stderr.read()


def test_a_server_that_ends_by_itself_ends_the_command(tmp_path: Path) -> None:
    with viewkeeper_local(tmp_path, "--postgres") as (process, _):
        pid = int((tmp_path / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        assert process.wait(120) == 1
        assert process.stderr is not None
        assert "Postgres ended by itself" in process.stderr.read()
