"""Changelog topics to a view: the definition language, the projection and its writer."""
