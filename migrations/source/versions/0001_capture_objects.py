"""The capture's objects: lease and mark, captured tables, attach and detach."""

from contextlib import closing
from importlib.resources import files

from alembic import op

revision = "0001"
down_revision = None

_SQL = files("migrations.source") / "sql"


def _run(script: str) -> None:
    # Straight to psycopg: SQLAlchemy would read the script's percent signs as placeholders.
    with closing(op.get_bind().connection.cursor()) as cursor:
        cursor.execute(script)


def upgrade() -> None:
    """Make the tables and functions of schema cdc."""
    _run((_SQL / "0001_capture_objects.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Detach every table and drop the objects again."""
    _run((_SQL / "0001_capture_objects_down.sql").read_text(encoding="utf-8"))
