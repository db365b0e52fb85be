"""The demo's four source tables.

They have no foreign keys: a child may come before its parent and outlive it, as in any source that is fed by several
writers.
"""

from alembic import op
from sqlalchemy import Connection, text

from runtime.errors import ConfigurationError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("users", "tweets", "follows", "likes")
MARK = "Made by the Viewkeeper demo"
"""The comment on each table of ours, which tells it from another's table of the same name."""

CREATE_TABLES = """
CREATE TABLE public.users (
    user_id bigint PRIMARY KEY,
    username text,
    name text,
    description text,
    location text,
    web_page_url text,
    joined_date timestamptz,
    profile_image_url text,
    background_image_url text,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE public.tweets (
    tweet_id bigint PRIMARY KEY,
    user_id bigint,
    text text,
    created_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE public.follows (
    follow_id bigint PRIMARY KEY,
    follower_id bigint,
    followee_id bigint,
    created_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE public.likes (
    like_id bigint PRIMARY KEY,
    user_id bigint,
    tweet_id bigint,
    created_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
"""

# One for each column that the view's counts group by: the audit and a deleted account's clean-up use them.
CREATE_INDEXES = """
CREATE INDEX tweets_user_id ON public.tweets (user_id);
CREATE INDEX follows_follower_id ON public.follows (follower_id);
CREATE INDEX follows_followee_id ON public.follows (followee_id);
CREATE INDEX likes_user_id ON public.likes (user_id);
"""

EXISTING = """
SELECT relation.relname, pg_catalog.obj_description(relation.oid, 'pg_class') = :mark AS ours
FROM pg_catalog.pg_class AS relation
WHERE relation.relnamespace = 'public'::regnamespace AND relation.relname = ANY (:tables)
ORDER BY relation.relname
"""


def upgrade() -> None:
    """Create the tables; raise ConfigurationError when one of their names is taken."""
    connection = op.get_bind()
    taken = existing_tables(connection)
    if taken:
        database = connection.engine.url.database
        raise ConfigurationError(
            f"database {database!r}: public.{', public.'.join(taken)} already there, and not made by this "
            "migration: use a database without such tables, or drop them if nobody needs them"
        )
    op.execute(CREATE_TABLES)
    op.execute(CREATE_INDEXES)
    for table in TABLES:
        op.create_table_comment(table, MARK, schema="public")


def downgrade() -> None:
    """Drop the tables that `upgrade` made; leave another's table of the same name alone."""
    for table, ours in existing_tables(op.get_bind()).items():
        if ours:
            op.drop_table(table, schema="public")


def existing_tables(connection: Connection) -> dict[str, bool]:
    """Return the relations that have one of our names, each with whether it carries our mark."""
    rows = connection.execute(text(EXISTING), {"mark": MARK, "tables": list(TABLES)})
    return {name: bool(ours) for name, ours in rows}
