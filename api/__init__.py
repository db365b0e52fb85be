"""A view over HTTP: one resource, one key look-up."""
