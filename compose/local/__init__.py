"""Real servers as local processes."""
