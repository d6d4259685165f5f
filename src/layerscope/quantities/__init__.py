"""quantities: being built."""
