"""Registry, offsets, as-of, and version 1 of each declared view."""

from alembic import op
from psycopg import Connection

from projector.loading import load_views
from projector.versions import first_version, take_down
from runtime.errors import ConfigurationError
from runtime.postgres import describe
from runtime.settings import ViewSettings, read_settings

revision = "0001"
down_revision = None

# Versions of views, each with its whole definition, so that one process can keep two versions in step.
VIEW_VERSION = """
CREATE TABLE projector.view_version (
    view text NOT NULL,
    version integer NOT NULL,
    definition jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('building', 'ready', 'active', 'previous', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (view, version)
)
"""

ONE_ACTIVE_VERSION = """
CREATE UNIQUE INDEX view_version_active ON projector.view_version (view) WHERE state = 'active'
"""

ONE_COMING_VERSION = """
CREATE UNIQUE INDEX view_version_coming ON projector.view_version (view) WHERE state IN ('building', 'ready')
"""

ONE_PREVIOUS_VERSION = """
CREATE UNIQUE INDEX view_version_previous ON projector.view_version (view) WHERE state IN ('previous', 'retired')
"""

# The next offset to read, stored in the transaction that applies the records before it. `stored_at` is when that was,
# or when the partition was last known to end there.
PARTITION_OFFSET = """
CREATE TABLE projector.partition_offset (
    view text NOT NULL,
    version integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
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

# Records that could not be applied, stored in the transaction of their batch. A key has one at most: any newer record
# of it, applied or not, takes an older one's place. `timestamp_ms` is the record's own, NULL where it has none.
DEAD_LETTER = """
CREATE TABLE projector.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    view text NOT NULL,
    version integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    value bytea,
    timestamp_ms bigint,
    reason text NOT NULL,
    dead_since timestamptz NOT NULL DEFAULT now(),
    UNIQUE (view, version, topic, partition, "offset"),
    FOREIGN KEY (view, version) REFERENCES projector.view_version ON DELETE CASCADE
)
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

# The flag of dead letters is looked up, so that it is true whoever adds or removes one.
AS_OF_FOR_READERS = """
CREATE VIEW public.viewkeeper_as_of AS
SELECT
    view,
    as_of,
    CASE
        WHEN EXISTS (
            SELECT FROM projector.dead_letter AS letter
            WHERE letter.view = as_of.view AND letter.version = as_of.version
        ) THEN flags || '{dead_letters}'
        ELSE flags
    END AS flags
FROM projector.as_of
JOIN projector.view_version USING (view, version)
WHERE state = 'active'
"""


FIXED = (
    VIEW_VERSION,
    ONE_ACTIVE_VERSION,
    ONE_COMING_VERSION,
    ONE_PREVIOUS_VERSION,
    PARTITION_OFFSET,
    AS_OF,
    DEAD_LETTER,
    DATABASE_ID,
    NEW_DATABASE_ID,
    AS_OF_FOR_READERS,
)


def upgrade() -> None:
    """Make the fixed tables, then version 1 of each view in VIEWKEEPER_VIEWS.

    Raises ConfigurationError in a database that has not all characters: rows could not be written, nor keys looked up.
    """
    _demand_utf8()
    for statement in FIXED:
        op.execute(statement)
    for view in load_views(read_settings(ViewSettings).views):
        first_version(_session(), view)


def downgrade() -> None:
    """Drop every version that is registered, then the fixed tables."""
    op.execute("DROP VIEW public.viewkeeper_as_of")
    take_down(_session())
    for table in ("dead_letter", "database_id", "as_of", "partition_offset", "view_version"):
        op.execute(f"DROP TABLE projector.{table}")


def _demand_utf8() -> None:
    encoding = _session().info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"{describe(read_settings(ViewSettings).view_url)}: its encoding is {encoding}, in which rows of views may "
            "have no place; make the database anew: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )


def _session() -> Connection:
    """Return psycopg's connection, within Alembic's transaction."""
    session = op.get_bind().connection.driver_connection
    if not isinstance(session, Connection):
        raise TypeError(f"{session!r} is no connection of psycopg's")
    return session
