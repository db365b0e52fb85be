"""`viewkeeper-projector rebuild` as a person uses it: it shows what it found and asks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import ROOT
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps
from tests.integration.rebuild_steps import execute, some_users, states

pytestmark = pytest.mark.newest_postgres


def test_no_leaves_the_version_beside_and_yes_swaps(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str], tmp_path: Path
) -> None:
    some_users(changelog)
    steps.catch_up()
    views = tmp_path / "views.py"
    views.write_text("from tests.integration.rebuild_steps import changed\n")

    def rebuild(answer: str) -> subprocess.CompletedProcess[str]:
        settings = {**settings_env, "VIEWKEEPER_VIEWS": str(views), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "projector.cli", "rebuild", "user_information"]
        return subprocess.run(
            command, cwd=ROOT, env=settings, input=answer, capture_output=True, text=True, timeout=60, check=False
        )

    no = rebuild("n\n")
    assert no.returncode == 0, no.stderr
    for words in (
        "columns that go, for whoever reads them: location",
        "columns that come: texts",
        "columns of another type: like_count",
        "4 rows compared: 0 differ, 0 only in the old version, 0 only in the new one",
        "version 2 is ready",
    ):
        assert words in no.stdout
    assert "filling version 2: " in no.stderr
    assert "no viewkeeper-projector run keeps this view" in no.stderr
    assert "viewkeeper-projector drop user_information --version 2" in no.stderr
    assert states(view_url) == {1: "active", 2: "ready"}
    nobody = rebuild("")
    assert nobody.returncode == 0, nobody.stderr
    assert "Nobody answers on standard input; --when ready swaps without a question." in nobody.stderr
    assert states(view_url) == {1: "active", 2: "ready"}
    execute(view_url, "UPDATE projector.user_information_v2 SET tweet_count = 7 WHERE user_id = 1")
    yes = rebuild("y\n")
    assert yes.returncode == 0, yes.stderr
    assert "  tweet_count: 1 rows\n  key 1: tweet_count '15' → '7'\n" in yes.stdout
    assert "version 2 is active, its name was locked for" in yes.stdout
    assert states(view_url) == {1: "previous", 2: "active"}
