"""The capture's objects: lease and mark, captured tables, attach and detach."""

from contextlib import closing
from importlib.resources import files

from alembic import op

revision = "0001"
down_revision = None

_SQL = files("migrations.source") / "sql"
_UP = (
    "0001_capture_objects.sql",
    "0001_keys.sql",
    "0001_log_triggers.sql",
    "0001_columns.sql",
    "0001_publication.sql",
    "0001_projected.sql",
    "0001_attach.sql",
)


def _run(name: str) -> None:
    script = (_SQL / name).read_text(encoding="utf-8")
    # Straight to psycopg: SQLAlchemy would read the script's percent signs as placeholders.
    with closing(op.get_bind().connection.cursor()) as cursor:
        cursor.execute(script)


def upgrade() -> None:
    """Make the tables and functions of schema cdc."""
    for name in _UP:
        _run(name)


def downgrade() -> None:
    """Detach every table and drop the objects again."""
    _run("0001_capture_objects_down.sql")
