"""Several runs at a time: local processes, or a Ray cluster."""
