"""Registry, offsets, as-of, and version 1 of each declared view."""

import msgspec
from alembic import op
from sqlalchemy import Connection, text

from projector.definition import View
from projector.loading import load_views
from projector.tables import create_version, drop_version, show_version
from runtime.settings import ViewSettings, read_settings

revision = "0001"
down_revision = None

# Versions of views, each with its whole definition, so that one process can keep two versions in step.
VIEW_VERSION = """
CREATE TABLE projector.view_version (
    view text NOT NULL,
    version integer NOT NULL,
    definition jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('building', 'active')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (view, version)
)
"""

ONE_ACTIVE_VERSION = """
CREATE UNIQUE INDEX view_version_active ON projector.view_version (view) WHERE state = 'active'
"""

# The next offset to read, stored in the transaction that applies the records before it.
PARTITION_OFFSET = """
CREATE TABLE projector.partition_offset (
    view text NOT NULL,
    version integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (view, version, topic, partition),
    FOREIGN KEY (view, version) REFERENCES projector.view_version ON DELETE CASCADE
) WITH (fillfactor = 50)
"""

# The newest watermark that a version fully reflects; NULL before the first.
AS_OF = """
CREATE TABLE projector.as_of (
    view text NOT NULL,
    version integer NOT NULL,
    as_of timestamptz,
    flags text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (view, version),
    FOREIGN KEY (view, version) REFERENCES projector.view_version ON DELETE CASCADE
) WITH (fillfactor = 50)
"""

# Tells this database from one of the same name on another server: consumer groups are named after it.
DATABASE_ID = """
CREATE TABLE projector.database_id (
    id uuid PRIMARY KEY
)
"""

NEW_DATABASE_ID = """
INSERT INTO projector.database_id (id) VALUES (gen_random_uuid())
"""

AS_OF_FOR_READERS = """
CREATE VIEW public.viewkeeper_as_of AS
SELECT view, as_of, flags
FROM projector.as_of
JOIN projector.view_version USING (view, version)
WHERE state = 'active'
"""


def upgrade() -> None:
    """Make the fixed tables, then version 1 of each view in VIEWKEEPER_VIEWS."""
    fixed = (VIEW_VERSION, ONE_ACTIVE_VERSION, PARTITION_OFFSET, AS_OF, DATABASE_ID, NEW_DATABASE_ID, AS_OF_FOR_READERS)
    for statement in fixed:
        op.execute(statement)
    connection = op.get_bind()
    for view in load_views(read_settings(ViewSettings).views):
        create_version(connection, view, version=1)
        show_version(connection, view, version=1)


def downgrade() -> None:
    """Drop every version that is registered, then the fixed tables."""
    connection = op.get_bind()
    op.execute("DROP VIEW public.viewkeeper_as_of")
    for view, version in _registered(connection):
        drop_version(connection, view, version)
    op.execute("DROP TABLE projector.database_id, projector.as_of, projector.partition_offset, projector.view_version")


def _registered(connection: Connection) -> list[tuple[View, int]]:
    rows = connection.execute(text("SELECT definition, version FROM projector.view_version ORDER BY view, version"))
    return [(msgspec.convert(definition, View), version) for definition, version in rows]
