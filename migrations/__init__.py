"""Alembic migrations: source, view and demo."""
