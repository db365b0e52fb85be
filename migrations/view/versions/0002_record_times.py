"""The time of the last applied record of each partition, of which an as-of is estimated where no cursor tells it."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; it is unknown until a record is applied."""
    op.execute("ALTER TABLE projector.partition_offset ADD COLUMN record_time timestamptz")


def downgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE projector.partition_offset DROP COLUMN record_time")
