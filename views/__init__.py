"""Declared views: definitions only."""
