"""A view that is declared no more can be removed, and only then, and by nobody's mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemons import ROOT, Daemons
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps
from tests.integration.rebuild_steps import execute, rows, some_users

pytestmark = pytest.mark.newest_postgres

Drop = Callable[..., tuple[int, str]]


@pytest.fixture
def drop(daemon: Daemons, tmp_path: Path) -> Drop:
    """Give `drop user_information` where another view alone is declared: its exit code and what it says."""
    declared = (ROOT / "views/user_information.py").read_text().replace('name="user_information"', 'name="another"')
    (tmp_path / "another.py").write_text(declared)

    def dropped(*arguments: str) -> tuple[int, str]:
        settings = {"VIEWKEEPER_VIEWS": str(tmp_path / "another.py")}
        command = daemon("projector", "drop", "user_information", *arguments, settings=settings)
        return command.wait(30), command.log_text()

    return dropped


def test_a_view_that_is_declared_no_more_goes_with_its_active_version(
    steps: Steps, changelog: Changelog, view_url: str, drop: Drop
) -> None:
    some_users(changelog)
    steps.catch_up()
    code, said = drop()
    assert code != 0
    assert "has versions 1 (active): choose one with --version" in said
    execute(view_url, "CREATE VIEW analysis AS SELECT user_id FROM user_information")
    code, said = drop("--version", "1")
    assert code != 0
    assert "on version 1 of view 'user_information' depend: view analysis" in said
    assert rows(view_url, "SELECT count(*) FROM user_information") == [(4,)]
    execute(view_url, "DROP VIEW analysis")
    assert drop("--version", "1")[0] == 0
    left = "SELECT relname FROM pg_class WHERE relname ~ '^user_information|_v1$'"
    assert rows(view_url, left) == []
    assert rows(view_url, "SELECT * FROM projector.partition_offset WHERE view = 'user_information'") == []
    assert rows(view_url, "SELECT * FROM viewkeeper_as_of WHERE view = 'user_information'") == []
    code, said = drop("--version", "1")
    assert code != 0
    assert "there is no view 'user_information', neither in VIEWKEEPER_VIEWS nor in the database" in said


def test_a_view_that_somebody_keeps_is_not_dropped_by_who_does_not_know_it(
    changelog: Changelog, view_url: str, daemon: Daemons, drop: Drop
) -> None:
    some_users(changelog)
    run = daemon("projector", "run")
    run.wait_logged("assigned")
    code, said = drop("--version", "1")
    assert code != 0
    assert "a viewkeeper-projector run keeps view 'user_information'" in said
    assert rows(view_url, "SELECT state FROM projector.view_version WHERE view = 'user_information'") == [("active",)]
