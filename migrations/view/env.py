"""Runs the migrations of the view database."""

from migrations.environment import plain_errors, run_migrations
from runtime.settings import ViewSettings, read_settings

with plain_errors():
    run_migrations(read_settings(ViewSettings).view_url, version_schema="projector")
