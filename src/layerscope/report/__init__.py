"""report: being built."""
