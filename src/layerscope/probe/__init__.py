"""probe: being built."""
