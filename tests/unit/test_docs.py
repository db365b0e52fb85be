"""What the documents name must be there: settings, commands, targets, files."""

import re
from pathlib import Path

import click
import pytest

import api.cli
import cdc.cli
import compose.local.cli
import projector.cli
from projector.loading import load_views
from runtime.settings import ApiSettings, AuditSettings, CdcSettings, ProjectorSettings, variable

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md") for path in ROOT.glob(pattern))
COMMANDS = {
    "viewkeeper-cdc": cdc.cli.commands,
    "viewkeeper-projector": projector.cli.commands,
    "viewkeeper-api": api.cli.commands,
    "viewkeeper-local": compose.local.cli.commands,
}
PARTS = (CdcSettings, ProjectorSettings, AuditSettings, ApiSettings)
SETTINGS = {
    variable(name)
    for kind in (CdcSettings, ProjectorSettings, AuditSettings, ApiSettings)
    for name in kind.model_fields
}


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> Path:
    return ROOT / str(request.param)


def test_every_setting_named_is_one(document: Path) -> None:
    named = set(re.findall(r"VIEWKEEPER_[A-Z_]+[A-Z]", document.read_text()))
    unknown = {name for name in named if name.removesuffix("_FILE") not in SETTINGS and name != "VIEWKEEPER_KAFKA"}
    assert unknown == set()


def test_every_command_named_is_one(document: Path) -> None:
    for program, command in re.findall(r"(viewkeeper-[a-z]+) ([a-z]+(?:-[a-z]+)*)", document.read_text()):
        group = COMMANDS[program]
        assert isinstance(group, click.Group)
        assert command in group.commands, f"{program} {command}"


def test_every_make_target_named_is_one(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    (benchmarks,) = re.findall(r"^bench-%:.*## measure ([a-z, ]+);", makefile, re.MULTILINE)
    targets |= {f"bench-{name}" for name in benchmarks.split(", ") if (ROOT / f"tests/bench/{name}.py").exists()}
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", document.read_text(), re.MULTILINE))
    assert named <= targets


def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_readme_names_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    named = set(re.findall(r"^\| \[`([a-z]+)/`\]", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == packages


def test_views_of_the_documents_can_be_loaded(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/views.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "documented.py"
    path.write_text("\n".join(blocks))
    assert [view.name for view in load_views(str(path))] == ["customer", "tenant_customer", "account"]
