"""nets: being built."""
