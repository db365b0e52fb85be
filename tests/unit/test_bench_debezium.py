"""The comparison with Debezium: its figures' arithmetic, how its rows are read, how its failures are told."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from compose.local.errors import LocalStackError
from tests.bench.capture import main
from tests.bench.catching_up import Effort
from tests.bench.debezium_phases import FORM, phase_figures
from tests.debezium import run_worker
from tests.waiting import wait_until

COLUMNS = '"row_id":1,"user_id":7,"text":"a"'
OURS = f'{{{COLUMNS},"created_at":"2026-01-01T00:00:00.120000Z","updated_at":"2026-01-02T00:00:00.000000Z"}}'.encode()
THEIRS = f'{{{COLUMNS},"created_at":"2026-01-01T00:00:00.12Z","updated_at":"2026-01-02T00:00:00Z"}}'.encode()


def effort(rows_per_second: float, cpu: float, rss: int = 0) -> Effort:
    return Effort(rows_per_second=rows_per_second, cpu_seconds_per_million_rows=cpu, peak_rss_bytes=rss)


def test_ratios_are_ours_to_debeziums_and_that_of_cpu_is_of_the_worse_phase() -> None:
    ours = [(effort(100, 3), effort(60, 4))]
    theirs = [(effort(10, 60, 500), effort(12, 100, 900))]

    assert phase_figures(ours, theirs) == {
        "snapshot_ratio_to_debezium": 10,
        "catchup_ratio_to_debezium": 5,
        "cpu_ratio_to_debezium": 0.05,
        "debezium_snapshot_rows_per_second": 10,
        "debezium_catchup_rows_per_second": 12,
        "debezium_cpu_seconds_per_million_rows": 100,
        "debezium_peak_rss_mb": 0.0009,
    }


def test_a_row_of_debeziums_means_what_ours_does() -> None:
    assert FORM.meaning(THEIRS) == FORM.meaning(OURS)


@pytest.mark.parametrize(
    ("part", "changed"), [(b'"user_id":7', b'"user_id":8'), (b".12Z", b".13Z"), (b'"text":"a"', b'"text":"b"')]
)
def test_a_row_that_is_not_the_same_is_told_from_it(part: bytes, changed: bytes) -> None:
    assert FORM.meaning(THEIRS.replace(part, changed)) != FORM.meaning(OURS)


def test_a_task_that_failed_inside_a_living_worker_is_an_error_with_the_logs_end(tmp_path: Path) -> None:
    failing = "import signal; print('2026 [task-thread] ERROR it\\nthrew', flush=True); signal.pause()"

    with (
        run_worker([sys.executable, "-c", failing], tmp_path / "connect.log") as running,
        pytest.raises(LocalStackError, match=r"(?s)Debezium failed.*threw"),
    ):
        wait_until(running.check, timeout_seconds=10.0, what="the failure")


def test_a_worker_that_ended_is_an_error_with_the_logs_end(tmp_path: Path) -> None:
    with (
        run_worker([sys.executable, "-c", "print('no such class')"], tmp_path / "connect.log") as running,
        pytest.raises(LocalStackError, match=r"(?s)Debezium failed.*no such class"),
    ):
        wait_until(running.check, timeout_seconds=10.0, what="the failure")


def test_a_peer_that_is_none_is_refused_by_name() -> None:
    result = CliRunner().invoke(main, env={"PEER": "maxwell"})

    assert result.exit_code == 2
    assert "PEER" in result.output
    assert "'maxwell' is not 'debezium'" in result.output
