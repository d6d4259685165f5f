"""theory: being built."""
