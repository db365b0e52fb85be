"""Settings of the sessions that read the source: what makes the same bytes of the same row, and harms no writer."""

SESSION = {
    # The same bytes for the same row, whatever the server's, the database's or the role's settings.
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    # Names of types, as the catalog gives them, decide how values are written.
    "quote_all_identifiers": "off",
    "client_encoding": "UTF8",
    # A row hidden by a policy would look deleted: make Postgres raise an error instead.
    "row_security": "off",
    # A commit of ours must be on disk when it returns: see Lease.flush.
    "synchronous_commit": "on",
    # Nothing of ours stands long in a lock's queue, since writers would queue behind it.
    "lock_timeout": "50ms",
    # A round may be long, but a leader that was lost in one must not hold its locks for long.
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "120s",
    # A standby's sessions wait for as long as somebody else leads.
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
}
"""Settings of every session that reads the source or writes the mark."""

READER = {
    # Tens of records a poll: the planner's guess for a log without statistics would be a sequential scan.
    "enable_seqscan": "off",
    # A page's keys are looked up one by one: a merge with the key's index would read all of it before them.
    "enable_mergejoin": "off",
    "enable_hashjoin": "off",
    # A plan for the values at hand costs a poll more time than its queries: the look at the catalog took 2 ms.
    "plan_cache_mode": "force_generic_plan",
    # A cursor is read to its end.
    "cursor_tuple_fraction": "1",
}
"""Settings of the one that reads for the capture, beside SESSION: its statements look up few keys, in large tables."""
