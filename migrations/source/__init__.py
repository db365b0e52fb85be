"""Migrations of the source."""
