"""docs/your-own-tables.md, done as it is written."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from compose.local.postgres import PostgresServer
from tests.daemons import ROOT, Daemon, Daemons
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres

PAGE = ROOT / "docs" / "your-own-tables.md"
EXAMPLE_ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture
def shop_env(postgres: PostgresServer, settings_env: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give the settings of a database of one's own, with nothing in it, as source and view database."""
    name = f"shop_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = postgres.url(name)
    yield {
        **settings_env,
        "VIEWKEEPER_SOURCE_URL": url,
        "VIEWKEEPER_VIEW_URL": url,
        "VIEWKEEPER_VIEWS": str(tmp_path / "shop.py"),
    }
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _blocks(page: str) -> dict[str, list[str]]:
    """Return the page's blocks of code, by language."""
    found: dict[str, list[str]] = {}
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        found.setdefault(language, []).append(text)
    return found


def _shell(script: str, env: dict[str, str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**env, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _answer(url: str) -> str | None:
    """Return what the API says, as curl prints it; None while it has no such row."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own address
            return str(response.read().decode())
    except urllib.error.HTTPError:
        return None


def test_the_page_leads_to_an_answer(shop_env: dict[str, str], daemon: Daemons, tmp_path: Path) -> None:
    blocks = _blocks(PAGE.read_text())
    (tables,), (view,), (answer,) = blocks["sql"], blocks["python"], blocks["json"]
    named, preview, set_up, run, ask, check = blocks["sh"]
    assert set(re.findall(r"VIEWKEEPER_\w+", named)) <= shop_env.keys()
    with psycopg.connect(shop_env["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute(tables.encode())
    (tmp_path / "shop.py").write_text(view)
    assert "Ann" in _shell(preview, shop_env)
    assert "public.orders: attached" in _shell(set_up, shop_env)
    daemons: dict[str, Daemon] = {}
    for part, command in re.findall(r"^viewkeeper-(\w+) (\w+)$", run, re.MULTILINE):
        daemons[part] = daemon(part, command, settings=shop_env)
    (path,) = re.findall(rf"^curl {EXAMPLE_ADDRESS}(\S+)$", ask, re.MULTILINE)
    url = f"http://127.0.0.1:{daemons['api'].health_port}{path}"
    wait_until(lambda: _answer(url) == answer.strip(), what=f"the answer {answer}")
    assert "0 differ" in _shell(check, shop_env)
    with psycopg.connect(shop_env["VIEWKEEPER_SOURCE_URL"], autocommit=True) as session:
        session.execute("UPDATE orders SET status = 'paid' WHERE order_id = 2")
    changed = json.dumps({**json.loads(answer), "spent": "44.8"}, separators=(",", ":"))
    wait_until(lambda: _answer(url) == changed, what=changed)
