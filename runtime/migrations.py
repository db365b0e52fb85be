"""How an operator is told to migrate a database."""

from importlib.resources import files


def migration_command(section: str) -> str:
    """Return the whole command that brings `section` (source, view or demo) up to date, with the path of its file."""
    return f"alembic -c {files('migrations') / 'alembic.ini'} -n {section} upgrade head"
