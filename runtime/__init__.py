"""What each process needs to live: settings, logs, metrics, health, stop, and the thin Postgres and Kafka edges."""
