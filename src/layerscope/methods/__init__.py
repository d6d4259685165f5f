"""Published systems built on the instrument, one folder each; no method imports another."""
