"""norms: being built."""
