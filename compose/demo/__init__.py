"""The demo: a start population, a workload and a live terminal table."""
