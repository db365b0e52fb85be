"""Runs the migrations of the source database."""

from migrations.environment import plain_errors, run_migrations
from runtime.settings import SourceSettings, read_settings

with plain_errors():
    run_migrations(read_settings(SourceSettings).source_url, version_schema="cdc")
