"""Which older Postgres the tests take, and what is said where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compose.local.errors import LocalSettingError
from compose.local.postgres import major_version
from tests.browser import SETTING
from tests.daemons import ROOT
from tests.servers import OLDER_SETTING, OLDER_VERSIONS, newest_server, older_binaries, older_server, server_id

COMMANDS = "tests/integration/test_cdc_commands.py"


@pytest.fixture(autouse=True)
def older(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the older server of this run; what named it is forgotten."""
    found = older_server()
    monkeypatch.delenv(OLDER_SETTING, raising=False)
    return found


def install(folder: Path, *versions: int) -> None:
    for version in versions:
        (folder / str(version) / "bin").mkdir(parents=True)
        (folder / str(version) / "bin" / "initdb").touch()


def test_of_what_is_installed_the_oldest_that_is_promised_is_taken(tmp_path: Path) -> None:
    assert older_binaries(tmp_path) is None
    install(tmp_path, 14, 18)
    assert older_binaries(tmp_path) is None
    install(tmp_path, 17, 16)
    assert older_binaries(tmp_path) == tmp_path / "16" / "bin"
    install(tmp_path, 15)
    assert older_binaries(tmp_path) == tmp_path / "15" / "bin"


def test_a_client_alone_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "15" / "bin").mkdir(parents=True)
    (tmp_path / "15" / "bin" / "psql").touch()
    assert older_binaries(tmp_path) is None


def test_the_setting_comes_first(older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, 15)
    monkeypatch.setenv(OLDER_SETTING, str(older))
    assert older_binaries(tmp_path) == older


def test_a_setting_without_a_server_or_of_another_version_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OLDER_SETTING, str(tmp_path))
    with pytest.raises(LocalSettingError, match=f"{OLDER_SETTING} is wrong: there is no Postgres server in the folder"):
        older_binaries()
    monkeypatch.setenv(OLDER_SETTING, str(newest_server()))
    with pytest.raises(LocalSettingError, match=rf"{OLDER_SETTING} is wrong: .* is Postgres 18, not one of 15, 16, 17"):
        older_binaries()


def test_ids_show_the_version(older: Path) -> None:
    assert server_id(newest_server()) == "pg18"
    assert server_id(older) in {f"pg{version}" for version in OLDER_VERSIONS}


def test_another_programs_version_is_no_postgres(tmp_path: Path) -> None:
    initdb = tmp_path / "initdb"
    initdb.write_text("#!/bin/sh\necho initdb 15\n")
    initdb.chmod(0o755)
    with pytest.raises(LocalSettingError, match="its version is 'initdb 15'"):
        major_version(tmp_path)


@pytest.mark.parametrize("command", [("tests.needs",), ("pytest", COMMANDS, "-q")])
def test_a_wrong_server_ends_the_tests_before_any_runs(tmp_path: Path, command: tuple[str, ...]) -> None:
    environment = {**os.environ, OLDER_SETTING: str(tmp_path)}
    refused = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert f"error: {OLDER_SETTING} is wrong" in refused.stderr + refused.stdout
    assert "passed" not in refused.stdout


def test_a_wrong_browser_ends_the_tests_before_any_runs(tmp_path: Path) -> None:
    environment = {**os.environ, SETTING: str(tmp_path / "chromium")}
    refused = subprocess.run(
        [sys.executable, "-m", "tests.needs"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert f"error: {SETTING} is wrong: {tmp_path}/chromium is no program that can be run" in refused.stderr


def test_what_reads_a_source_runs_on_both_servers_and_each_server_is_started_once() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/integration", "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    on_newest, on_older = f"[{server_id(newest_server())}", f"[{server_id(older_server())}"
    both = f"{COMMANDS}::test_attach_is_idempotent_and_detach_takes_it_back"
    assert [line for line in listed if line.startswith(both)] == [f"{both}{on_newest}]", f"{both}{on_older}]"]
    marked = f"{COMMANDS}::test_an_unreachable_broker_is_waited_for"
    assert [line for line in listed if line.startswith(marked)] == [f"{marked}{on_newest}]"]
    assert not [line for line in listed if "/test_projector" in line and on_older in line]
    first_on_older = next(number for number, line in enumerate(listed) if on_older in line)
    assert not [line for line in listed[first_on_older:] if on_newest in line]
