"""verdict: being built."""
