"""Migrations of the view."""
