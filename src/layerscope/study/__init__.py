"""study: being built."""
