"""What the documents name must be there: settings, commands, targets, files."""

import re
from pathlib import Path

import click
import pytest

import api.cli
import cdc.cli
import compose.local.cli
import projector.cli
from runtime.settings import ApiSettings, AuditSettings, CdcSettings, ProjectorSettings, variable

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "DECISIONS.md",
    "docs/design.md",
    "docs/types.md",
    "docs/status.md",
    "docs/reconcile.md",
    "docs/timestamp.md",
]
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
    for program, command in re.findall(r"(viewkeeper-[a-z]+) ([a-z]+)", document.read_text()):
        group = COMMANDS[program]
        assert isinstance(group, click.Group)
        assert command in group.commands, f"{program} {command}"


def test_every_make_target_named_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", document.read_text(), re.MULTILINE))
    assert named <= targets


def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_readme_names_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    named = set(re.findall(r"^\| \[`([a-z]+)/`\]", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == packages
