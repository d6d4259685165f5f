"""data: being built."""
