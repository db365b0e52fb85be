"""The description at /openapi.json, held against what is served by a tool that knows nothing else of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from projector.loading import load_views
from tests.daemons import Daemons
from tests.integration.test_api import ZCOX, api, client_of, execute

__all__ = ["api"]

EXAMPLES = 40
# Every time that a request can ask for is reflected, so that no reply waits.
END_OF_TIME = "9999-12-31 23:59:59.999999+00"


@pytest.mark.parametrize("views", ["user_information", "shop"])
def test_what_is_served_is_as_described(api: Daemons, view_url: str, views: str, tmp_path: Path) -> None:
    execute(view_url, ZCOX)
    for view in load_views("views.shop"):
        columns = ", ".join(f"{column.name} {column.type}" for column in (*view.row_columns, *view.measures))
        zeros = ", ".join(f"ALTER {measure.name} SET DEFAULT 0" for measure in view.measures)
        execute(view_url, f"CREATE TABLE {view.name} ({columns}); ALTER TABLE {view.name} {zeros}")
        execute(view_url, f"INSERT INTO {view.name} ({', '.join(view.key_names)}) VALUES ('1')")
        execute(view_url, "INSERT INTO projector.view_version VALUES (%s, 1, '{}', 'active')", view.name)
        execute(view_url, "INSERT INTO projector.as_of (view, version) VALUES (%s, 1)", view.name)
    execute(view_url, "UPDATE projector.as_of SET as_of = %s", END_OF_TIME)
    with client_of(api("api", "run", settings={"VIEWKEEPER_VIEWS": f"views.{views}"})) as client:
        tested = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"), "run", str(client.base_url.join("/openapi.json")),
                "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "7", "--continue-on-failure",
                "--phases", "examples,coverage,fuzzing",
            ],
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": "default"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    assert tested.returncode == 0, tested.stdout[-20_000:]


def test_the_row_is_described_field_by_field(api: Daemons, view_url: str) -> None:
    execute(view_url, ZCOX)
    with client_of(api("api", "run")) as client:
        schema = client.get("/openapi.json").json()
        row = client.get("/users/12542832").json()
    described = schema["components"]["schemas"]["user_information"]["properties"]
    assert list(described) == list(row)
    kinds = {"string": str, "integer": int}
    for name, value in row.items():
        types = described[name]["type"]
        assert isinstance(value, kinds[types if isinstance(types, str) else types[0]])
