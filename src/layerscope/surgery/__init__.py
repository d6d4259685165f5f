"""surgery: being built."""
