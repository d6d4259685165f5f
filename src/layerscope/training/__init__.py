"""training: being built."""
