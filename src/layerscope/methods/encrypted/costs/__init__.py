"""What encrypted inference will cost, before any key exists."""
