"""Runs the migrations of the view database."""

from migrations.environment import run_migrations
from runtime.settings import ViewSettings, read_settings

run_migrations(read_settings(ViewSettings).view_url, version_schema="projector")
