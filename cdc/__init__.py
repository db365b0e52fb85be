"""Source Postgres to changelog topics: the capture, and the wire contract that consumers share."""
